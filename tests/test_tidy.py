"""Rules of the house that no other tool checks. Each ratchets: the numbers may fall, not rise."""

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted((ROOT / "strongroom").rglob("*.py"))

MODULE_LINES_MAX = 480
FUNCTION_LINES_MAX = 70
BLIND = {"Exception", "BaseException"}
CATCH_ALL = {"strongroom/api/app.py", "strongroom/operations/worker.py"}

# Every table with a column project_id, as the migrations make them; role_assignments belongs to the identity.
TENANT_TABLES = sorted(
    table
    for path in (ROOT / "strongroom" / "control" / "migrations" / "versions").glob("*.sql")
    for table, columns in re.findall(r"^CREATE TABLE (\w+) \((.*?)^\);", path.read_text(), re.DOTALL | re.MULTILINE)
    if re.search(r"^\s+project_id\s", columns, re.MULTILINE) and table != "role_assignments"
)
TOUCHES = re.compile(rf"\b(?:FROM|UPDATE|INTO|JOIN)\s+({'|'.join(TENANT_TABLES)})\b")
BINDS = re.compile(r"\bproject_id\s*(?:=|IS NOT DISTINCT FROM)|\bINSERT INTO \w+ \([^)]*\bproject_id\b")
# Statements that are right without a project, each with its reason.
WITHOUT_PROJECT = {
    "control/audit.py": "the operator reads the log of all projects, and its age is that of the installation",
    "control/tasks.py": "a worker serves every tenant: rows are found by id and generation, which no request can name",
    "control/claiming.py": "a worker serves every tenant",
    "control/key_rotation.py": "secrets of all tenants are sealed again",
    "control/notifications.py::claim_due": "a worker serves every tenant: rows are found by their time",
    "control/notifications.py::purge_deliveries": "the same",
    "control/notifications.py::wanted_overdue": "the same",
    "control/figures.py": "the operator reads sums over all tenants",
    "control/relocation.py::keep_promises_anew": "all vaults of an installation came into another store",
    "control/self_rows.py::settle_moved": "all rows of an installation came into another database",
    "control/self_rows.py::settle_loaded": "the same",
    "control/self_rows.py::known_roots": "the whole installation is compared with its store",
    "control/self_rows.py::vaults_with_keys": "the same",
    "control/installation.py::has_restore_points": "whether the whole installation has any",
    "control/sessions.py::close_unowned": "whole processes were stopped",
    "control/sessions.py::open_session": "a worker's own task, of this project or of one that reads a share of it",
    "control/organization_copies.py": "copies of one policy in every project, found by its id, which one domain owns",
    "control/listing.py": "the project is the first of its Filters",
    "control/backups.py::": "rows with their project, as a source for statements that bind it",
    "control/agents.py::": "the same",
    "control/agent_identity.py::enroll": "a token says whose it is: found by its hash, it gives the project",
    "control/subjects.py::_select_vaults": "each condition that it is given binds the project",
    "control/expiry.py::overdue": "the worker asks which tenant's time has come; what it does then binds the project",
    "control/firing.py::due_runs": "the same",
    "control/registrations.py::remove_protectable": "the operator registers for every tenant",
}


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


@pytest.mark.parametrize("path", SOURCES, ids=_name)
def test_modules_and_functions_stay_small(path: Path) -> None:
    """No module grows beyond one room, no function beyond one screen."""
    text = path.read_text()
    assert text.count("\n") <= MODULE_LINES_MAX, "is it still one room?"
    for function in _functions(ast.parse(text)):
        assert function.end_lineno is not None
        lines = function.end_lineno - function.lineno + 1
        assert lines <= FUNCTION_LINES_MAX, f"{function.name} has {lines} lines"


def test_only_two_places_catch_everything() -> None:
    """`except Exception` stands in the outermost middleware and at the bottom of a job, nowhere else."""
    swallowing = set()
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.ExceptHandler)
                and (node.type is None or (isinstance(node.type, ast.Name) and node.type.id in BLIND))
                and not any(isinstance(inner, ast.Raise) for inner in ast.walk(node))
            ):
                swallowing.add(_name(path))
    assert swallowing == CATCH_ALL


