"""A transport that keeps to a rate, by link, pool, job and time of day."""
