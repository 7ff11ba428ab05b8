"""Talking to a running daemon: HTTP with JSON on a Unix socket."""
