"""The daemon: schedules and runs jobs, and answers on the control socket."""
