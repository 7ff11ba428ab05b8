"""What the daemon remembers. Losing it loses history, never a replica."""
