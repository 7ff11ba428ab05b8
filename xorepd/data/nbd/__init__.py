"""Disks over NBD, and the bitmap of changed blocks that says which part of them to read."""
