"""A transport that compresses, to a relay beside the target pool."""
