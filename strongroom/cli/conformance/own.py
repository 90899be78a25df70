"""A server for one run: a disk image to protect, and a second project to share with."""

import contextlib
import random
import secrets
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from strongroom.base.units import MIB
from strongroom.cli.client import Client
from strongroom.cli.credentials import Credentials, load_credentials
from strongroom.cli.demo.server import running_server

IMAGE_BYTES = 8 * MIB
CONTENT_BYTES = 1 * MIB
RESOURCE = "kit-disk"
PARTNER = "kit-partner"
SEED = 20260


@contextlib.contextmanager
def own_server(folder: Path) -> Iterator[tuple[Credentials, Credentials, str]]:
    """Owner, partner and the name of the resource, on a server that is gone afterwards."""
    image = folder / "disk.raw"
    with image.open("wb") as stream:
        stream.truncate(IMAGE_BYTES)
        stream.seek(CONTENT_BYTES)
        stream.write(random.Random(SEED).randbytes(CONTENT_BYTES))  # noqa: S311 -- the same data each time
    with running_server(folder / "state", folder / "server.log") as endpoint:
        owner = load_credentials(state=folder / "state", endpoint=endpoint, file=None)
        with Client(owner) as client:
            yield owner, prepare(client, owner, image), RESOURCE


def prepare(client: Client, owner: Credentials, image: Path) -> Credentials:
    """Register the image for the owner; make the partner's project, user and key."""
    registered = {"project_id": client.project_id, "type": "disk", "name": RESOURCE, "path": str(image)}
    client.post("/ext/v1/admin/protectables", {"protectable": registered})
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
