"""What this installation can do beyond the common, in the published keys: read by clients before they ask for it."""

from typing import Any

import msgspec

from strongroom.api.operation import Call, Operation
from strongroom.base.errors import InvalidRequest

PAGE_MAX = 1000  # contract


class FeaturesQuery(msgspec.Struct):
    limit: int | None = None
    offset: int | None = None


def features(call: Call) -> dict[str, Any]:
    """All of them, by key: what holds for the caller's project. A store has no zones."""
    regions = call.services.regions
    names = [name for name, _ in regions.destinations(call.project_id)] if regions is not None else []
    return {
        "features.backup_double_az": False,
        "replication.destination_dgw_regions": [],
        "replication.destination_regions": names,
        "replication.enable": bool(names),
        "replication.source_region": call.services.region,
    }


async def list_features(call: Call) -> dict[str, Any]:
    """A page of the map, in the order of its keys."""
    start, end = _range(call.query)
    found = features(call)
    return {key: found[key] for key in sorted(found)[start:end]}


async def show_feature(call: Call) -> dict[str, Any]:
    """A map with the one entry. Raises InvalidRequest for a key that is none."""
    _range(call.query)
    key = call.path["feature_key"]
    found = features(call)
    if key not in found:
        raise InvalidRequest(reason=f"Invalid feature_key: use one of {', '.join(sorted(found))}.")
    return {key: found[key]}


def _range(query: FeaturesQuery) -> tuple[int, int]:
    limit = PAGE_MAX if query.limit is None else query.limit
    offset = query.offset or 0
    if not 1 <= limit <= PAGE_MAX:
        raise InvalidRequest(reason=f"Invalid limit: give 1 to {PAGE_MAX}.")
    if offset < 0:
        raise InvalidRequest(reason="Invalid offset: give 0 or more.")
    return offset, offset + limit


OPERATIONS: tuple[Operation, ...] = (
    Operation(
        name="list_features",
        method="GET",
        path="/v3/{project_id}/cbr-features",
        action="cbr:features:list",
        handler=list_features,
        query=FeaturesQuery,
    ),
    Operation(
        name="show_feature",
        method="GET",
        path="/v3/{project_id}/cbr-features/{feature_key}",
        action="cbr:features:get",
        handler=show_feature,
        query=FeaturesQuery,
    ),
)
