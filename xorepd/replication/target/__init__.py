"""The replica: staging disks become its disks, and a snapshot of it the restore point."""
