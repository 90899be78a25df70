"""limit, offset and marker of a list call as a Page, with the contract's ranges."""

from strongroom.base.errors import InvalidRequest
from strongroom.base.ids import is_id
from strongroom.control.listing import Page

LIMIT_MAX = 1000  # of every list but protectables, whose pages hold 50


def page_of(limit: int | None, offset: int | None, marker: str | None, limit_max: int = LIMIT_MAX) -> Page:
    """The page asked for; absent members take limit_max and 0. Raises InvalidRequest outside 1..limit_max and 0..."""
    if limit is not None and not 1 <= limit <= limit_max:
        raise InvalidRequest(reason=f"Invalid limit: give 1 to {limit_max}.")
    if offset is not None and offset < 0:
        raise InvalidRequest(reason="Invalid offset: give 0 or more.")
    if marker is not None and not is_id(marker):
        raise InvalidRequest(reason="Invalid marker provided. Give the id of the last item of the page before.")
    return Page(limit=limit if limit is not None else limit_max, offset=offset or 0, marker=marker)
