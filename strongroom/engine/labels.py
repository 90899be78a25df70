"""What is said of a restore point after its commit: `labels/<backup id>.<n>`, put if absent; the highest n stands.

A root never changes, so labels that are put later take the place of those in it, as a whole (RULINGS 12).
"""

import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

from strongroom.base.errors import Corrupt, ObjectExists, ObjectMissing, Unavailable
from strongroom.engine.digests import digest_of, put_checked_digest
from strongroom.engine.keys import Domain
from strongroom.engine.model import LABELS_BYTES_MAX, Labels, Root
from strongroom.engine.roots import pack_labels, parse_labels
from strongroom.engine.seal import LABELS, open_object, seal_object
from strongroom.engine.small import read_small
from strongroom.engine.store.base import Store

CHANGE_ATTEMPTS_MAX = 8  # races with another writer of the same labels; there are two kinds of them
_NAME = re.compile(r"([A-Za-z0-9-]{1,64})\.([0-9]{6})")


@dataclass(frozen=True, kw_only=True)
class LabelsOf:
    """The labels of one domain. prefix: of the domain, with a slash at the end."""

    store: Store
    prefix: str
    domain: Domain

    def numbers(self) -> dict[str, int]:
        """The highest number of labels put later, by backup id; one LIST."""
        numbers: dict[str, int] = {}
        for backup_id, number in self._names():
            numbers[backup_id] = max(numbers.get(backup_id, 0), number)
        return numbers

    def put(self, backup_id: str, labels: Labels, number: int | None) -> None:
        """As `number`, or the next one. Durable on return. Raises ObjectExists when another does so right now."""
        if number is None:
            number = self.numbers().get(backup_id, 0) + 1
        name = f"{backup_id}.{number:06d}"
        data = seal_object(self.domain.data_key, self.domain.id, LABELS, pack_labels(labels), name.encode())
        self.store.put(f"{self.prefix}labels/{name}", [data])
        put_checked_digest(self.store, self.prefix, digest_of(f"labels/{name}", data))

    def load(self, root: Root, number: int | None) -> Labels:
        """Those that stand. number: the highest one, 0 for none, where the caller has listed them. Raises Corrupt
        classes, ObjectMissing."""
        if number is None:
            number = self.numbers().get(root.backup_id, 0)
        if number == 0:
            return root.labels
        name = f"{root.backup_id}.{number:06d}"
        data = read_small(self.store, self.prefix, f"labels/{name}", LABELS_BYTES_MAX)
        return parse_labels(open_object(self.domain.data_key, self.domain.id, LABELS, data, name.encode()))

    def change(self, root: Root, members: Labels, number: int | None) -> bool:
        """Put the labels that stand again with these members in place of theirs. False: they said so already.

        Two that change the same labels at once: who comes second reads what the first one put. number as of `load`.
        """
        for _ in range(CHANGE_ATTEMPTS_MAX):
            if number is None:
                number = self.numbers().get(root.backup_id, 0)
            damaged = False
            try:
                labels = self.load(root, number)
            except (Corrupt, ObjectMissing):
                labels, damaged = root.labels, True  # those of the first hour, instead of what does not read
            wanted = {**labels, **members}
            if wanted == labels and not damaged:
                return False
            with suppress(ObjectExists):
                self.put(root.backup_id, wanted, number + 1)
                return True
            number = None
        raise Unavailable(reason="The labels of a restore point keep changing. Try again later.")

    def load_readable(self, root: Root, number: int | None) -> Labels:
        """As `load`; of damaged ones those of the root, from its first hour."""
        try:
            return self.load(root, number)
        except (Corrupt, ObjectMissing):
            return root.labels

    def _names(self) -> Iterator[tuple[str, int]]:
        start = len(self.prefix) + len("labels/")
        for info in self.store.list(f"{self.prefix}labels/"):
            match = _NAME.fullmatch(info.name[start:])
            if match:
                yield match[1], int(match[2])
