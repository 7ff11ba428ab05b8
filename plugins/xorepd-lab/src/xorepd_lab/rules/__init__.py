"""Whether an operation is allowed now, and the error that says why not. No I/O here."""
