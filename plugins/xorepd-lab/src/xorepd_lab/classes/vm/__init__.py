"""VM: from making one to migrating its disks."""
