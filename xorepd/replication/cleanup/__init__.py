"""Remove what runs leave on both pools, and what no restore point needs any more."""
