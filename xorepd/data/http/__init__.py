"""XAPI's disk handlers: exports and imports over HTTP."""
