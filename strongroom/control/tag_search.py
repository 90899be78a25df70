"""Vaults by their tags: what `resource_instances/action` asks for, as conditions of a list.

    tags          every key is there, with one of its values       not_tags      not so
    tags_any      one of the keys is there, with one of its values not_tags_any  not so

No values: any value will do. `*text` is a value that holds the text. Rules of contract/behaviour.md section 9.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import LiteralString

from strongroom.base.errors import InvalidRequest
from strongroom.control.listing import Filters
from strongroom.control.names import ENTERPRISE_PROJECT_ALL, require_enterprise_project
from strongroom.control.vault_rules import check_filters

KEYS_MAX = 20  # of one list, and values of one key (contract: 20, newer pages 10)
KEY_LENGTH_MAX = 127
VALUE_LENGTH_MAX = 255
ENTERPRISE_TAG = "_sys_enterprise_project_id"  # the one system tag there is: the vault's own enterprise project

_CARRIES: LiteralString = (
    "EXISTS (SELECT 1 FROM vault_tags t WHERE t.project_id = vaults.project_id AND t.project_id = %s "
    "AND t.vault_id = vaults.id AND t.key = %s AND (%s OR t.value = ANY(%s) "
    "OR EXISTS (SELECT 1 FROM unnest(%s::text[]) AS part WHERE strpos(t.value, part) > 0)))"
)


@dataclass(frozen=True, kw_only=True)
class TagChoice:
    """A key, and the values of it that will do; none: any."""

    key: str
    values: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class TagQuery:
    """Conditions joined by AND; empty or None: not asked for.

    without_any_tag  only vaults without tags; the four lists are passed over
    name             a part of the name; "" is a name that no vault has
    """

    tags: tuple[TagChoice, ...] = ()
    tags_any: tuple[TagChoice, ...] = ()
    not_tags: tuple[TagChoice, ...] = ()
    not_tags_any: tuple[TagChoice, ...] = ()
    sys_tags: tuple[TagChoice, ...] = ()
    without_any_tag: bool = False
    name: str | None = None
    object_type: str | None = None
    cloud_type: str | None = None
    enterprise_project_id: str | None = None


def filters_of(project_id: str, query: TagQuery) -> Filters:
    """The query as conditions on `vaults`. Raises InvalidRequest."""
    check_filters(name=None, cloud_type=query.cloud_type, protect_type=None, object_type=query.object_type, status=None)
    filters = Filters(project_id=project_id)
    lists: tuple[tuple[LiteralString, Sequence[TagChoice], LiteralString, LiteralString], ...] = (
        ("tags", query.tags, "{}", " AND "),
        ("tags_any", query.tags_any, "{}", " OR "),
        ("not_tags", query.not_tags, "NOT ({})", " AND "),
        ("not_tags_any", query.not_tags_any, "NOT ({})", " OR "),
    )
    for member, choices, form, joiner in lists:
        _check_choices(choices, member)
        if choices and not query.without_any_tag:
            values = [value for choice in choices for value in _values(project_id, choice)]
            filters.add(form.format(joiner.join([_CARRIES] * len(choices))), *values)
    if query.without_any_tag:
        filters.add(
            "NOT EXISTS (SELECT 1 FROM vault_tags t WHERE t.project_id = %s AND t.vault_id = vaults.id)", project_id
        )
    _add_system_tags(filters, query.sys_tags)
    if query.name is not None:
        filters.add("name = '' OR (%s <> '' AND strpos(name, %s) > 0)", query.name, query.name)
    if query.object_type is not None:
        filters.add("object_type = %s", query.object_type)
    if query.cloud_type is not None:
        filters.add("cloud_type = %s", query.cloud_type)
    if query.enterprise_project_id not in (None, ENTERPRISE_PROJECT_ALL):
        filters.add(
            "enterprise_project_id = %s",
            require_enterprise_project(query.enterprise_project_id, "enterprise_project_id"),
        )
    return filters


def _add_system_tags(filters: Filters, choices: Sequence[TagChoice]) -> None:
    _check_choices(choices, "sys_tags")
    for choice in choices:
        if choice.key != ENTERPRISE_TAG:
            raise InvalidRequest(reason=f"Invalid sys_tags: the only system tag is {ENTERPRISE_TAG}.")
        if choice.values:
            filters.add("enterprise_project_id = ANY(%s)", list(choice.values))


def _values(project_id: str, choice: TagChoice) -> list[object]:
    """What _CARRIES binds."""
    exact = [value for value in choice.values if not value.startswith("*")]
    parts = [value.removeprefix("*") for value in choice.values if value.startswith("*")]
    return [project_id, choice.key, not choice.values, exact, parts]


def _check_choices(choices: Sequence[TagChoice], member: str) -> None:
    if len(choices) > KEYS_MAX:
        raise InvalidRequest(reason=f"Invalid {member}: give at most {KEYS_MAX} keys.")
    if len({choice.key for choice in choices}) < len(choices):
        raise InvalidRequest(reason=f"Invalid {member}: a key stands twice. Send each key once, with all its values.")
    for choice in choices:
        if not 0 < len(choice.key) <= KEY_LENGTH_MAX:
            raise InvalidRequest(reason=f"Invalid {member}: a key has 1 to {KEY_LENGTH_MAX} characters.")
        if len(choice.values) > KEYS_MAX or len(set(choice.values)) < len(choice.values):
            raise InvalidRequest(reason=f"Invalid {member}: give at most {KEYS_MAX} values of a key, each once.")
        if any(value == "*" or len(value) > VALUE_LENGTH_MAX for value in choice.values):
            raise InvalidRequest(
                reason=f"Invalid {member}: a value has at most {VALUE_LENGTH_MAX} characters, and text behind its *."
            )
