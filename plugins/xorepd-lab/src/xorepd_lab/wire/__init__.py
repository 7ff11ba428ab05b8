"""Formats of requests, answers and streams, and of the texts that XAPI keeps in fields."""
