"""The data of disks, from a source snapshot into staging disks on the target, and its check."""
