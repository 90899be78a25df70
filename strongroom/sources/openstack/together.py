"""Snapshots of several volumes as close together as the cloud can.

In one group whose type promises it, they are of one moment: one request, one group snapshot. Else one snapshot a
volume, all of them begun before the first is waited for; how far apart they may be is measured and told.
"""

import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from strongroom.base.errors import SourceError
from strongroom.sources.base import Check, SourceRef
from strongroom.sources.openstack.cloud import checked, errors
from strongroom.sources.openstack.copies import (
    Undo,
    await_snapshot,
    begin_snapshot,
    delete_snapshot,
    name_of,
)
from strongroom.sources.openstack.waiting import MADE_S_MAX, delete, wait

GROUPS_MICROVERSION = "3.59"  # group snapshots came with 3.14, each back end's own word on them with 3.20
CONSISTENT = "consistent_group_snapshot_enabled"


class Snapshots:
    """One of each volume. of: ids by volume.

    apart  why they are not proven to be of one moment, a sentence; None: they are
    """

    def __init__(self, storage: Any, ref: SourceRef, volumes: Sequence[Any], check: Check) -> None:
        """Raises SourceError, and what check raises; then nothing is left."""
        self._storage, self._ref, self._check = storage, ref, check
        self._undo = Undo()
        self.of: Mapping[str, str] = {}
        self.apart: str | None = None
        try:
            self.of = self._take(volumes)
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        """Idempotent."""
        self._undo.run()

    def _take(self, volumes: Sequence[Any]) -> Mapping[str, str]:
        if len(volumes) < 2:
            return self._one_by_one(volumes)
        groups = {volume.group_id for volume in volumes}
        why = "the volumes are not in one group of Cinder."
        if len(groups) == 1 and None not in groups:
            try:
                return self._as_group(str(groups.pop()), volumes)
            except SourceError as err:
                self._undo.run()
                why = f"the snapshot of their group failed ({err.message})"
        return self._one_by_one(volumes, why)

    def _one_by_one(self, volumes: Sequence[Any], why: str = "") -> Mapping[str, str]:
        begun_s = time.monotonic()
        of = {}
        for volume in volumes:
            of[volume.id] = id_ = begin_snapshot(self._storage, self._ref, volume.id)
            self._undo.add(partial(delete_snapshot, self._storage, id_))
        for id_ in of.values():
            await_snapshot(self._storage, id_, self._check)
        if len(of) > 1:
            seconds = time.monotonic() - begun_s
            self.apart = (
                "Each disk is crash-consistent by itself, the disks not with each other: their snapshots were made one "
                f"by one within {seconds:.1f} s, because {why}"
            )
        return of

    def _as_group(self, group_id: str, volumes: Sequence[Any]) -> Mapping[str, str]:
        storage, name = self._storage, name_of(self._ref)
        with errors(f"a snapshot of group {group_id}"):
            body = {"group_snapshot": {"group_id": group_id, "name": name, "description": name}}
            made = _ask(storage.post, "/group_snapshots", json=body)["group_snapshot"]["id"]
            self._undo.add(lambda: delete_group_snapshot(storage, made))
            wait(_getter(storage), made, "available", MADE_S_MAX, self._check)
            every = storage.snapshots(details=True)
            of = {one.volume_id: one.id for one in every if one.group_snapshot_id == made}
            if any(volume.id not in of for volume in volumes):
                raise SourceError(reason="it does not have all volumes.")
        if not _is_promised(storage, group_id):
            self.apart = (
                "Each disk is crash-consistent by itself; whether the disks are with each other is not known: they are "
                "in one group, but its type does not promise snapshots of one moment, or the account may not see it."
            )
        return of


def remove_group_leftovers(storage: Any, ref: SourceRef) -> None:
    """Group snapshots of ours that a dead job left: volumes of their snapshots are gone before. Raises SourceError."""
    with errors("what an earlier backup left"):
        for found in _ask(storage.get, "/group_snapshots/detail")["group_snapshots"]:
            if found.get("name") == found.get("description") == name_of(ref):
                delete_group_snapshot(storage, found["id"])


def delete_group_snapshot(storage: Any, id_: str) -> None:
    """With its snapshots; gone on return. Raises SourceError."""
    delete(_getter(storage), lambda known: _ask(storage.delete, f"/group_snapshots/{known}"), id_)


def _is_promised(storage: Any, group_id: str) -> bool:
    """Whether the type of the group says that its snapshots are of one moment. Cinder tells it to administrators, and
    to whom its policy `group:access_group_types_specs` names."""
    try:
        with errors(f"the type of group {group_id}"):
            kind = _ask(storage.get, f"/groups/{group_id}")["group"]["group_type"]
            specs = _ask(storage.get, f"/group_types/{kind}")["group_type"].get("group_specs") or {}
    except SourceError:
        return False
    return str(specs.get(CONSISTENT)) == "<is> True"


class _Found:
    def __init__(self, values: Mapping[str, Any]) -> None:
        self.status = str(values["status"])


def _getter(storage: Any) -> Any:
    return lambda id_: _Found(_ask(storage.get, f"/group_snapshots/{id_}")["group_snapshot"])


def _ask(send: Any, path: str, **words: Any) -> dict[str, Any]:
    return checked(send(path, microversion=GROUPS_MICROVERSION, **words))
