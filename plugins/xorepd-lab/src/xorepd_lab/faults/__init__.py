"""What goes wrong on demand: rules, their effects on a request, and incidents."""
