"""Whether an answer is what the SDK's models declare: each value of the JSON against the type of its attribute.

The SDK itself does not look: it turns 5 into "5" and "yes" into True. So a wrong type is seen here, in the raw value,
and not in what it decoded.
"""

import datetime
import re
from collections.abc import Iterator
from typing import Any

from strongroom.conformance.contract import Json

_LIST = re.compile(r"list\[(.+)\]")
_DICT = re.compile(r"dict\([^,]+, (.+)\)")
_PLAIN: dict[str, tuple[type, ...]] = {"str": (str,), "int": (int,), "bool": (bool,), "float": (int, float)}


def decode_faults(models: Any, declared: str, raw: Any, where: str, unknown: set[str]) -> Iterator[str]:
    """Sentences on every value that is not of its declared type; members no model has are added to `unknown`.

    `models`: the module with the SDK's model classes. Nulls are the contract's business, not this one's.
    """
    if raw is None or declared == "object":
        return
    if found := _LIST.fullmatch(declared):
        yield from _list_faults(models, found[1], raw, where, unknown)
    elif found := _DICT.fullmatch(declared):
        if isinstance(raw, dict):
            for name, value in raw.items():
                yield from decode_faults(models, found[1], value, f"{where}.{name}", unknown)
        else:
            yield _wrong(where, raw, "a map")
    elif declared in ("datetime", "date"):
        yield from _time_faults(raw, where)
    elif plain := _PLAIN.get(declared):
        if not isinstance(raw, plain) or (isinstance(raw, bool) and bool not in plain):
            yield _wrong(where, raw, declared)
    else:
        yield from _model_faults(models, getattr(models, declared), raw, where, unknown)


def _list_faults(models: Any, declared: str, raw: Any, where: str, unknown: set[str]) -> Iterator[str]:
    if not isinstance(raw, list):
        yield _wrong(where, raw, f"a list of {declared}")
        return
    for value in raw:
        yield from decode_faults(models, declared, value, f"{where}[]", unknown)


def _model_faults(models: Any, model: Any, raw: Any, where: str, unknown: set[str]) -> Iterator[str]:
    types, names = model.openapi_types, model.attribute_map
    if not types:
        constants = _constants(model)
        if constants and (not isinstance(raw, str | bool | int | float) or raw not in constants):
            yield f"{where} is {raw!r}, none of the values of {model.__name__}"
        elif isinstance(raw, dict):
            unknown.update(f"{where}.{member}" for member in raw)  # the SDK expects an answer without a body
        return
    if list(names.values()) == ["body"]:
        yield from decode_faults(models, types["body"], raw, where, unknown)
        return
    if not isinstance(raw, dict):
        yield _wrong(where, raw, model.__name__)
        return
    declared = {names[attribute]: kind for attribute, kind in types.items()}
    for member, value in raw.items():
        if member in declared:
            yield from decode_faults(models, declared[member], value, f"{where}.{member}", unknown)
        else:
            unknown.add(f"{where}.{member}")


def _constants(model: Any) -> set[Any]:
    return {value for name, value in vars(model).items() if name.lstrip("_")[:1].isalnum() and name.isupper()} | {
        value for name, value in vars(model).items() if name[:1] == "_" and name[1:2].isdigit()
    }


def _time_faults(raw: Any, where: str) -> Iterator[str]:
    """The SDK appends a Z and parses: what has an offset already stays a text."""
    try:
        datetime.datetime.fromisoformat(f"{raw}Z" if not str(raw).endswith("Z") else str(raw))
    except ValueError:
        yield _wrong(where, raw, "a time that the SDK can decode")


def _wrong(where: str, raw: Any, declared: str) -> str:
    text = repr(raw)
    return f"{where} is {text if len(text) <= 60 else text[:57] + '...'}, and the SDK declares {declared}"


def response_faults(models: Any, response: Any, raw: Json | list[Any] | None, unknown: set[str]) -> list[str]:
    """Of a whole answer: `response` as the SDK made it, `raw` the decoded JSON."""
    if raw is None:
        return []
    return list(_model_faults(models, type(response), raw, "$", unknown))
