"""Who reads /metrics, and the catalogue's figures, kept for a while so that scrapes cost one look."""

import asyncio
from dataclasses import dataclass, field

from strongroom.base.clock import Clock
from strongroom.base.errors import StrongroomError
from strongroom.control.db import Database
from strongroom.control.figures import Figures, read_figures

KEEP_S = 15.0  # scrapes of several collectors, and of whoever finds the path, cost one look
_BUSY_FACTOR = 20  # a look that takes long is kept that much longer: never more than a twentieth of the time


@dataclass(frozen=True, kw_only=True)
class MetricsAccess:
    """Who reads /metrics, and how much of it. token None: everybody; series_max: vaults, and resources, with labels."""

    token: str | None = field(default=None, repr=False)
    detail: bool = False
    series_max: int = 1000


class CatalogueMetrics:
    """The last look, and at most one under way."""

    def __init__(self) -> None:
        self._figures: Figures | None = None
        self._until_s = 0.0
        self._lock = asyncio.Lock()

    async def read(self, database: Database, clock: Clock) -> Figures | None:
        """A look that is recent enough; None: the database does not answer."""
        async with self._lock:
            began_s = clock.monotonic_s()
            if began_s < self._until_s:
                return self._figures
            try:
                self._figures = await read_figures(database, clock)
            except StrongroomError:
                self._figures = None
            took_s = clock.monotonic_s() - began_s
            self._until_s = began_s + took_s + max(KEEP_S, took_s * _BUSY_FACTOR)
            return self._figures
