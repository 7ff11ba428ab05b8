"""The configuration: what the operator wrote, typed and checked."""
