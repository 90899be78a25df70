"""Servers for one run: two regions that know each other, a disk image and a folder, and a project to share with."""

import contextlib
import random
import secrets
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from strongroom.base.units import MIB
from strongroom.cli.client import Client
from strongroom.cli.conformance.cast import Cast
from strongroom.cli.credentials import Credentials, load_credentials
from strongroom.cli.demo.server import running_server

IMAGE_BYTES = 8 * MIB
CONTENT_BYTES = 1 * MIB
DISK, FOLDER, PARTNER = "kit-disk", "kit-folder", "kit-partner"
HERE, THERE = "kit-east", "kit-west"  # the two regions
SEED = 20260


@contextlib.contextmanager
def own_server(folder: Path) -> Iterator[Cast]:
    """The cast, on two servers that are gone afterwards."""
    states = {HERE: folder / HERE, THERE: folder / THERE}
    listen = {region: f"127.0.0.1:{_free_port()}" for region in states}
    for region, state in states.items():
        state.mkdir(mode=0o700)
        (state / "strongroom.toml").write_text(f'region = "{region}"\n')
        with running_server(state, folder / f"{region}.log", listen=listen[region]):
            pass  # the first start makes the project that the other region has to name
    write_regions(states, listen)
    with contextlib.ExitStack() as stack:
        for region, state in states.items():
            stack.enter_context(running_server(state, folder / f"{region}.log", listen=listen[region]))
        owner, replica = (load_credentials(state=state, endpoint=None, file=None) for state in states.values())
        with Client(owner) as client:
            yield prepare(client, owner, replica, folder)


def write_regions(states: dict[str, Path], listen: dict[str, str]) -> None:
    """regions.toml of both: the owner's project here is the owner's project there."""
    secret = secrets.token_hex(32)
    projects = {
        region: load_credentials(state=state, endpoint=None, file=None).project_id for region, state in states.items()
    }
    for region, state in states.items():
        (other,) = states.keys() - {region}
        path = state / "regions.toml"
        path.touch(mode=0o600)
        path.write_text(
            f'[{other}]\nendpoint = "http://{listen[other]}"\nsecret = "{secret}"\n'
            f'[{other}.projects]\n"{projects[region]}" = "{projects[other]}"\n'
        )


def prepare(client: Client, owner: Credentials, replica: Credentials | None, folder: Path) -> Cast:
    """Make and register what is protected; make the partner's project, user and key."""
    image, share = folder / "disk.raw", folder / "share"
    content = random.Random(SEED).randbytes(CONTENT_BYTES)  # noqa: S311 -- the same data each time
    with image.open("wb") as stream:
        stream.truncate(IMAGE_BYTES)
        stream.seek(CONTENT_BYTES)
        stream.write(content)
    share.mkdir()
    (share / "file").write_bytes(content)
    for kind, name, path in (("disk", DISK, image), ("turbo", FOLDER, share)):
        wanted = {"project_id": client.project_id, "type": kind, "name": name, "path": str(path)}
        client.post("/ext/v1/admin/protectables", {"protectable": wanted})
    return Cast(owner=owner, partner=_partner(client, owner), replica=replica, resources=[DISK, FOLDER])


def _partner(client: Client, owner: Credentials) -> Credentials:
    project = client.post("/ext/v1/admin/projects", {"project": {"name": PARTNER}})["project"]
    password = secrets.token_urlsafe(18)
    wanted = {"name": PARTNER, "password": password, "project_id": project["id"]}
    user = client.post("/ext/v1/admin/users", {"user": wanted})["user"]
    key = client.post("/ext/v1/admin/keys", {"key": {"user_id": user["id"]}})["key"]
    return replace(
        owner,
        project_id=project["id"],
        project_name=PARTNER,
        username=PARTNER,
        password=password,
        access_key=key["access_key"],
        secret_key=key["secret_key"],
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
