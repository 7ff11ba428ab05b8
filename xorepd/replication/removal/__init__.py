"""Destroys objects on pools, each only after proof that it is ours."""
