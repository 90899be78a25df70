"""Lists of another region's store: what a region answers by mistake comes to an end, as an error that may pass."""

from typing import Any, cast

import pytest

from strongroom.base.clock import SystemClock
from strongroom.base.errors import RegionSilent
from strongroom.operations.peer_store import PeerStore
from strongroom.operations.peers import Peer


class Region:
    """A region with these answers, one after the other; the last one for ever."""

    name = "west"

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.asked: list[str] = []

    def get(self, path: str, /, **query: Any) -> Any:
        self.asked.append(query["after"])
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


def names(region: Region) -> list[str]:
    store = PeerStore(cast("Peer", region), "record", SystemClock())
    return [info.name for info in store.list("packs/")]


def test_pages_follow_each_other() -> None:
    """Each page is asked for behind the last name of the one before."""
    region = Region(
        {"objects": [["packs/a", 1], ["packs/b", 2]], "next": "packs/b"},
        {"objects": [["packs/c", 3]], "next": ""},
    )
    assert names(region) == ["packs/a", "packs/b", "packs/c"]
    assert region.asked == ["", "packs/b"]


@pytest.mark.parametrize(
    "answer",
    [
        {"objects": [["packs/a", 1]], "next": "packs/a"},
        {"objects": [], "next": "packs/a"},
        {"objects": [["packs/a", "large"]], "next": ""},
        {"objects": [["packs/a"]], "next": ""},
        {"next": ""},
        ["packs/a"],
        None,
    ],
)
def test_a_list_without_end_or_form_is_no_list(answer: Any) -> None:
    """The same page for ever, and answers that are no page, are a region that does not answer."""
    with pytest.raises(RegionSilent):
        names(Region(answer))
