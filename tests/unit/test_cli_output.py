"""What commands print and how they end."""

import contextlib
import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from strongroom.base import errors as base_errors
from strongroom.base.errors import Canceled, StrongroomError
from strongroom.cli import errors as cli_errors
from strongroom.cli.errors import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK, EXIT_USAGE, RequestRefused
from strongroom.cli.main import exit_code, run
from strongroom.cli.output import Output, print_error, shown, when

VAULT = "8b0851a8-adf3-4f4c-a914-dead08bf9664"


def test_control_characters_of_names_never_reach_the_terminal() -> None:
    """A file named like a terminal sequence is printed as text."""
    assert shown("\x1b[2Jname\x07\udcff") == "\\x1b[2Jname\\x07\\xff"


def test_nothing_is_a_dash_and_truth_is_a_word() -> None:
    """Empty cells are visible."""
    assert [shown(v) for v in (None, "", True, False, 0)] == ["-", "-", "yes", "no", "0"]
    assert when("2019-05-10T07:59:12.036982") == "2019-05-10 07:59:12"


def test_table_in_a_pipe_is_not_cut(capsys: pytest.CaptureFixture[str]) -> None:
    """Long ids stay whole when stdout is not a terminal; nested members are reached."""
    rows = [{"id": "8b0851a8-adf3-4f4c-a914-dead08bf9664", "name": "n" * 64, "billing": {"size": 100}}]
    Output(as_json=False).table(rows, {"Id": "id", "Name": "name", "Size": "billing.size", "Gone": "a.b"})
    text = capsys.readouterr().out
    assert "8b0851a8-adf3-4f4c-a914-dead08bf9664" in text
    assert "n" * 64 in text
    assert "100" in text


def test_markup_in_names_is_text(capsys: pytest.CaptureFixture[str]) -> None:
    """A vault named `[red]` is not a colour."""
    Output(as_json=False).details({"name": "[red]x[/red]"}, {"Name": "name"})
    assert "[red]x[/red]" in capsys.readouterr().out


def test_json_is_what_the_server_said(capsys: pytest.CaptureFixture[str]) -> None:
    """--json prints all members, also those no column shows."""
    Output(as_json=True).table([{"id": "a", "more": {"b": 1}}], {"Id": "id"})
    assert json.loads(capsys.readouterr().out) == [{"id": "a", "more": {"b": 1}}]


def test_error_has_sentence_code_and_request_id(capsys: pytest.CaptureFixture[str]) -> None:
    """People and programs both learn what was refused and which request it was; nothing goes to stdout."""
    error = RequestRefused(reason="No such vault.", status=404, error_code="BackupService.6105", request_id="r-1")
    print_error(error, as_json=False)
    people = capsys.readouterr()
    assert "No such vault." in people.err
    assert "BackupService.6105" in people.err
    assert "r-1" in people.err
    print_error(error, as_json=True)
    programs = capsys.readouterr()
    assert people.out == programs.out == ""
    assert json.loads(programs.err) == {
        "message_type": "error",
        "code": "BackupService.6105",
        "message": "No such vault.",
        "request_id": "r-1",
    }


def _classes(root: type[StrongroomError]) -> list[type[StrongroomError]]:
    return [root, *(found for child in root.__subclasses__() for found in _classes(child))]


def test_every_error_class_has_an_exit_code() -> None:
    """Canceled is 130, whatever else 1: no class falls through."""
    found = {cls for cls in _classes(StrongroomError) if cls.__module__ in (base_errors.__name__, cli_errors.__name__)}
    assert len(found) > 30
    for cls in found:
        assert exit_code(cls.__new__(cls)) == (EXIT_INTERRUPTED if issubclass(cls, Canceled) else EXIT_FAILED)


@pytest.mark.parametrize(
    ("argv", "code", "says"),
    [
        (["version"], EXIT_OK, "Strongroom"),
        (["vault"], EXIT_USAGE, "Usage"),
        (["vault", "lst"], EXIT_USAGE, "No such command"),
        (["vault", "create", "v", "--type", "tape"], EXIT_USAGE, "tape"),
        (["protectable", "add", "--read-limit"], EXIT_USAGE, "--read-limit"),
    ],
)
def test_usage_errors_end_with_2(argv: list[str], code: int, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A mistyped command is told apart from one that failed."""
    assert run(argv) == code
    captured = capsys.readouterr()
    assert says in captured.out + captured.err


def test_missing_credentials_say_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Before the first start of a server the sentence names `strongroom serve` and the file."""
    assert run(["vault", "list", "--state", str(tmp_path)]) == EXIT_FAILED
    text = " ".join(capsys.readouterr().err.split())
    assert "strongroom serve" in text
    assert "credentials.json" in text


def test_no_server_says_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Connection refused names the endpoint and the command that starts a server."""
    file = tmp_path / "credentials.json"
    file.touch(mode=0o600)
    file.write_text(
        json.dumps(
            {"endpoint": "http://127.0.0.1:9", "project_id": "0" * 32, "access_key": "a", "secret_key": "s" * 20}
        )
    )
    assert run(["vault", "list", "--credentials", str(file), "--json"]) == EXIT_FAILED
    error = json.loads(capsys.readouterr().err)
    assert "http://127.0.0.1:9" in error["message"]
    assert "strongroom serve" in error["message"]


@pytest.mark.parametrize(
    ("content", "says"), [("{", "not valid JSON"), ("[]", "not a credentials file"), ("{}", "lacks endpoint")]
)
def test_bad_credentials_file_is_named(
    content: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file that is not credentials is refused with its name, without a traceback."""
    file = tmp_path / "c.json"
    file.touch(mode=0o600)
    file.write_text(content)
    assert run(["vault", "list", "--credentials", str(file)]) == EXIT_FAILED
    assert says in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(("answer", "says"), [(b"n\n", "Nothing was changed"), (b"y\n", "strongroom serve")])
def test_a_person_is_asked_before_something_is_lost(answer: bytes, says: str, tmp_path: Path) -> None:
    """At a terminal a delete asks first; "no" sends nothing, "yes" goes on to the server (which is not there)."""
    file = tmp_path / "c.json"
    file.touch(mode=0o600)
    file.write_text(
        json.dumps({"endpoint": "http://127.0.0.1:9", "project_id": "0" * 32, "access_key": "a", "secret_key": "s"})
    )
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "strongroom", "vault", "delete", VAULT, "--credentials", str(file)]
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        os.write(ours, answer)
        text = b""
        with contextlib.suppress(OSError):  # Linux answers EIO when the other end has closed
            while piece := os.read(ours, 4096):
                text += piece
    os.close(ours)
    assert process.returncode == EXIT_FAILED
    assert says in " ".join(text.decode().split())


def test_a_script_is_not_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a terminal the command goes on to the server at once."""
    file = tmp_path / "c.json"
    file.touch(mode=0o600)
    file.write_text(
        json.dumps({"endpoint": "http://127.0.0.1:9", "project_id": "0" * 32, "access_key": "a", "secret_key": "s"})
    )
    assert run(["vault", "delete", VAULT, "--credentials", str(file)]) == EXIT_FAILED
    assert "No server answers" in " ".join(capsys.readouterr().err.split())
