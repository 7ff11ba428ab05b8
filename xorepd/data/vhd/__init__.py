"""VHD as a stream: layout, encoder and parser. No I/O."""
