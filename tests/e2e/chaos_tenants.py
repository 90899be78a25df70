"""Tenants who work while their installation is mistreated, and remember what they were promised.

One thread each, with a folder, a vault and a random generator of its own. What a tenant knows of a restore point is the
digest of the folder when it was made: nobody else writes there, and the tenant does not while a task is open.
"""

import hashlib
import random
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
from chaos_world import World
from harness import contents

ANSWER_S_MAX = 180.0  # an installation that is mistreated once a second still answers within this
IDLE_S_MAX = 300.0
FILES = 12
KEPT_MAX = 8  # restore points a tenant keeps; older ones are deleted


class Stuck(AssertionError):
    """What was waited for did not come: a promise of the service is broken."""


class Unknown(Exception):
    """A request was sent and no answer came: it was done, or not."""


class Session:
    """Calls any API that answers, with one token."""

    def __init__(self, world: World, headers: dict[str, str], project: str) -> None:
        self._world = world
        self._http = httpx.Client(timeout=20, headers=headers)
        self._turn = random.Random(project)
        self.project = project

    def ask(self, path: str, **params: Any) -> Any:
        """A GET, repeated until it is answered."""
        deadline = time.monotonic() + ANSWER_S_MAX
        while True:
            try:
                answer = self._http.get(self._url(path), params=params)
                if answer.status_code == 404:
                    return None
                if answer.status_code < 300:
                    return answer.json()
                if answer.status_code < 500 and answer.status_code != 429:
                    raise Stuck(f"GET {path}: {answer.status_code} {answer.text[:500]}")
                told = f"{answer.status_code} {answer.text[:300]}"
            except httpx.TransportError as err:
                told = repr(err)
            if time.monotonic() > deadline:
                raise Stuck(f"GET {path} was not answered for {ANSWER_S_MAX:.0f} s: {told}")
            threading.Event().wait(0.2)

    def change(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        """Sent once: status and body; 5xx and silence are Unknown."""
        try:
            answer = self._http.request(method, self._url(path), json=body)
        except httpx.TransportError as err:
            raise Unknown(repr(err)) from err
        if answer.status_code >= 500:
            raise Unknown(f"{answer.status_code} {answer.text[:300]}")
        return answer.status_code, answer.json() if answer.content else None

    def close(self) -> None:
        self._http.close()

    def _url(self, path: str) -> str:
        base = self._turn.choice(self._world.endpoints)
        return base + (path if path.startswith("/") else f"/v3/{self.project}/{path}")


class Tenant(threading.Thread):
    """`failure` is what went wrong, None if nothing did. `known` maps restore points to digests."""

    def __init__(self, session: Session, folder: Path, vault: str, resource: str, seed: int) -> None:
        super().__init__(name=f"tenant {folder.name}", daemon=True)
        self.failure: BaseException | None = None
        self.counts: Counter[str] = Counter()
        self.known: dict[str, str] = {}
        self._session = session
        self._folder = folder
        self._vault = vault
        self._resource = resource
        self._rng = random.Random(seed)
        self._end = threading.Event()
        self._asked: set[str] = set()  # restore points whose delete was asked for: they may go at any time

    def run(self) -> None:
        try:
            self._write()
            while not self._end.is_set():
                self._step()
        except BaseException as err:  # noqa: BLE001 -- told by the main thread
            self.failure = err

    def end(self) -> None:
        """After the step that it is in."""
        self._end.set()
        self.join(IDLE_S_MAX * 2)
        if self.is_alive():
            raise Stuck(f"{self.name} does not come to an end")
        if self.failure is not None:
            raise self.failure

    def check(self) -> int:
        """Restore every restore point that was promised, and compare. How many there were."""
        self._idle()
        self._look(None)
        for backup, wanted in self.known.items():
            if self._restore(backup, wanted) != "success":
                raise Stuck(f"{backup} could not be restored when all was calm: {self._told()}")
        self._session.close()
        return len(self.known)

    # --- steps ----------------------------------------------------------------------------------------------------

    def _step(self) -> None:
        draw = self._rng.random()
        if draw < 0.55 or not self.known:
            self._write()
            self._back_up()
        elif draw < 0.85:
            backup = self._rng.choice(sorted(self.known))
            self.counts[f"restore {self._restore(backup, self.known[backup])}"] += 1
        else:
            self._drop(self._rng.choice(sorted(self.known)))
        if len(self.known) > KEPT_MAX:
            self._drop(self._rng.choice(sorted(self.known)))

    def _write(self) -> None:
        for _ in range(self._rng.randint(1, 4)):
            path = self._folder / f"d{self._rng.randint(0, 2)}" / f"f{self._rng.randint(0, FILES)}"
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists() and self._rng.random() < 0.3:
                path.unlink()
            else:
                path.write_bytes(self._rng.randbytes(self._rng.choice((10, 5_000, 200_000, 900_000))))

    def _back_up(self) -> None:
        wanted = digest(self._folder)
        body = {"checkpoint": {"vault_id": self._vault, "parameters": {"incremental": self._rng.random() < 0.8}}}
        made = None
        try:
            status, answer = self._session.change("POST", "checkpoints", body)
            if status < 300:
                made = answer["checkpoint"]["id"]
            self.counts[f"checkpoint answered {status}"] += 1
        except Unknown:
            self.counts["checkpoint without an answer"] += 1
        self._idle()
        self._look(wanted)
        if made is None:
            return
        told = self._session.ask(f"checkpoints/{made}")
        if told is None:
            raise Stuck(f"checkpoint {made} was acknowledged, and is not there")
        status = told["checkpoint"]["status"]
        self.counts[f"checkpoint {status}"] += 1
        found = self._session.ask("backups", checkpoint_id=made)["backups"]
        if status == "available" and not any(backup["id"] in self.known for backup in found):
            raise Stuck(f"checkpoint {made} is available, and has no backup that is: {found}")

    def _restore(self, backup: str, wanted: str) -> str:
        before = digest(self._folder)
        outcome = "without an answer"
        try:
            status, answer = self._session.change("POST", f"backups/{backup}/restore", {"restore": {}})
        except Unknown:
            status, answer = 0, None
        self._idle()
        if status in (200, 202) and answer is not None:
            outcome = self._session.ask(f"operation-logs/{answer['job_id']}")["operation_log"]["status"]
        elif status:
            outcome = f"refused with {status}"
        now = digest(self._folder)
        allowed = {wanted} if outcome == "success" else {wanted, before}
        if now not in allowed:
            raise Stuck(
                f"restore of {backup} ended with {outcome} and left neither the old nor the new: {self._told()}"
            )
        return outcome

    def _drop(self, backup: str) -> None:
        self._asked.add(backup)
        try:
            status, _ = self._session.change("DELETE", f"backups/{backup}")
            self.counts[f"delete answered {status}"] += 1
        except Unknown:
            self.counts["delete without an answer"] += 1
        self._idle()
        self._look(None)

    # --- looking --------------------------------------------------------------------------------------------------

    def _look(self, new: str | None) -> None:
        """Compare what is listed with what is known. `new`: digest of points that were not known before."""
        listed = {}
        offset = 0
        while True:
            page = self._session.ask("backups", vault_id=self._vault, limit=100, offset=offset)["backups"]
            listed |= {backup["id"]: backup for backup in page}
            if len(page) < 100:
                break
            offset += 100
        available = {id_ for id_, backup in listed.items() if backup["status"] == "available"}
        lost = set(self.known) - available - self._asked
        if lost:
            states = {id_: listed.get(id_, {}).get("status", "not listed") for id_ in lost}
            raise Stuck(f"restore points that were promised are not available: {states}: {self._told()}")
        for gone in set(self.known) - available:
            del self.known[gone]
            self.counts["deleted"] += 1
        for id_ in available - set(self.known):
            if new is None:
                raise Stuck(f"a restore point came from nowhere: {listed[id_]}")
            self.known[id_] = new

    def _idle(self) -> None:
        """No task of this vault is open."""
        deadline = time.monotonic() + IDLE_S_MAX
        path = f"/ext/v1/{self._session.project}/tasks"
        while True:
            tasks = self._session.ask(path, open="true", limit=500)["tasks"]
            mine = [task for task in tasks if self._vault in str(task) or self._resource in str(task)]
            if not mine:
                return
            if time.monotonic() > deadline:
                raise Stuck(f"tasks do not end within {IDLE_S_MAX:.0f} s: {mine}")
            threading.Event().wait(0.2)

    def _told(self) -> list[Any]:
        """The last words of the service on this vault."""
        logs = self._session.ask("operation-logs", vault_id=self._vault, limit=5)["operation_logs"]
        return [(log["operation_type"], log["status"], log.get("error_info")) for log in logs]


def digest(folder: Path) -> str:
    """Of everything below a folder."""
    return hashlib.sha256(repr(sorted(contents(folder).items())).encode()).hexdigest()
