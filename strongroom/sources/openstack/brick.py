"""os-brick in a process of its own: `python -m strongroom.sources.openstack.brick VERB`, JSON in, JSON out.

It brings eventlet, which wants to be the only one that schedules, into whatever process imports it. The worker has
threads and an event loop of another kind, so it calls this. VERB, what is read from standard input, what is written:

    properties  {"address"}                             what Cinder has to know of this host
    connect     {"protocol", "connection"}              {"path", ...}, the device as os-brick tells it
    disconnect  {"protocol", "connection", "device"}    {}

Exit code 1: it failed, the last line of standard error tells why; 3: os-brick is not installed.
"""

import json
import sys
from typing import Any

MISSING = 3
_LOCAL = {"RBD": {"do_local_attach": True}}  # mapped by the kernel, instead of a handle in this process


def main() -> int:
    """Returns the exit code."""
    try:
        from os_brick import privileged
        from os_brick.initiator import connector
    except ImportError:
        return MISSING
    privileged.default.set_client_mode(False)  # act in this process, which is root as the worker is
    wanted = json.load(sys.stdin)
    sys.stdout.write(json.dumps(_answer(connector, sys.argv[1], wanted)) + "\n")
    return 0


def _answer(brick: Any, verb: str, wanted: dict[str, Any]) -> dict[str, Any]:
    if verb == "properties":
        found: dict[str, Any] = brick.get_connector_properties(
            "", wanted["address"], multipath=False, enforce_multipath=False
        )
        return found
    protocol = wanted["protocol"]
    reached = brick.InitiatorConnector.factory(protocol, "", **_LOCAL.get(protocol, {}))
    if verb == "connect":
        device: dict[str, Any] = reached.connect_volume(wanted["connection"])
        return device
    reached.disconnect_volume(wanted["connection"], wanted["device"])
    return {}


if __name__ == "__main__":
    sys.exit(main())
