"""What VMs do: write to their disks, report to the toolstack; and what they are made from."""
