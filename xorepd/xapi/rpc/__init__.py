"""One session to one pool: logins, calls, their answers and their errors."""
