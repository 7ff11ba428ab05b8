"""What to do, decided from plain values: records, marks, settings. Pure.

Nothing here waits, asks a pool, reads a clock or logs, so each decision is tested without I/O.
"""
