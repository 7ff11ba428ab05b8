"""What daemon and relay say to each other: frames, messages, channels on one connection."""
