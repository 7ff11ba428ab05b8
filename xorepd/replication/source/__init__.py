"""The source VM: brought to rest, snapshotted, and what its snapshot needs."""