def test_nobody_takes_the_time_from_the_air() -> None:
    """Wall time comes from base/clock, or as an argument; but for the beginning of an id, which nobody reads."""
    calls = re.compile(r"\bdatetime\.(now|utcnow|today)\(|\btime\.time(_ns)?\(")
    found = {_name(p) for p in SOURCES if calls.search(p.read_text())}
    assert found <= {"strongroom/base/clock.py", "strongroom/base/ids.py"}


def _statements(path: Path) -> Iterator[tuple[str, str]]:
    """(function, text) of every string in a module; the parts of an f-string count as one."""
    tree = ast.parse(path.read_text())
    for function in _functions(tree):
        inside = {id(part) for node in ast.walk(function) if isinstance(node, ast.JoinedStr) for part in ast.walk(node)}
        for node in ast.walk(function):
            if isinstance(node, ast.JoinedStr):
                yield function.name, ast.unparse(node)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inside:
                yield function.name, node.value
    for node in tree.body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Constant | ast.JoinedStr):
            yield "", ast.unparse(node.value)


def test_every_statement_on_a_tenants_table_binds_the_project() -> None:
    """The second fence between tenants: no SQL text reaches a tenant's rows by their id alone (RULINGS 21)."""
    loose, looked_at = [], 0
    for path in sorted((ROOT / "strongroom" / "control").glob("*.py")):
        name = f"control/{path.name}"
        for function, text in _statements(path):
            if not TOUCHES.search(text):
                continue
            looked_at += 1
            if BINDS.search(text):
                continue
            if name not in WITHOUT_PROJECT and f"{name}::{function}" not in WITHOUT_PROJECT:
                loose.append((name, function, " ".join(text.split())[:120]))
    assert loose == []
    assert looked_at > 150, "the search for statements does not find them any more"
    assert {"vaults", "protectables", "backups", "policies"} <= set(TENANT_TABLES)


def test_a_statement_without_the_project_is_noticed() -> None:
    """What the fence takes for bound, and what not."""
    for text in (
        "SELECT 1 FROM vaults WHERE project_id = %s AND id = %s",
        "INSERT INTO backups (id, project_id) VALUES (%s, %s)",
        "UPDATE backups b SET name = %s WHERE b.project_id = %(project)s",
    ):
        assert TOUCHES.search(text) and BINDS.search(text)
    for text in (
        "SELECT project_id FROM vaults WHERE id = %s",
        "DELETE FROM vault_tags WHERE vault_id = %s",
        "INSERT INTO backups (id) SELECT id FROM vaults",
        "SELECT 1 FROM protectables WHERE source_project_id = %s",
    ):
        assert TOUCHES.search(text) and not BINDS.search(text)


def test_sql_lives_in_control() -> None:
    """No other room speaks SQL, and no other room imports the database's library."""
    for path in SOURCES:
        if "/control/" not in _name(path):
            assert not re.search(r"^(import|from) (psycopg|sqlalchemy|alembic)", path.read_text(), re.MULTILINE), path


# Rooms of the command line that read a repository or an installation themselves, and who leads to them.
WITHOUT_HTTP = {
    *("agent_host", "disaster", "engine", "engine_domains", "engine_proofs", "engine_pruning", "engine_reads"),
    *("local", "main", "proving", "recover", "recovery", "scrubbing", "simulation", "sources"),
}


def test_every_command_that_speaks_http_is_kept_from_the_server() -> None:
    """The contract of import-linter names its modules one by one: a new one has to be among them."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (fenced,) = (each for each in contracts if each["name"] == "What speaks HTTP knows nothing of the server")
    named = {name.removeprefix("strongroom.cli.") for name in fenced["source_modules"]}
    rooms = {path.stem for path in (ROOT / "strongroom" / "cli").iterdir() if path.name[0] != "_"}
    assert rooms - WITHOUT_HTTP == named
