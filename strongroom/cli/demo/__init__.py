"""`strongroom demo`: real data through a real server and back, compared byte for byte.

It knows the server as any user does: a process, a line that says where it listens, and the HTTP API.
"""

from strongroom.cli.demo.command import register

__all__ = ["register"]
