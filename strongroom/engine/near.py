"""Metadata of a domain that lies in two stores: what has arrived here is not fetched from afar again."""

from contextlib import suppress

from strongroom.base.errors import Corrupt, ObjectMissing
from strongroom.engine.chunker import KEY_BYTES
from strongroom.engine.index import Index
from strongroom.engine.repository import Session


class NearReader:
    """Implements mark.Reader: the index is that of the far session, its metadata are read here where they can be."""

    def __init__(self, far: Session, near: Session) -> None:
        self._far, self._near = far, near

    @property
    def index(self) -> Index:
        return self._far.index

    def metadata(self, chunk_id: bytes) -> bytes:
        """A metadata chunk, checked against its whole id. Raises Corrupt classes."""
        if self._near.index.place(chunk_id[:KEY_BYTES]) is not None:
            with suppress(Corrupt, ObjectMissing):  # damage here: the far one will do, and mends it
                return self._near.metadata(chunk_id)
        return self._far.metadata(chunk_id)
