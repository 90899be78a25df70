"""Texts that tenants choose: names, descriptions, tags, ids. Pure; every refusal says what would be accepted.

Rules of contract/behaviour.md sections 0 and 9. Refused texts are not repeated in the sentence: they may be long.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from strongroom.base.errors import Conflict, InvalidRequest
from strongroom.base.ids import is_id

NAME_LENGTH_MAX = 64
DESCRIPTION_LENGTH_MAX = 255
TAG_KEY_LENGTH_MAX = 36
TAG_VALUE_LENGTH_MAX = 43
TAGS_MAX = 20  # per vault: Huawei Cloud says 10, OTC 20 (contract/behaviour.md section 17)
ENTERPRISE_PROJECT_DEFAULT = "0"
ENTERPRISE_PROJECT_ALL = "all_granted_eps"  # a filter's value: every one the caller may see

_ALPHABET = r"A-Za-z0-9_\-\u4e00-\u9fa5\uf900-\ufa2d"
_NAME = re.compile(f"[{_ALPHABET}]+")
_PREFIX = re.compile(f"[{_ALPHABET}]*")
_TAG_VALUE = re.compile(f"[{_ALPHABET}.]*")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_ENTERPRISE_PROJECT = re.compile(r"[0-9A-Za-z-]{1,36}")
_LETTERS = "letters, digits, hyphens, underscores and Chinese characters"


@dataclass(frozen=True, kw_only=True)
class Tag:
    """key 1-36, value 0-43 characters ("" when a client sends null)."""

    key: str
    value: str


def require_name(text: str, member: str, length_max: int = NAME_LENGTH_MAX) -> str:
    """A name of a vault, checkpoint, backup or policy. Raises InvalidRequest."""
    if len(text) > length_max or not _NAME.fullmatch(text):
        raise InvalidRequest(reason=f"Invalid {member}: use 1 to {length_max} {_LETTERS}.")
    return text


def require_prefix(text: str | None, member: str, length_max: int) -> str | None:
    """The beginning of a name; may be empty. Raises InvalidRequest."""
    if text is not None and (len(text) > length_max or not _PREFIX.fullmatch(text)):
        raise InvalidRequest(reason=f"Invalid {member}: use at most {length_max} {_LETTERS}.")
    return text


def require_description(text: str | None, member: str, length_max: int = DESCRIPTION_LENGTH_MAX) -> str | None:
    """Free text without angle brackets; None stays None. Raises InvalidRequest."""
    if text is None:
        return None
    if len(text) > length_max or "<" in text or ">" in text:
        raise InvalidRequest(reason=f"Invalid {member}: use at most {length_max} characters, none of them < or >.")
    return text


def require_label(text: str, member: str, length_max: int = 255) -> str:
    """A resource's display name: anything printable on one line. Raises InvalidRequest."""
    if not text or len(text) > length_max or _CONTROL.search(text):
        raise InvalidRequest(
            reason=f"Invalid {member}: use 1 to {length_max} characters, none of them a control character."
        )
    return text


def require_id(text: str, member: str) -> str:
    """A lower-case UUID with dashes. Raises InvalidRequest in the words clients know."""
    if not is_id(text):
        raise InvalidRequest(reason=f"Invalid {member} provided.")
    return text


def require_enterprise_project(text: str | None, member: str) -> str:
    """`0` or an id; None is the default one. Raises InvalidRequest."""
    if text is None:
        return ENTERPRISE_PROJECT_DEFAULT
    if not _ENTERPRISE_PROJECT.fullmatch(text):
        raise InvalidRequest(reason=f"Invalid {member}: give an enterprise project id, or leave it out.")
    return text


def is_tag_key(text: str) -> bool:
    """Whether a vault can have a tag with this key."""
    return 0 < len(text) <= TAG_KEY_LENGTH_MAX and _NAME.fullmatch(text) is not None


def require_tags(tags: Sequence[Tag], member: str) -> tuple[Tag, ...]:
    """Tags of one vault: no repeated key. Raises InvalidRequest, or Conflict 6600 when there are too many."""
    if len(tags) > TAGS_MAX:
        raise Conflict(reason=f"A vault can have at most {TAGS_MAX} tags. Send fewer.", conflict_code="6600")
    for tag in tags:
        if not is_tag_key(tag.key):
            raise InvalidRequest(reason=f"Invalid {member}: a key has 1 to {TAG_KEY_LENGTH_MAX} {_LETTERS}.")
        if len(tag.value) > TAG_VALUE_LENGTH_MAX or not _TAG_VALUE.fullmatch(tag.value):
            raise InvalidRequest(
                reason=f"Invalid {member}: a value has at most {TAG_VALUE_LENGTH_MAX} {_LETTERS}, and dots."
            )
    if len({tag.key for tag in tags}) < len(tags):
        raise InvalidRequest(reason=f"Invalid {member}: a key stands twice. Send each key once.")
    return tuple(tags)
