"""Hears what a client library says: every exchange that goes through `requests`, which all of them use."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import requests

from strongroom.conformance.contract import Exchange


class Ear:
    """Keeps the exchanges since it was last emptied."""

    def __init__(self, watch: Callable[[Exchange], object]) -> None:
        self._watch = watch
        self.heard: list[Exchange] = []

    def empty(self) -> list[Exchange]:
        """What was heard since the last time."""
        heard, self.heard = self.heard, []
        return heard

    def hear(self, response: requests.Response) -> None:
        """One answer, as it came."""
        exchange = Exchange(
            method=response.request.method or "",
            path=urlsplit(response.request.url or "").path,
            status=response.status_code,
            headers={name.lower(): value for name, value in response.headers.items()},
            content=response.content,
        )
        self.heard.append(exchange)
        self._watch(exchange)


@contextlib.contextmanager
def listening(ear: Ear) -> Iterator[None]:
    """While it is open, every session of `requests` in this process tells the ear. The clients stay as they are."""
    sessions: Any = requests.Session
    send = sessions.send

    def heard(session: requests.Session, request: requests.PreparedRequest, **options: Any) -> requests.Response:
        response: requests.Response = send(session, request, **options)
        ear.hear(response)
        return response

    sessions.send = heard
    try:
        yield
    finally:
        sessions.send = send
