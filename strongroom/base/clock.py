"""The only place that asks what time it is. Everything else is handed a Clock, so that tests own the time."""

import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """Wall time and a monotone counter. Implementations MUST return aware UTC datetimes."""

    def now(self) -> datetime:
        """Current time, aware, in UTC."""
        ...

    def monotonic_s(self) -> float:
        """Seconds on a counter that never goes back; only differences mean anything."""
        ...


class SystemClock:
    """The clock of this machine."""

    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic_s(self) -> float:
        return time.monotonic()


def api_timestamp(at: datetime) -> str:
    """`2020-02-05T10:38:34.209782`: UTC, microseconds, no offset (contract/behaviour section 0; the SDK adds the Z)."""
    return at.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="microseconds")
