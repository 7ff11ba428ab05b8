"""What runs leave behind on both pools, and what nobody needs any more."""
