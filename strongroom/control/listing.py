"""Pages of rows: filters first, then a stable order, then limit with offset or marker, and the count of all matches.

Rules of contract/behaviour.md section 0: the count is of all matches; an offset past the end is an empty page; a marker
starts after that row; a marker nobody knows is refused, because page 1 again would loop a client for ever.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, LiteralString

from psycopg import AsyncConnection, sql
from psycopg.rows import dict_row

from strongroom.base.errors import InvalidRequest

SORT_LENGTH_MAX = 255  # contract
OFFSET_MAX = 1_000_000  # an offset costs what it skips; deeper pages go by marker


@dataclass(frozen=True, kw_only=True)
class Page:
    """limit 1..., offset rows to skip, marker: id of the last row already seen (wins over offset)."""

    limit: int
    offset: int = 0
    marker: str | None = None


@dataclass(frozen=True, kw_only=True)
class Order:
    """One key of the order. `column` is ours, never a client's text."""

    column: LiteralString
    descending: bool = True


_LENGTH = "SELECT coalesce(sum(n), 0) AS n FROM list_counts WHERE project_id = %s AND list = %s"
NEWEST_FIRST = (Order(column="created_at"), Order(column="id"))


@dataclass(kw_only=True)
class Filters:
    """Conditions joined by AND. Texts are ours; values are bound.

    Opened with the project, so that no list is ever asked without it (RULINGS 21).
    """

    project_id: str
    texts: list[LiteralString] = field(default_factory=lambda: ["project_id = %s"])
    values: list[Any] = field(init=False)

    def __post_init__(self) -> None:
        self.values = [self.project_id]

    def add(self, text: LiteralString, *values: object) -> None:
        """Append one condition, such as `add("status = ANY(%s)", ["available"])`."""
        self.texts.append(text)
        self.values.extend(values)


_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")


def require_time(text: str, member: str) -> datetime:
    """The value of a time filter, `2020-02-05T10:38:34Z`, as an aware UTC time. Raises InvalidRequest."""
    try:
        if _TIME.fullmatch(text):
            return datetime.fromisoformat(text)
    except ValueError:
        pass
    raise InvalidRequest(reason=f"Invalid {member}: give a UTC time such as 2020-02-05T10:38:34Z.")


def require_offset(offset: int) -> None:
    """Raises InvalidRequest beyond OFFSET_MAX."""
    if offset > OFFSET_MAX:
        raise InvalidRequest(reason=f"Invalid offset: give at most {OFFSET_MAX}, or page by marker.")


def sort_order(text: str | None, keys: Mapping[str, LiteralString]) -> tuple[Order, ...]:
    """`key[:asc|desc],...` as a total order; descending where nothing is said. keys: a client's name -> ours.

    Raises InvalidRequest.
    """
    if not text:
        return NEWEST_FIRST
    if len(text) > SORT_LENGTH_MAX:
        raise InvalidRequest(reason=f"Invalid sort: use at most {SORT_LENGTH_MAX} characters.")
    order: dict[str, Order] = {}
    for part in text.split(","):
        key, _, direction = part.strip().partition(":")
        if key not in keys or direction not in ("", "asc", "desc") or key in order:
            raise InvalidRequest(
                reason=f"Invalid sort: give each of {', '.join(keys)} at most once, as key:asc or key:desc."
            )
        order[key] = Order(column=keys[key], descending=direction != "asc")
    # Equal rows in the direction of the last key: an index answers both, read forwards or backwards.
    order.setdefault("id", Order(column="id", descending=[*order.values()][-1].descending))
    return tuple(order.values())


async def fetch_page(
    conn: AsyncConnection[Any],
    *,
    columns: LiteralString,
    table: LiteralString,
    filters: Filters,
    page: Page,
    order: Sequence[Order] = NEWEST_FIRST,
    whole: str | None = None,
) -> tuple[list[dict[str, Any]], int]:
    """Rows of one page as dicts, and how many rows match in all. Raises InvalidRequest for an unknown marker.

    whole: the name under which list_counts keeps how long this list is, where the filters are those of nobody asking;
    None: the matching rows are counted.
    """
    require_offset(page.offset)
    where = _joined(" AND ", [f"({text})" for text in filters.texts])
    source = sql.SQL(table)
    async with conn.cursor(row_factory=dict_row) as cursor:
        if whole is not None:
            await cursor.execute(_LENGTH, [filters.project_id, whole])
        else:
            await cursor.execute(sql.SQL("SELECT count(*) AS n FROM {} WHERE {}").format(source, where), filters.values)
        counted = await cursor.fetchone()
        assert counted is not None
        values = list(filters.values)
        if page.marker is not None:
            after = await _after(cursor, source, filters, page.marker, order, values)
            where = sql.SQL("{} AND {}").format(where, after)
        keys = _joined(", ", [f"{_key(o)} {'DESC' if o.descending else 'ASC'}" for o in order])
        query = sql.SQL("SELECT {} FROM {} WHERE {} ORDER BY {} LIMIT %s OFFSET %s").format(
            sql.SQL(columns), source, where, keys
        )
        await cursor.execute(query, [*values, page.limit, 0 if page.marker else page.offset])
        return await cursor.fetchall(), int(counted["n"])


def _joined(joiner: LiteralString, texts: Sequence[str]) -> sql.Composed:
    """Texts of ours, none of a client, as SQL."""
    return sql.Composed([sql.SQL(joiner.join(texts))])


def _key(order: Order) -> str:
    # Rows without a time sort as the oldest, so that comparisons never meet NULL. created_at is never NULL, and bare
    # it fits the index of every list's default order.
    late = order.column.endswith("_at") and order.column != "created_at"
    return f"coalesce({order.column}, 'epoch')" if late else order.column


async def _after(
    cursor: Any, source: sql.Composable, filters: Filters, marker: str, order: Sequence[Order], values: list[Any]
) -> sql.Composable:
    """Condition for rows behind the marker's row: (a > A) OR (a = A AND b > B) ..., for keys of mixed direction."""
    columns = _joined(", ", [f"{_key(o)} AS k{i}" for i, o in enumerate(order)])
    await cursor.execute(
        sql.SQL("SELECT {} FROM {} WHERE project_id = %s AND id = %s").format(columns, source),
        [filters.project_id, marker],
    )
    at = await cursor.fetchone()
    if at is None:
        raise InvalidRequest(reason="Invalid marker provided: no item of this list has that id.")
    if len({o.descending for o in order}) == 1:
        # One direction: a row comparison, which an index on these keys answers by its position.
        values.extend(at[f"k{i}"] for i in range(len(order)))
        keys = ", ".join(_key(o) for o in order)
        return _joined("", [f"({keys}) {'<' if order[0].descending else '>'} ({', '.join(['%s'] * len(order))})"])
    alternatives = []
    for i, last in enumerate(order):
        tests = [f"{_key(o)} = %s" for o in order[:i]]
        tests.append(f"{_key(last)} {'<' if last.descending else '>'} %s")
        values.extend(at[f"k{j}"] for j in range(i + 1))
        alternatives.append(f"({' AND '.join(tests)})")
    return sql.SQL("({})").format(_joined(" OR ", alternatives))
