"""Answers of a real service, recorded once and played back: for tests that cannot start it each time.

Recorded are the answers only, as (method, path with query) -> [status, headers that matter, body] in their order; the
last of a kind is given again for as long as it is asked for, which is how one waits for a status. Addresses become
`http://recorded`, and what `words` names becomes its key.
"""

import io
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests

_HEADERS = ("content-type", "x-subject-token", "location", "x-openstack-request-id")
BASE = "http://recorded"


@contextmanager
def recording(path: Path, words: Mapping[str, str], *, whole: bool = False) -> Iterator[None]:
    """Write what requests gets within to `path`; `words` maps placeholders to what stands for them now.

    whole: every answer, for a story in which the same is asked again after something changed.
    """
    real = requests.Session.send
    told: dict[str, list[list[Any]]] = {}

    def send(session: requests.Session, request: requests.PreparedRequest, **options: Any) -> requests.Response:
        answer = real(session, request, **options)
        place = urlsplit(request.url or "")
        base = f"{place.scheme}://{place.netloc}"
        headers = {k: v for k, v in answer.headers.items() if k.lower() in _HEADERS}
        if "X-Subject-Token" in headers:
            headers["X-Subject-Token"] = "a-token"
        kept = [answer.status_code, headers, answer.text]
        told.setdefault(_key(request, words), []).append(json.loads(_plain(json.dumps(kept), words, base)))
        return answer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(requests.Session, "send", send)
        yield
    kept = {key: told[key] if whole else _short(told[key]) for key in sorted(told)}
    path.write_text(json.dumps(kept, indent=1) + "\n")


@contextmanager
def played(path: Path, words: Mapping[str, str]) -> Iterator[list[str]]:
    """Answer what requests asks within from `path`; yields what was asked. Fails for what was never recorded."""
    told: dict[str, list[list[Any]]] = json.loads(path.read_text())
    asked: list[str] = []

    def send(_: requests.Session, request: requests.PreparedRequest, **__: Any) -> requests.Response:
        key = _key(request, words)
        asked.append(key)
        assert key in told, f"never recorded: {key}"
        status, headers, body = told[key].pop(0) if len(told[key]) > 1 else told[key][0]
        answer = requests.Response()
        answer.status_code, answer.request, answer.url = status, request, request.url or ""
        answer.headers.update(headers)
        for word, value in words.items():
            body = body.replace(word, value)
        answer.raw = io.BytesIO(body.encode())
        answer._content = body.encode()
        return answer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(requests.Session, "send", send)
        yield asked


def _key(request: requests.PreparedRequest, words: Mapping[str, str]) -> str:
    place = urlsplit(request.url or "")
    return _plain(f"{request.method} {place.path}{'?' + place.query if place.query else ''}", words, BASE)


def _plain(text: str, words: Mapping[str, str], base: str) -> str:
    for word, value in words.items():
        text = text.replace(value, word)
    return text.replace(base, BASE)


def _short(answers: list[list[Any]]) -> list[list[Any]]:
    """Equal answers that follow each other, told once."""
    return [answer for number, answer in enumerate(answers) if number == 0 or answer[2] != answers[number - 1][2]]
