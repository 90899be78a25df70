"""Log lines for people: one an event, whatever clients send."""

from dataclasses import dataclass

import pytest
import structlog

from strongroom.state import configure_logging


@dataclass
class Wanted:
    log_format: str
    log_level: str = "info"


def test_clients_write_no_lines_of_their_own(capsys: pytest.CaptureFixture[str]) -> None:
    """A path with line ends and escape codes of a terminal is one line, escaped; plain values stand as they are."""
    before = structlog.get_config()
    try:
        configure_logging(Wanted(log_format="text"))  # type: ignore[arg-type]
        structlog.get_logger().info("request", path="/v3/a\nadmin \x1b[2J logged in", status=200)
        try:
            raise ValueError("why")
        except ValueError:
            structlog.get_logger().error("failed", exc_info=True)
    finally:
        structlog.configure(**before)
    first, *rest = capsys.readouterr().err.splitlines()
    assert r"path='/v3/a\nadmin \x1b[2J logged in' status=200" in first
    assert "[info     ] request  " in first
    assert "[error    ] failed" in rest[0]
    assert rest[-1] == "ValueError: why"
