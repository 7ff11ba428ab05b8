"""The control plane: one pool, its calls, its records and its tasks."""
