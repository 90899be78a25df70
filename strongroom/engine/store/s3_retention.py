"""Object lock of S3: whether a bucket has it, and how long an object is kept (mode COMPLIANCE: nobody shortens it).

The time is the server's: it is read from the Date of its answer, so that a wrong clock here shortens nothing. What is
kept a little longer than asked for need not be asked again tomorrow, when the next restore point relies on it.
"""

import base64
import hashlib
import threading
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

from strongroom.base.errors import ObjectMissing, StoreError
from strongroom.engine.store.retention import Kept
from strongroom.engine.store.s3_multipart import MultipartClient

UNTIL_HEADER = "x-amz-object-lock-retain-until-date"
SLACK_SHARE, SLACK_S_MAX = 0.1, 7 * 86400.0  # a tenth longer, a week at most: storage that is paid for in vain
SECONDS_MAX = 100 * 365 * 86400.0  # AWS takes no more
_NO_RULES = "NoSuchLifecycleConfiguration"
_ABSENT = frozenset({"HTTP 404 ObjectLockConfigurationNotFoundError", "HTTP 501 NotImplemented"})


class Retention:
    """Of one bucket. Safe for several threads."""

    def __init__(self, client: MultipartClient) -> None:
        self._client = client
        self._lock = threading.Lock()
        self._enabled: bool | None = None

    def enabled(self) -> bool:
        """Whether the bucket has object lock; asked once. Raises StoreError when the server does not tell."""
        with self._lock:
            if self._enabled is None:
                self._enabled = self._ask()
            return self._enabled

    def _ask(self) -> bool:
        try:
            answer = self._client.request("GET", "object lock", "", {"object-lock": ""})
        except ObjectMissing:
            return False
        except StoreError as err:
            if any(reason in err.detail for reason in _ABSENT):
                return False
            raise
        return b"<ObjectLockEnabled>Enabled</ObjectLockEnabled>" in answer.body

    def keeps_deleted(self) -> bool:
        """Implements RetainingStore."""
        try:
            versions = self._client.request("GET", "versioning", "", {"versioning": ""}).body
            if b"<Status>Enabled</Status>" not in versions:
                return False
            return (
                b"<NoncurrentVersionExpiration>" not in self._client.request("GET", "rules", "", {"lifecycle": ""}).body
            )
        except StoreError as err:
            return _NO_RULES in err.detail  # else a server, or keys, that do not tell

    def keep(self, name: str, key: str, seconds: float) -> Kept:
        """Raises ObjectMissing, StoreError."""
        seconds = min(seconds, SECONDS_MAX)
        headers = self._client.request("HEAD", name, key, {}).headers
        try:
            now = parsedate_to_datetime(headers["date"]).astimezone(UTC)
            kept = headers.get(UNTIL_HEADER)
            until = datetime.fromisoformat(kept) if kept else None
        except (KeyError, ValueError) as err:
            raise StoreError(name=name, detail="the server tells no time, or one that cannot be read") from err
        if until is not None and until >= now + timedelta(seconds=seconds):
            return Kept(int(now.timestamp()), int(until.timestamp()))
        longer = min(SECONDS_MAX, seconds + min(SLACK_SHARE * seconds, SLACK_S_MAX))
        until = now + timedelta(seconds=longer)
        at = until.strftime("%Y-%m-%dT%H:%M:%SZ")
        body = f"<Retention><Mode>COMPLIANCE</Mode><RetainUntilDate>{at}</RetainUntilDate></Retention>".encode()
        digest = base64.b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode()
        self._client.request("PUT", name, key, {"retention": ""}, memoryview(body), {"content-md5": digest})
        return Kept(int(now.timestamp()), int(until.timestamp()))
