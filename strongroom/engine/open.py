"""Making and opening a repository: the object that names the own domain, and the wrapped keys of each domain.

<prefix>domain                    id of the own domain in hex: the last object that creation writes
<prefix>domains/<id>/keys/<n>     the domain's keys, wrapped by a master key; any wrap that it opens will do
"""

import contextlib
import re

from strongroom.base.clock import Clock, SystemClock
from strongroom.base.errors import Corrupt, FormatUnknown, KeyWrong, ObjectMissing
from strongroom.engine.digests import digest_of, put_digest
from strongroom.engine.index import IndexList
from strongroom.engine.keys import Domain, MasterKey
from strongroom.engine.model import DomainSettings, Sessions
from strongroom.engine.pool import Pool
from strongroom.engine.repository import Repository
from strongroom.engine.store.base import Store
from strongroom.engine.store.remote import at_once, together

_WRAP_NAME = re.compile(r"0|[1-9][0-9]{0,8}")
_DOMAIN_TEXT = re.compile(rb"[0-9a-f]{32}")


def create_repository(
    store: Store,
    prefix: str,
    master: MasterKey,
    settings: DomainSettings,
    *,
    pool: Pool | None = None,
    sessions: Sessions | None = None,
    clock: Clock | None = None,
) -> Repository:
    """A new domain under `prefix` (empty, or with a slash at the end). Raises ObjectExists when there is one already.

    Order: keys/0, index list 0, then the object that names the domain: nothing refers to what a crash leaves before.
    """
    prefix = _with_slash(prefix)
    domain = Domain.create(settings.level)
    below = f"{prefix}domains/{domain.id.hex()}/"
    repository = Repository(store, below, domain, pool=pool, sessions=sessions, clock=clock or SystemClock())
    put_wrap(store, below, 0, master.wrap(domain))
    repository.put_index_list(IndexList(number=0))
    store.put(f"{prefix}domain", [domain.id.hex().encode()])
    return repository


def open_repository(
    store: Store,
    prefix: str,
    master: MasterKey,
    *,
    domain_id: bytes | None = None,
    pool: Pool | None = None,
    sessions: Sessions | None = None,
    clock: Clock | None = None,
    cache: str | None = None,
) -> Repository:
    """The own domain under `prefix`, or the one asked for. Raises ObjectMissing, KeyWrong, FormatUnknown or Corrupt."""
    prefix = _with_slash(prefix)
    if domain_id is None:
        text = store.read(f"{prefix}domain")
        if _DOMAIN_TEXT.fullmatch(text) is None:
            raise FormatUnknown(reason="the object that names its domain is malformed")
        domain_id = bytes.fromhex(text.decode())
    below = f"{prefix}domains/{domain_id.hex()}/"
    domain, wrap = _load_domain(store, below, master)
    if domain.id != domain_id:
        raise Corrupt(reason="its keys are those of another domain", detail=below)
    clock = clock or SystemClock()
    repository = Repository(store, below, domain, pool=pool, sessions=sessions, clock=clock, cache=cache)
    repository.wraps = (wrap,)
    return repository


def put_wrap(store: Store, below: str, number: int, data: bytes) -> None:
    """The object keys/<n> of the domain at `below`; durable on return. Raises ObjectExists."""
    store.put(f"{below}keys/{number}", [data])
    put_digest(store, below, digest_of(f"keys/{number}", data))


def load_wraps(store: Store, below: str) -> list[tuple[int, bytes]]:
    """(n, object keys/<n>) of the domain at `below`, the newest first. Raises ObjectMissing when there is none."""
    names: list[str] = []
    early: list[bytes] = []

    def list_names() -> None:
        names.extend(info.name.rpartition("/")[2] for info in store.list(f"{below}keys/"))

    def read_first() -> None:  # nearly always it is the only one
        with contextlib.suppress(ObjectMissing):
            early.append(store.read(f"{below}keys/0"))

    together(store, list_names, *([read_first] if at_once(store) > 1 else []))
    numbers = sorted((int(name) for name in names if _WRAP_NAME.fullmatch(name)), reverse=True)
    if not numbers:
        raise ObjectMissing(name=f"{below}keys/0")
    if numbers == [0] and early:
        return [(0, early[0])]
    return [(number, store.read(f"{below}keys/{number}")) for number in numbers]


def _load_domain(store: Store, below: str, master: MasterKey) -> tuple[Domain, tuple[int, bytes]]:
    """Any wrap this master key opens will do, the newest first; else the error of the newest."""
    failure: Exception | None = None
    for number, wrapped in load_wraps(store, below):
        try:
            return master.unwrap(wrapped), (number, wrapped)
        except (Corrupt, FormatUnknown, KeyWrong) as err:
            failure = failure or err
    assert failure is not None
    raise failure


def _with_slash(prefix: str) -> str:
    return prefix if not prefix or prefix.endswith("/") else prefix + "/"
