"""What `xorepctl` shows to people."""
