"""The root of a backup: the object whose appearance is the commit.

    roots/<backup id>.<generation> = object id | box of msgpack       AAD also binds backup id and generation

So a root cannot be given another name. It carries the labels of the backup (a map the engine does not read), where its
stream lies, what the next run may trust, and the report of the run that made it.
"""

import re
from collections.abc import Mapping
from dataclasses import asdict, fields
from datetime import UTC, datetime

import msgpack

from strongroom.base.errors import Corrupt, InvalidRequest, ManifestCorrupt
from strongroom.base.streams import Skipped
from strongroom.base.units import MIB
from strongroom.engine.keys import Domain
from strongroom.engine.model import LABELS_BYTES_MAX, BackupReport, Labels, Root, RootBody
from strongroom.engine.seal import ROOT, open_object, seal_object

ROOT_BYTES_MAX = 4 * MIB  # 16 KiB of labels, 64 rows with paths, a report with 2000 paths
_NAME = re.compile(r"([A-Za-z0-9-]{1,64})\.(0|[1-9][0-9]{0,17})")
_COUNTED = tuple(field.name for field in fields(BackupReport) if field.type is int)
_NAMED_BYTES_MAX = MIB  # of paths in a report; the counts stay exact


def root_name(backup_id: str, generation: int) -> str:
    """Raises InvalidRequest for what is no legal name."""
    name = f"{backup_id}.{generation}"
    if _NAME.fullmatch(name) is None:
        raise InvalidRequest(
            reason="A backup id has letters, digits and dashes, a generation is a number.", detail=name
        )
    return name


def parse_root_name(name: str) -> tuple[str, int] | None:
    """(backup id, generation), or None for any other text."""
    found = _NAME.fullmatch(name)
    return (found[1], int(found[2])) if found else None


def pack_labels(labels: Labels) -> bytes:
    """Raises InvalidRequest when they are too large or no plain values."""
    try:
        data = bytes(msgpack.packb(dict(labels)))
    except (TypeError, ValueError, OverflowError) as err:
        raise InvalidRequest(reason="The labels of a backup are plain values.", detail=str(err)) from err
    if len(data) > LABELS_BYTES_MAX:
        raise InvalidRequest(reason=f"The labels of a backup are larger than {LABELS_BYTES_MAX} bytes.")
    return data


def parse_labels(data: bytes) -> Labels:
    """Raises ManifestCorrupt."""
    try:
        labels = msgpack.unpackb(data)
    except ValueError as err:
        raise ManifestCorrupt(reason="labels cannot be read", detail=str(err)) from err
    if not isinstance(labels, dict):
        raise ManifestCorrupt(reason="labels are no map")
    return labels


def seal_root(domain: Domain, root: Root) -> bytes:
    """The whole object."""
    body = {
        "kind": root.kind,
        "created_at_us": round(root.created_at.timestamp() * 1_000_000),
        "parent": root.parent,
        "size": root.size,
        "labels": pack_labels(root.labels),
        "report": _short_report(root.report),
        "body": list(root.body),
    }
    payload = bytes(msgpack.packb(body))
    assert len(payload) <= ROOT_BYTES_MAX
    return seal_object(domain.data_key, domain.id, ROOT, payload, root.name.encode())


def open_root(domain: Domain, name: str, data: bytes) -> Root:
    """Raises ManifestCorrupt."""
    if parse_root_name(name) is None:
        raise ManifestCorrupt(reason=f"{name} is no name of a root")
    try:
        payload = open_object(domain.data_key, domain.id, ROOT, data, name.encode())
    except Corrupt as err:
        raise ManifestCorrupt(reason=f"root {name} does not authenticate", detail=err.detail) from err
    return parse_root(name, payload)


def parse_root(name: str, payload: bytes) -> Root:
    """The plain bytes of a root of this legal name. Raises ManifestCorrupt."""
    parsed = parse_root_name(name)
    assert parsed is not None
    try:
        found = msgpack.unpackb(payload, use_list=False)
        if found["kind"] not in ("tree", "block"):
            raise ManifestCorrupt(reason=f"root {name} is of an unknown kind", detail=str(found["kind"]))
        root = Root(
            name=name,
            backup_id=parsed[0],
            generation=parsed[1],
            kind=found["kind"],
            created_at=datetime.fromtimestamp(found["created_at_us"] / 1_000_000, UTC),
            parent=found["parent"],
            size=found["size"],
            labels=parse_labels(found["labels"]),
            report=_parse_report(name, found["report"]),
            body=RootBody._make(found["body"]),
        )
    except (ValueError, TypeError, KeyError, OverflowError, OSError) as err:
        raise ManifestCorrupt(reason=f"root {name} is malformed", detail=str(err)) from err
    body, report = root.body, root.report
    numbers = root.size, body.unchanged_before_ns, body.index_number, *(getattr(report, name) for name in _COUNTED)
    texts = root.parent, report.full_reason
    tuples = body.stream, () if body.folder is None else body.folder, *report.changed_while_read
    if (
        not all(isinstance(number, int) for number in numbers)
        or root.size < 0
        or not all(isinstance(text, str | None) for text in texts)
        or not all(isinstance(value, tuple) for value in tuples)
    ):
        raise ManifestCorrupt(reason=f"root {name} has values of a wrong form")
    return root


def _short_report(report: BackupReport) -> dict[str, object]:
    """The report without its own name, and with no more paths than a root has room for."""
    short = asdict(report)
    del short["root"]
    room = _NAMED_BYTES_MAX
    for key in ("changed_while_read", "skipped"):
        kept = []
        for item in short[key]:
            room -= len(msgpack.packb(item))
            if room < 0:
                break
            kept.append(item)
        short[key] = kept
    return short


def _parse_report(name: str, stored: Mapping[str, object]) -> BackupReport:
    rest = dict(stored)
    changed = rest.pop("changed_while_read")
    skipped = rest.pop("skipped")
    if not isinstance(changed, tuple) or not isinstance(skipped, tuple):
        raise ManifestCorrupt(reason=f"the report in root {name} is malformed")
    named = tuple(Skipped._make(item) for item in skipped)
    return BackupReport(root=name, changed_while_read=changed, skipped=named, **rest)  # type: ignore[arg-type]
