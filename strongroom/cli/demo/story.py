"""What the demo tells, in this order:

    a server on embedded defaults -> a folder and a disk registered, a vault for each -> restore points
    -> both changed -> incremental restore points -> both damaged -> the new points restored in place, the first ones
    to other targets -> every byte and attribute compared

Everything it does to the server goes over HTTP; sources and targets it touches as their user would.
"""

import json
import time
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from rich.text import Text

from strongroom.base.units import MIB
from strongroom.cli.checkpoints import backup_task_ids
from strongroom.cli.client import Client, Json
from strongroom.cli.demo import sources
from strongroom.cli.demo.compare import Listing, differences, list_folder, list_image
from strongroom.cli.errors import CommandRefused
from strongroom.cli.output import Output
from strongroom.cli.watching import tell_failures, watch

LOOK_EVERY_S = 0.1  # more often than a person's watch: the whole takes seconds
# A file is known to be unchanged only if it was older than 2 s when it was read (RULINGS 15). Ours are new: without
# the wait the increment would read some of them again, and the table would tell how fast this machine copies.
REST_S = 2.5


@dataclass(frozen=True, kw_only=True)
class Protected:
    """One source of the demo. `listing` is taken by the judge, never from the server."""

    kind: str  # as the API says: turbo or disk
    title: str
    path: Path
    target: Path
    vault_id: str
    resource: Json
    target_id: str

    def listing(self, path: Path) -> Listing:
        return list_folder(bytes(path)) if self.kind == "turbo" else list_image(bytes(path))


@dataclass(kw_only=True)
class Findings:
    """What is printed at the end."""

    runs: list[Json] = field(default_factory=list)
    restores: list[Json] = field(default_factory=list)
    checkpoint: Json = field(default_factory=dict)

    @property
    def differing(self) -> int:
        return sum(len(restore["differences"]) for restore in self.restores)


