"""What daemon and relay have in common as processes: logs, signals, systemd, lock, lent pools."""
