"""The command line: a client of the HTTP API, and the few commands that need no server."""
