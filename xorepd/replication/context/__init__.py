"""What one run of one VM works with, and what it shares with other runs."""
