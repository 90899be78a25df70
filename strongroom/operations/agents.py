"""Hosts with an agent, as jobs find them: every agent that was asked for or that came, by the id of its resource."""

import threading

from strongroom.sources.hosts.link import Station


class Stations:
    """One a process; the port that agents dial fills it (operations/agent_listener.py)."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stations: dict[str, Station] = {}

    def at(self, agent_id: str, name: str = "") -> Station:
        with self._lock:
            return self._stations.setdefault(agent_id, Station(name or agent_id))
