"""What listens: HTTP, the exports and imports of disks and VMs, NBD, certificates."""
