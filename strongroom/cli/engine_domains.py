"""`strongroom engine copy` and `shred`: a repository in a folder and what it holds of others.

    engine copy REPO DEST [--label LABEL]... [--dest-key FILE]
    engine shred REPO --yes

A copied backup stays in the domain it came from, under the receiver's master key; every command looks at all domains of
its repository. Options and exit codes as in docs/CLI.md; parsed by engine.py.
"""

import argparse
import os
import re
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from operator import add
from typing import TYPE_CHECKING, Any

from strongroom.base.errors import ConfigError, InvalidRequest, KeyWrong, ObjectExists, ObjectMissing
from strongroom.base.streams import Monitor
from strongroom.base.units import human_bytes
from strongroom.cli.errors import EXIT_OK

if TYPE_CHECKING:
    from strongroom.engine import MasterKey, Repository, Root
    from strongroom.engine.sessions import FlockSessions
    from strongroom.engine.store.base import Store

KEY_FILE, SESSIONS_FOLDER = ".master.key", ".sessions"  # dot names are none of the store's

_DOMAIN = re.compile(r"[0-9a-f]{32}")
_URL = re.compile(r"[a-z0-9]+://")

Summary = Mapping[str, object]


def add_commands(parser: Callable[..., argparse.ArgumentParser], copy: object, shred: object) -> None:
    """Those of the two commands; `parser` makes one, as engine.py has it."""
    found = parser("copy", copy, "Copy backups to another repository; only what is missing there moves.")
    found.add_argument("dest", metavar="DEST", help="folder or store URL; made when there is no repository")
    found.add_argument("--label", metavar="LABEL", action="append", help="only this backup; repeatable")
    found.add_argument("--dest-key", metavar="FILE", help=f"master key file of DEST (default: DEST/{KEY_FILE})")
    found = parser("shred", shred, "Drop the keys of everything in REPO: nothing of it can be read any more.")
    found.add_argument("--yes", action="store_true", required=True, help="really: there is no way back")


def foreign_repositories(own: "Repository", repo: str, master: "MasterKey") -> list["Repository"]:
    """What came to the repository in this folder from others. Domains that its key does not open are left out."""
    from strongroom.engine import open_repository

    found = []
    for name in sorted(os.listdir(os.path.join(repo, "domains"))):
        domain = bytes.fromhex(name) if _DOMAIN.fullmatch(name) else own.domain.id
        if domain == own.domain.id:
            continue
        try:
            found.append(
                open_repository(
                    own.store, "", master, domain_id=domain, pool=own.pool, sessions=folder_sessions(repo, domain)
                )
            )
        except (ObjectMissing, KeyWrong):
            continue  # shredded, or of a copy that was cut short before its keys
    return found


def folder_sessions(repo: str, domain: bytes | None) -> "FlockSessions":
    """Sessions of all processes of this host. None: of the repository's own domain."""
    from strongroom.engine.sessions import FlockSessions

    of = "" if domain is None else f"-{domain.hex()}"
    return FlockSessions(os.path.join(os.path.abspath(repo), SESSIONS_FOLDER + of))


def run_copy(
    options: argparse.Namespace, sources: Sequence["Repository"], label: str, monitor: Monitor
) -> tuple[int, Summary, str]:
    """(exit code, summary, a sentence). label: key of the label by which backups are called."""
    from strongroom.engine.copy import copy

    wanted = _wanted(sources, options.label, label)
    store, master, own_domain = _destination(options)
    copied: list[str] = []
    present: list[str] = []
    moved = 0
    for source, names in wanted:
        sessions = None
        if not _URL.match(options.dest):
            domain = source.domain.id
            sessions = folder_sessions(options.dest, None if domain == own_domain else domain)
        report = copy(source, store, "", master, names, monitor, lambda: None, sessions=sessions)
        copied += report.roots_copied
        present += report.roots_present
        moved += report.bytes_copied
    text = f"Copied {len(copied)} backups, {human_bytes(moved)}; {len(present)} were there."
    return EXIT_OK, {"roots_copied": copied, "roots_present": present, "bytes_copied": moved}, text


def summed(summaries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One summary of all domains: numbers add up, lists follow each other."""
    return {name: reduce(add, [summary[name] for summary in summaries]) for name in summaries[0]}


def run_shred(options: argparse.Namespace, url: str, monitor: Monitor) -> tuple[int, Summary, str]:
    """(exit code, summary, a sentence)."""
    from strongroom.engine.shred import shred
    from strongroom.engine.store.open import open_store

    if not os.path.isdir(options.repo):
        raise ConfigError(reason=f"There is no repository in {options.repo}.")
    dropped = shred(open_store(url), "", monitor)
    text = f"Dropped {dropped} wrapped keys: nothing in {options.repo} opens any more. Delete the folder when you like."
    return EXIT_OK, {"keys_dropped": dropped}, text


def _wanted(
    sources: Sequence["Repository"], labels: Sequence[str] | None, key: str
) -> list[tuple["Repository", list[str] | None]]:
    """What to copy of each domain: names of roots, None for all."""
    if labels is None:
        return [(source, None) for source in sources]
    roots: list[tuple[Repository, Root]] = [
        (source, source.load_root(name)) for source in sources for name in source.root_names()
    ]
    for label in labels:
        if not any(label in (root.labels.get(key), root.name) for _, root in roots):
            raise InvalidRequest(reason=f"There is no backup with the label {label}.")
    found: dict[int, list[str]] = {}
    for source, root in roots:
        if root.name in labels or root.labels.get(key) in labels:
            found.setdefault(id(source), []).append(root.name)
    return [(source, found[id(source)]) for source in sources if id(source) in found]


def _destination(options: argparse.Namespace) -> tuple["Store", "MasterKey", bytes]:
    """(store, master key, own domain) of the receiver, made when there is none."""
    from strongroom.engine import DomainSettings, MasterKey, create_repository, open_repository
    from strongroom.engine.store.open import open_store

    dest, key_file = options.dest, options.dest_key
    if _URL.match(dest):
        from strongroom.config import load_settings

        if key_file is None:
            raise ConfigError(reason="Name the master key file of a store that is no folder: --dest-key FILE.")
        url, access = dest, load_settings({}, os.environ).s3 if dest.startswith("s3://") else None
    else:
        from urllib.parse import quote

        url, access = "file://" + quote(os.path.abspath(dest)), None
        key_file = key_file or os.path.join(os.path.abspath(dest), KEY_FILE)
    store = open_store(url, access)
    master = MasterKey.load(key_file) if os.path.exists(key_file) else MasterKey.create(key_file)
    try:
        own = open_repository(store, "", master)
    except ObjectMissing as err:
        if err.name != "domain":
            raise
        try:
            own = create_repository(store, "", master, DomainSettings())
        except ObjectExists:  # another first copy was faster
            own = open_repository(store, "", master)
    return store, master, own.domain.id
