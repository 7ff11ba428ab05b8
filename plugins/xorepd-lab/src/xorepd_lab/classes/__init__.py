"""The calls of each XAPI class, and what follows from them."""
