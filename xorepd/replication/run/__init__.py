"""A job's run: its VMs, and for each VM and target the steps from preflight to prune."""
