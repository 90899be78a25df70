"""Hosts that are read by our agent: what crosses the wire, and the driver that asks it (docs/decisions/0010).

The agent dials out; both ends use `wire` and `channel`, and the values of `messages`. Nothing here knows a database.
"""
