"""What the benchmark of the index measures holds: a large index is not in memory, and its report says what it found."""

from pathlib import Path

import pytest

from bench import index_scale

CHUNKS = 700_000  # above what stays in memory: 20 MB of columns


def test_an_index_that_is_opened_again_is_not_in_memory(tmp_path: Path) -> None:
    """Anonymous memory grows by a fraction of the columns, which lie in one mapped file; every pack is found."""
    index_scale.make(tmp_path, CHUNKS, 1 << 16, seed=3)
    first = index_scale._child(tmp_path)
    again = index_scale._child(tmp_path)
    for figures in (first, again):
        assert (figures["tables"], figures["bad"]) == (1, 0)
    grown = again["opened"] - again["base"]
    assert grown <= index_scale.ANONYMOUS_MAX * CHUNKS + (4 << 20), grown
    assert grown < 28 * CHUNKS / 2


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_thirty_million_chunks_keep_the_promises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole benchmark: right answers, bytes of anonymous memory a chunk, ids a second by CPU time."""
    arguments = ["bench.index_scale", "--chunks", "30M", "--object-chunks", "1M"]
    monkeypatch.setattr("sys.argv", [*arguments, "--dir", str(tmp_path), "--out", str(tmp_path)])
    assert index_scale.main() == 0
    assert "million ids/s" in (tmp_path / "index.md").read_text()
