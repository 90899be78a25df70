"""What a restore point says about itself, in its root and in its row, whatever kind of resource it is of."""

from dataclasses import asdict

from strongroom.base.clock import api_timestamp
from strongroom.base.errors import Conflict
from strongroom.base.streams import Path, Skipped
from strongroom.control.backups import BackupJob
from strongroom.engine import BackupReport, Root

REPORT_NAMES_MAX = 100  # names of odd entries kept in the row; the counts are exact and the root has more


def backup_labels(plan: BackupJob, token: bytes, consistency: str) -> dict[str, object]:
    """What a restore point says about itself when the database is lost (RULINGS 12)."""
    return {
        "project": plan.vault.project_id,
        "vault": plan.vault.id,
        "vault_name": plan.vault.name,
        "resource": plan.resource.id,
        "resource_type": plan.resource.type,
        "resource_name": plan.resource.name,
        "path": plan.resource.path,
        "options": plan.resource.options,
        "checkpoint": plan.checkpoint_id,
        "name": plan.backup_name,
        "created_at": api_timestamp(plan.created_at),
        "expires_at": api_timestamp(plan.expired_at) if plan.expired_at else None,
        "lock_until": api_timestamp(plan.promised_until) if plan.promised_until else None,
        "trigger": "policy" if plan.auto_trigger else "manual",
        "consistency": consistency,
        "token": token,
    } | ({"paths": [path for path, _ in plan.resource.roots]} if plan.resource.roots else {})


def token_of(root: Root) -> bytes:
    """The source's token in the labels of a root. Raises Conflict 6215."""
    token = root.labels.get("token", b"")
    if not isinstance(token, bytes):
        raise Conflict(conflict_code="6215", reason="The restore point left by an earlier attempt carries no token.")
    return token


def report_row(report: BackupReport) -> dict[str, object]:
    """The report as JSON: names as text, bytes that are not UTF-8 as `\\xe9`."""
    row = asdict(report)
    row.pop("root")
    row["changed_while_read"] = [_text(path) for path in report.changed_while_read[:REPORT_NAMES_MAX]]
    row["skipped"] = [_skipped(s) for s in report.skipped[:REPORT_NAMES_MAX]]
    return row


def _skipped(skipped: Skipped) -> dict[str, str]:
    return {"path": _text(skipped.path), "reason": skipped.reason}


def _text(path: Path) -> str:
    return b"/".join(path).decode("utf-8", "backslashreplace").replace("\x00", "")
