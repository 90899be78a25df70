"""Stores that can keep an object against everybody, their own keys included, until a time: object lock of S3.

Not every store can: one in a folder keeps what our own programs leave alone, and `retains` says False.
"""

from typing import NamedTuple, Protocol, cast, runtime_checkable

from strongroom.engine.store.base import Store


class Kept(NamedTuple):
    """Seconds since 1970 by the store's clock: when it was asked, and until when it keeps the object."""

    now: int
    until: int


@runtime_checkable
class RetainingStore(Protocol):
    """What such a store has beside `Store`."""

    def retains(self) -> bool:
        """Whether objects can be kept here. May ask the server, once. Raises StoreError."""
        ...

    def retain(self, name: str, seconds: float) -> Kept:
        """Keep an object for so long, by the store's own clock; never shorter than before. Idempotent.

        Durable on return. Raises ObjectMissing, and StoreError for a store that does not retain.
        """
        ...

    def keeps_deleted(self) -> bool:
        """Whether what is deleted here takes room for ever: the store keeps every version and no rule removes them.
        False where the server does not tell. Asks the server. Raises StoreError."""
        ...


def retains(store: Store) -> bool:
    return isinstance(store, RetainingStore) and cast(RetainingStore, store).retains()


def keeps_deleted(store: Store) -> bool:
    return isinstance(store, RetainingStore) and cast(RetainingStore, store).keeps_deleted()


def retain(store: Store, name: str, seconds: float) -> Kept:
    """As RetainingStore.retain; the store MUST be one that retains."""
    return cast(RetainingStore, store).retain(name, seconds)
