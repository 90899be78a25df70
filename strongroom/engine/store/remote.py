"""What is gained where a request takes long: fewer of them, and many at once.

Every store does what these functions ask; one that says how many requests it takes at once (`RemoteStore`) does it in
one round. On others nothing is started in another thread and the order is that of the calls.
"""

from collections.abc import Callable
from typing import Protocol, TypeVar, cast, runtime_checkable

from strongroom.engine.store.base import Store

T = TypeVar("T")


@runtime_checkable
class RemoteStore(Protocol):
    """A store behind a network. at_once: requests that may be on their way together, 1 when there is no network."""

    at_once: int

    def read_whole(self, name: str, bytes_max: int) -> tuple[int, bytes]:
        """(size, bytes) of an object; no bytes when it has more than `bytes_max`. Raises ObjectMissing."""
        ...


def at_once(store: Store) -> int:
    return store.at_once if isinstance(store, RemoteStore) else 1


def read_whole(store: Store, name: str, bytes_max: int) -> tuple[int, bytes]:
    """(size, bytes) of an object; no bytes when it has more than `bytes_max`. Raises ObjectMissing."""
    if isinstance(store, RemoteStore):
        return cast(RemoteStore, store).read_whole(name, bytes_max)
    size = store.size(name)
    return size, store.read(name, 0, size) if size <= bytes_max else b""


def together(store: Store, *calls: Callable[[], T]) -> list[T]:
    """The results of all calls, made at once where that helps. Raises the error of the first that has one."""
    if at_once(store) == 1 or len(calls) == 1:
        return [call() for call in calls]
    from concurrent.futures import ThreadPoolExecutor  # 10 ms of a start, which a folder does not need

    with ThreadPoolExecutor(min(len(calls), at_once(store)), thread_name_prefix="store-request") as threads:
        return [done.result() for done in [threads.submit(call) for call in calls]]
