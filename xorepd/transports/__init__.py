"""Transports carry data from a reader to a writer: the interface for plug-ins, and `direct`."""
