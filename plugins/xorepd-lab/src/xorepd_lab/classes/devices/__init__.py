"""VBD, VIF, VTPM, network: what belongs to a VM and is no VM."""
