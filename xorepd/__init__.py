"""Incremental, agentless VM replication between XCP-ng and XenServer pools."""
