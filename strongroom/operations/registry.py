"""Kinds of tasks and what runs them. A kind is one row here and one module beside it."""

from collections.abc import Callable
from typing import NamedTuple

from strongroom.base.errors import StrongroomError
from strongroom.operations import (
    backup,
    deletion,
    expiration,
    importing,
    move,
    prune,
    receive,
    replicate,
    restore,
    verify,
)
from strongroom.operations.job import Job


class Work(NamedTuple):
    """run one attempt; fail: end the task with the reason, its rows consistent. Both may run twice."""

    run: Callable[[Job], None]
    fail: Callable[[Job, StrongroomError], None]


WORK: dict[str, Work] = {
    "backup": Work(backup.run, backup.fail),
    "restore": Work(restore.run, restore.fail),
    "delete": Work(deletion.run, deletion.fail),
    "remove_resource": Work(deletion.run, deletion.fail),
    "vault_delete": Work(deletion.run, deletion.fail),
    "prune": Work(prune.run, prune.fail),
    "verify": Work(verify.run, verify.fail),
    "replication": Work(replicate.run, replicate.fail),
    "copy": Work(receive.run, receive.fail),
    "expiration": Work(expiration.run, expiration.fail),
    "migrate": Work(move.run, move.fail),
    "sync": Work(importing.run, importing.fail),
}
