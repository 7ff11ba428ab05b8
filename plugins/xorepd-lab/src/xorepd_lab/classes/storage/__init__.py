"""SR, PBD, VDI: storage, and which disks are in use."""
