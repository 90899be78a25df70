"""/metrics: what this process counted, and what the catalogue says, in Prometheus' text format.

    of the process    HTTP, tasks that ended here, bytes: every process has its own; they are added up by who reads them
    of the catalogue  queue, ages, vaults, damage: the same from every process; at most one look in KEEP_S

Labels that name a tenant's things are given with `metrics_detail = "vaults"` only, which needs a token, and for so many
vaults and resources at most: those that are fullest, and those whose last success is oldest.
"""

import hmac
from collections.abc import Iterable, Iterator

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.responses import Response

from strongroom.api.catalogue_figures import MetricsAccess
from strongroom.api.operation import PUBLIC, Call, Operation
from strongroom.base.errors import Unauthenticated
from strongroom.control.figures import Figures, Protected, VaultRoom

_RESOURCE = ("project", "vault", "resource", "type")
_VAULT = ("project", "vault")


async def metrics(call: Call) -> Response:
    """Prometheus text format. Raises Unauthenticated without the token, where one is set."""
    services = call.services
    access = services.metrics
    if access.token is not None:
        given = call.request.headers.get("authorization", "")
        if not hmac.compare_digest(given.encode(), f"Bearer {access.token}".encode()):
            raise Unauthenticated(reason="The metrics of this server need its metrics token.")
    figures = await services.catalogue_metrics.read(services.database, services.clock)
    own = CollectorRegistry(auto_describe=False)
    own.register(_Catalogue(figures, access))
    return Response(generate_latest() + generate_latest(own), media_type=CONTENT_TYPE_LATEST)


class _Catalogue(Collector):
    """One look as Prometheus has it. Without an answer of the database there is `cbr_catalogue_up 0` alone."""

    def __init__(self, figures: Figures | None, access: MetricsAccess) -> None:
        self._figures = figures
        self._access = access

    def collect(self) -> Iterator[Metric]:
        found = self._figures
        yield GaugeMetricFamily("cbr_catalogue_up", "Whether the database answered.", value=int(found is not None))
        if found is None:
            return
        yield from _totals(found)
        if self._access.detail:
            yield from _of_vaults(found.vaults[: self._access.series_max])
            yield from _of_resources(found.resources[: self._access.series_max])


def _totals(found: Figures) -> Iterator[Metric]:
    yield _by_task("cbr_task_queue_length", "Open tasks.", [(b.operation, b.status, b.count) for b in found.backlog])
    ages = [(b.operation, b.status, max(0.0, b.oldest_s)) for b in found.backlog]
    yield _by_task("cbr_task_queue_oldest_seconds", "How long the oldest open task has been open.", ages)
    yield _gauge("cbr_task_leases_lapsed", "Running tasks whose worker is gone.", sum(b.lapsed for b in found.backlog))
    yield _gauge("cbr_vaults", "Vaults.", len(found.vaults))
    yield _gauge("cbr_vaults_nearly_full", "Vaults that are filled to 90 % or more.", sum(map(_nearly, found.vaults)))
    used = sum(vault.used_bytes for vault in found.vaults)
    yield _gauge("cbr_vaults_used_bytes", "Live sealed bytes of all vaults.", used)
    yield _gauge("cbr_resources", "Resources in vaults.", len(found.resources))
    scheduled = [each for each in found.resources if each.interval is not None]
    yield _gauge("cbr_resources_scheduled", "Resources that a policy backs up.", len(scheduled))
    overdue = sum(each.overdue(found.at) for each in scheduled)
    yield _gauge("cbr_resources_overdue", "Of these, those without a success for two intervals.", overdue)
    yield _gauge("cbr_backups_damaged", "Backups in which a check has found damage.", found.damaged)
    copied = found.copied_at.timestamp() if found.copied_at is not None else 0
    text = "When the database was copied into the store last; 0: never."
    yield _gauge("cbr_self_backup_last_success_timestamp_seconds", text, copied)


def _nearly(vault: VaultRoom) -> bool:
    return vault.size_bytes > 0 and vault.used_bytes * 10 >= vault.size_bytes * 9


def _of_vaults(vaults: Iterable[VaultRoom]) -> Iterator[Metric]:
    size = GaugeMetricFamily("cbr_vault_size_bytes", "Capacity; 0: without a limit.", labels=_VAULT)
    used = GaugeMetricFamily("cbr_vault_used_bytes", "Live sealed bytes.", labels=_VAULT)
    ratio = GaugeMetricFamily("cbr_vault_util_ratio", "Used part of the capacity.", labels=_VAULT)
    text = "When a check of the vault found nothing last."
    verified = GaugeMetricFamily("cbr_verify_last_success_timestamp_seconds", text, labels=_VAULT)
    for vault in vaults:
        labels = (vault.project_id, vault.vault_id)
        size.add_metric(labels, vault.size_bytes)
        used.add_metric(labels, vault.used_bytes)
        if vault.size_bytes:
            ratio.add_metric(labels, vault.used_bytes / vault.size_bytes)
        if vault.verified_at is not None:
            verified.add_metric(labels, vault.verified_at.timestamp())
    yield from (size, used, ratio, verified)


def _of_resources(resources: Iterable[Protected]) -> Iterator[Metric]:
    text = "When the newest restore point was made; 0: there is none."
    success = GaugeMetricFamily("cbr_backup_last_success_timestamp_seconds", text, labels=_RESOURCE)
    text = "The longest time between two runs of the schedule."
    interval = GaugeMetricFamily("cbr_backup_expected_interval_seconds", text, labels=_RESOURCE)
    for each in resources:
        labels = (each.project_id, each.vault_id, each.resource_id, each.type)
        success.add_metric(labels, each.succeeded_at.timestamp() if each.succeeded_at is not None else 0)
        if each.interval is not None:
            interval.add_metric(labels, each.interval.total_seconds())
    yield from (success, interval)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


def _by_task(name: str, text: str, values: Iterable[tuple[str, str, float]]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=("operation", "status"))
    for operation, status, value in values:
        family.add_metric((operation, status), value)
    return family


OPERATIONS = (
    Operation(name="metrics", method="GET", path="/metrics", action=PUBLIC, handler=metrics, answer="text/plain"),
)
