"""Stores that can keep an object against everybody, their own keys included, until a time: object lock of S3.

Not every store can: one in a folder keeps what our own programs leave alone, and `retains` says False.
"""

from typing import Protocol, cast, runtime_checkable

from strongroom.engine.store.base import Store


@runtime_checkable
class RetainingStore(Protocol):
    """What such a store has beside `Store`."""

    def retains(self) -> bool:
        """Whether objects can be kept here. May ask the server, once. Raises StoreError."""
        ...

    def retain(self, name: str, seconds: float) -> None:
        """Keep an object for so long, by the store's own clock; never shorter than before. Idempotent.

        Durable on return. Raises ObjectMissing, and StoreError for a store that does not retain.
        """
        ...


def retains(store: Store) -> bool:
    return isinstance(store, RetainingStore) and cast(RetainingStore, store).retains()


def retain(store: Store, name: str, seconds: float) -> None:
    """As RetainingStore.retain; the store MUST be one that retains."""
    cast(RetainingStore, store).retain(name, seconds)
