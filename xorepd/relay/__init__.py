"""The writer beside a target pool, and the wire between it and the daemon (docs/relay.md)."""
