"""A volume of Cinder on this host: an attachment of its API, and what OpenStack's own os-brick makes of it.

    attach    POST attachments with what this host is -> how to reach it -> os-brick: a path -> os-complete
    detach    os-brick lets go -> DELETE attachments/{id}

os-brick knows iSCSI, Fibre Channel, NVMe-oF, NFS, RBD (mapped by the kernel) and files.
"""

import contextlib
import json
import os
import socket
import subprocess
import sys
from typing import Any

from strongroom.base.errors import SourceError
from strongroom.sources.openstack.brick import MISSING
from strongroom.sources.openstack.cloud import MICROVERSION, NEEDED, checked, errors

MARK = "strongroom.restore"  # in the metadata of a volume while it is restored: the task
REACH_S_MAX = 300  # of a storage that scans its fabric


class Attachment:
    """One attached volume. `path` is a block device or a file on this host."""

    def __init__(self, storage: Any, volume_id: str, *, writable: bool, beside: str | None = None) -> None:
        """beside: the server that has the volume too, and does not run; None: nobody has. Raises SourceError."""
        self._storage = storage
        self._connection: dict[str, Any] = {}
        self._device: dict[str, Any] | None = None
        self.id = ""
        host = _brick("properties", address=_address())
        body = {"volume_uuid": volume_id, "connector": host, "mode": "rw" if writable else "ro"}
        if beside is not None:  # Cinder gives a second attachment to the same server only, as Nova's migrations need it
            body["instance_uuid"] = beside
        with errors(f"volume {volume_id}"):
            answer = storage.post("/attachments", json={"attachment": body}, microversion=MICROVERSION)
            made = checked(answer)["attachment"]
        self.id = made["id"]
        try:
            self._connection = made["connection_info"]
            self._protocol = str(self._connection.get("driver_volume_type", "")).upper()
            self._device = _brick("connect", protocol=self._protocol, connection=self._connection)
            self.path = str(self._device.get("path"))
            if not os.path.exists(self.path):
                reason = "The volume was attached, but no device of it came. Tell the operator."
                raise SourceError(reason=reason, detail=self.path)
            with errors(f"volume {volume_id}"):
                path = f"/attachments/{self.id}/action"
                checked(storage.post(path, json={"os-complete": {}}, microversion=MICROVERSION))
        except BaseException:
            self.detach()
            raise

    def detach(self) -> None:
        """Idempotent. What Cinder does not take back now is taken back by whoever opens the volume next."""
        device, self._device = self._device, None
        if device is not None:
            with contextlib.suppress(SourceError):
                _brick("disconnect", protocol=self._protocol, connection=self._connection, device=device)
        held, self.id = self.id, ""
        if held:
            with contextlib.suppress(SourceError):
                delete_attachment(self._storage, held)


def attachments_of(storage: Any, volume_id: str) -> list[dict[str, Any]]:
    """Every attachment of a volume, of servers and of others: `id`, `instance`. Raises SourceError."""
    with errors(f"volume {volume_id}"):
        answer = storage.get(f"/attachments?volume_id={volume_id}", microversion=MICROVERSION)
        found: list[dict[str, Any]] = checked(answer)["attachments"]
        return found


def delete_attachment(storage: Any, attachment_id: str) -> None:
    """Gone on return, also when it was before. Raises SourceError."""
    with errors(f"attachment {attachment_id}"):
        answer = storage.delete(f"/attachments/{attachment_id}", microversion=MICROVERSION)
        if answer.status_code != 404:
            checked(answer)


def _brick(verb: str, **wanted: Any) -> dict[str, Any]:
    """What os-brick says, in a process of its own. Raises SourceError."""
    command = [sys.executable, "-m", "strongroom.sources.openstack.brick", verb]
    try:
        done = subprocess.run(
            command, input=json.dumps(wanted), capture_output=True, text=True, timeout=REACH_S_MAX, check=False
        )
    except subprocess.TimeoutExpired as err:
        reason = "The storage of the volume did not answer this host in time. Try again, or tell the operator."
        raise SourceError(reason=reason, detail=verb) from err
    if done.returncode == MISSING:
        raise SourceError(reason=NEEDED)
    if done.returncode:
        reason = "This host cannot reach the storage of the volume. Tell the operator."
        raise SourceError(reason=reason, detail=f"{verb}: {(done.stderr.splitlines() or ['no word'])[-1]}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def _address() -> str:
    try:
        return socket.gethostbyname(socket.gethostname())
    except OSError:
        return "127.0.0.1"
