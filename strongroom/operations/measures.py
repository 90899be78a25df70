"""What a worker counts: tasks that ended here, how long they took, what they read and wrote (docs/OPERATIONS.md).

Counted after the rows were written, in memory: a process that dies takes its numbers along, and Prometheus knows that.
No label names a tenant.
"""

from prometheus_client import Counter, Histogram

_SECONDS = (1, 5, 15, 60, 300, 900, 3600, 4 * 3600, 12 * 3600, 48 * 3600)
_RESULTS = ("success", "failed", "canceled")

TASKS = Counter("cbr_task_total", "Tasks that ended here.", ["operation", "result"])
BACKUPS = Counter("cbr_backup_total", "Backups of one resource that ended here.", ["result"])
BACKUP_S = Histogram("cbr_backup_duration_seconds", "Of a backup that was made.", buckets=_SECONDS)
BACKUP_BYTES = Counter("cbr_backup_bytes_total", "Of backups that were made, by kind.", ["kind"])
RESTORES = Counter("cbr_restore_total", "Restores that ended here.", ["result"])
RESTORE_S = Histogram("cbr_restore_duration_seconds", "Of a restore that was done.", buckets=_SECONDS)
VERIFIES = Counter("cbr_verify_total", "Checks of a vault that ended here.", ["result"])
VERIFY_ERRORS = Counter("cbr_verify_errors_total", "Findings of these checks.")
GC_RUNS = Counter("cbr_gc_total", "Prunes of a vault that ended here.", ["result"])
GC_FREED = Counter("cbr_gc_freed_bytes_total", "Bytes that prunes gave back to the store.")
SELF_BACKUPS = Counter("cbr_self_backup_total", "Copies of the database into the store that ended here.", ["result"])

_OF_RESULT = {"backup": BACKUPS, "restore": RESTORES, "verify": VERIFIES, "prune": GC_RUNS}
_OF_SECONDS = {"backup": BACKUP_S, "restore": RESTORE_S}

for _counter in (*_OF_RESULT.values(), SELF_BACKUPS):
    for _result in _RESULTS[: 2 if _counter is SELF_BACKUPS else 3]:
        _counter.labels(_result)  # there from the start, at 0: a rate needs the first one too
for _kind in ("read", "new", "stored"):
    BACKUP_BYTES.labels(_kind)


def task_ended(operation: str, result: str, seconds: float) -> None:
    """A task came to its end here. result: success, failed or canceled."""
    TASKS.labels(operation, result).inc()
    if operation in _OF_RESULT:
        _OF_RESULT[operation].labels(result).inc()
    if operation in _OF_SECONDS and result == "success":
        _OF_SECONDS[operation].observe(seconds)


def backup_made(read: int, new: int, stored: int) -> None:
    """Bytes of one backup: read from the source, not known before, sealed into the store."""
    for kind, count in (("read", read), ("new", new), ("stored", stored)):
        BACKUP_BYTES.labels(kind).inc(count)
