"""docs/ERROR-CODES.md against tests and source: every code is reached by a test that names it, or cannot occur here."""

import ast
import re
from pathlib import Path

import pytest

from strongroom.api.errors import STATUS_OF, status_of
from strongroom.base.errors import Conflict, NotFound, StrongroomError

ROOT = Path(__file__).parent.parent
ROW = re.compile(r"^\| (\d{4}) \| (\d{3}) \| ([^|]+) \| ([^|]+) \|$", re.MULTILINE)
TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")
PUBLISHED = 160
ELSEWHERE = {"7403", "7407", "7410"}
# As the source writes the code of a refusal: of a class, a Conflict, a kind of resource, a helper that makes one.
ANSWERED = re.compile(r'\w*code(?:: ClassVar\[str\])? ?= ?"(?:BackupService\.)?(\d{4})"')

ROWS = {
    code: (int(status), text.strip())
    for code, status, _, text in ROW.findall((ROOT / "docs/ERROR-CODES.md").read_text())
}
REACHED = {code: TEST.fullmatch(text) for code, (_, text) in ROWS.items() if text.startswith("`tests/")}


def test_the_table_has_every_published_code() -> None:
    """All 160 codes of the table, with their statuses, and those that are seen elsewhere."""
    assert len(set(ROWS) - ELSEWHERE) == PUBLISHED
    assert set(ROWS) >= ELSEWHERE
    counts = {
        status: sum(s == status for c, (s, _) in ROWS.items() if c not in ELSEWHERE) for status in (400, 403, 404, 500)
    }
    assert counts == {400: 121, 403: 1, 404: 15, 500: 23}


@pytest.mark.parametrize("code", REACHED)
def test_a_reached_code_is_named_by_its_test(code: str) -> None:
    """The test exists, and the code stands in it."""
    found = REACHED[code]
    assert found is not None, "give it as `tests/folder/test_module.py::test_name`"
    text = (ROOT / found[1]).read_text()
    functions = {f.name: f for f in ast.parse(text).body if isinstance(f, ast.FunctionDef | ast.AsyncFunctionDef)}
    assert found[2] in functions, f"{found[1]} has no {found[2]}"
    function = functions[found[2]]
    texts = [n.value for n in ast.walk(function) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
    assert any(re.search(rf"(?<!\d){code}(?!\d)", text) for text in texts), f"{found[2]} does not name {code}"


def test_what_is_answered_is_in_the_table_as_reached() -> None:
    """Every code that the source can answer has its test, and every test's code is in the source."""
    answered = {code for path in (ROOT / "strongroom").rglob("*.py") for code in ANSWERED.findall(path.read_text())}
    assert answered - set(REACHED) == set(), "answered, and not in docs/ERROR-CODES.md with a test"
    assert set(REACHED) - answered == set(), "in docs/ERROR-CODES.md with a test, and not in the source"


@pytest.mark.parametrize("code", REACHED)
def test_the_status_is_the_published_one(code: str) -> None:
    """As a Conflict, and as the class that has the code."""
    classes = [cls for cls in _subclasses(NotFound) if cls.code == f"BackupService.{code}" and cls.__name__ not in ODD]
    for cls in classes:
        assert next(STATUS_OF[c] for c in cls.__mro__ if c in STATUS_OF) == ROWS[code][0], cls
    if not any(cls.code == f"BackupService.{code}" for cls in _subclasses(StrongroomError)):
        assert status_of(Conflict(conflict_code=code, reason="-")) == ROWS[code][0]


# The root of its kinds, and those of the identity, which CBR has no codes for: 404 with the general one.
ODD = {"NotFound", "AccountNotFound", "NotificationNotFound", "TokenNotFound"}


def _subclasses(cls: type[StrongroomError]) -> set[type[StrongroomError]]:
    return {cls, *(sub for child in cls.__subclasses__() for sub in _subclasses(child))}
