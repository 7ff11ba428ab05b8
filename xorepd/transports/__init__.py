"""How data travels from a reader to a writer: the seam for plug-ins, and the one built in."""
