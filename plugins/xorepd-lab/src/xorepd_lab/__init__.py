"""XCP-ng pools in one process, without a hypervisor, to try and to test clients of XAPI."""
