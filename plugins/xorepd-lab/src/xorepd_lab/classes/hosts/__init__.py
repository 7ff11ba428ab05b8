"""host, pool: members as machines, and what becomes of their VMs and of the database."""