class Story:
    """One telling: the client, where it is told to, and what was found."""

    def __init__(self, client: Client, output: Output, folder: Path, tools: sources.Tools) -> None:
        self.client = client
        self.output = output
        self.folder = folder
        self.tools = tools
        self.findings = Findings()

    def tell(self) -> None:
        """All of it, in the order of the module's docstring. Raises StrongroomError when a step fails."""
        self._step("Registering a folder and a disk, with a vault for each")
        data = [self._protect("turbo", "folder", "project"), self._protect("disk", "disk image", "disk.img")]
        rested_at = time.monotonic() + REST_S
        before = [one.listing(one.path) for one in data]
        self.output.say(f"  {len(before[0])} names in the folder; the disk has {sources.IMAGE_BYTES // MIB} MiB")

        time.sleep(max(0.0, rested_at - time.monotonic()))

        self._step("First restore points")
        first = self._back_up(data, "first")

        self._step("A day's work: both are changed")
        sources.change_folder(data[0].path)
        sources.change_image(data[1].path, self.tools)
        after = [one.listing(one.path) for one in data]

        self._step("Incremental restore points")
        second = self._back_up(data, "increment")
        self._show_checkpoint(second[0])

        self._step("A bad day: both are damaged")
        sources.damage_folder(data[0].path)
        sources.damage_image(data[1].path)
        for one, expected in zip(data, after, strict=True):
            self.output.say(f"  {one.title}: {len(differences(expected, one.listing(one.path)))} differences")

        self._step("The new restore points in place, the first ones to other targets")
        jobs = [
            *(self._restore(one, point, one.resource["id"]) for one, point in zip(data, second, strict=True)),
            *(self._restore(one, point, one.target_id) for one, point in zip(data, first, strict=True)),
        ]
        tasks = self._watch(jobs)

        self._step("Comparing every byte and every attribute")
        expectations = [
            *((one, "in place", one.path, listing) for one, listing in zip(data, after, strict=True)),
            *((one, "to another target", one.target, listing) for one, listing in zip(data, before, strict=True)),
        ]
        for (one, where, path, expected), task in zip(expectations, tasks, strict=True):
            self._judge(one, where, path, expected, task)
        self._judge_download(data[0], first[0], before[0])

    # --- steps ------------------------------------------------------------------------------------------------------

    def _protect(self, kind: str, title: str, name: str) -> Protected:
        """Make the source and an empty target, register both, make a vault and bind the source to it."""
        path, target = self.folder / name, self.folder / f"elsewhere-{name}"
        if kind == "turbo":
            sources.make_folder(path)
            target.mkdir()
        else:
            sources.make_image(path, self.tools)
            with target.open("wb") as stream:
                stream.truncate(sources.IMAGE_BYTES)
        source_id, target_id = (self._register(kind, place) for place in (path, target))
        found = self.client.get(self.client.v3(f"protectables/{kind}/instances/{source_id}"))["instance"]
        resource = {"id": found["id"], "type": found["type"], "name": found["name"]}
        billing = {
            "object_type": kind,
            "protect_type": "backup",
            "consistent_level": "crash_consistent",
            "size": 100,
        }
        body = {"name": f"demo-{kind}", "resources": [], "billing": billing}
        vault_id = self.client.post(self.client.v3("vaults"), {"vault": body})["vault"]["id"]
        self.client.post(self.client.v3(f"vaults/{vault_id}/addresources"), {"resources": [resource]})
        return Protected(
            kind=kind, title=title, path=path, target=target, vault_id=vault_id, resource=resource, target_id=target_id
        )

    def _register(self, kind: str, path: Path) -> str:
        """As an operator does. The other target may get setuid bits and owners too: it is the operator's own."""
        wanted = {
            "project_id": self.client.project_id,
            "type": kind,
            "name": path.name,
            "path": str(path),
            "privileged": True,
        }
        made = self.client.post("/ext/v1/admin/protectables", {"protectable": wanted})["protectable"]
        return str(made["id"])

    def _back_up(self, data: list[Protected], name: str) -> list[Json]:
        """A restore point of each vault, both at once; returns them settled, each with its `backup`."""
        made = []
        for one in data:
            parameters = {"name": f"{name}-{one.kind}", "incremental": True, "auto_trigger": False}
            body = {"checkpoint": {"vault_id": one.vault_id, "parameters": parameters}}
            made.append(self.client.post(self.client.v3("checkpoints"), body)["checkpoint"])
        self._watch([task_id for point in made for task_id in backup_task_ids(self.client, point)])
        points = []
        for one, point in zip(data, made, strict=True):
            settled = self.client.get(self.client.v3(f"checkpoints/{point['id']}"))["checkpoint"]
            backups = self.client.get(self.client.v3("backups"), checkpoint_id=point["id"])["backups"]
            report = self.client.get(self.client.ext(f"backups/{backups[0]['id']}"))["backup"]
            counted = {m: report[m] for m in ("bytes_read", "bytes_new", "bytes_stored", "seconds")}
            self.findings.runs.append({"what": one.title, "run": name, "backup_id": backups[0]["id"]} | counted)
            points.append(settled | {"backup": backups[0]})
        return points

    def _restore(self, one: Protected, point: Json, target_id: str) -> str:
        """By the published operation; the id of its task."""
        member = "resource_id" if one.kind == "turbo" else "volume_id"
        path = self.client.v3(f"backups/{point['backup']['id']}/restore")
        return str(self.client.post(path, {"restore": {member: target_id}})["job_id"])

    def _watch(self, task_ids: list[str]) -> list[Json]:
        tasks = watch(self.client, self.output, task_ids, every_s=LOOK_EVERY_S)
        tell_failures(self.output, tasks)
        failed = [task for task in tasks if task["status"] != "success"]
        if failed:
            raise CommandRefused(reason=f"{len(failed)} of {len(tasks)} tasks did not succeed.")
        return tasks

    def _show_checkpoint(self, point: Json) -> None:
        path = self.client.v3(f"checkpoints/{point['id']}")
        text = self.client.get_text(path)
        self.findings.checkpoint = json.loads(text)
        self.output.say(f"  GET {path}")
        self.output.say(json.dumps(self.findings.checkpoint, indent=2, ensure_ascii=False))

    def _judge(self, one: Protected, where: str, path: Path, expected: Listing, task: Json) -> None:
        found = differences(expected, one.listing(path))
        if one.kind == "disk" and not sources.filesystem_is_sound(path, self.tools):
            found.append("e2fsck finds faults in the filesystem")
        size = sum(entry.size for entry in expected.values())
        self._add_judgement(f"{one.title}, {where}", len(expected), size, found, _seconds(task))

    def _judge_download(self, one: Protected, point: Json, expected: Listing) -> None:
        """One file straight out of the first restore point, without a restore."""
        largest = max((name for name in expected if name.startswith(b"python/")), key=lambda name: expected[name].size)
        copy = self.folder / "downloaded"
        started = time.monotonic()
        path = self.client.ext(f"backups/{point['backup']['id']}/download")
        with self.client.stream(path, path=largest.decode()) as response, copy.open("wb") as stream:
            for piece in response.iter_bytes():
                stream.write(piece)
        seconds = time.monotonic() - started
        got = list_image(bytes(copy))[b"disk"]
        same = got.content == expected[largest].content
        found = [] if same else [f"{largest.decode()} came back different"]
        self._add_judgement("one file, downloaded", 1, got.size, found, seconds)

    def _add_judgement(self, what: str, names: int, size: int, found: list[str], seconds: float) -> None:
        self.findings.restores.append(
            {"what": what, "names": names, "bytes": size, "seconds": round(seconds, 2), "differences": found}
        )

    def _step(self, text: str) -> None:
        self.output.line("status", step=text)
        if not self.output.as_json:
            self.output.stdout.print(Text(f"\n{text}", style="bold"))


def _seconds(task: Json) -> float:
    """How long a task took, by the server's own times."""
    if not task.get("started_at") or not task.get("ended_at"):
        return 0.0
    return (datetime.fromisoformat(task["ended_at"]) - datetime.fromisoformat(task["started_at"])).total_seconds()
