"""What xorepd writes on the objects of pools, reads there again, and what that proves. Pure."""
