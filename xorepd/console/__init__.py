"""What `xorepctl` prints."""
