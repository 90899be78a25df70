"""Small sealed objects, read whole: a size beyond what their kind can have is damage, and is not read into memory."""

from strongroom.base.errors import Corrupt
from strongroom.base.units import KIB
from strongroom.engine.store.base import Store
from strongroom.engine.store.remote import read_whole

SEALED_EXTRA_BYTES = 4 * KIB  # what sealing and a frame may add to a small object


def read_small(store: Store, prefix: str, name: str, plain_max: int) -> bytes:
    """The object of which the plain form has at most so many bytes. Raises Corrupt for a larger one, StoreError."""
    size, data = read_whole(store, prefix + name, plain_max + SEALED_EXTRA_BYTES)
    if size > plain_max + SEALED_EXTRA_BYTES:
        raise Corrupt(reason=f"{name} is larger than any object of its kind", detail=f"{size} bytes")
    return data
