"""Cinder volumes from a recorded cloud: what is asked for, in which order, and that all of it is taken back.

The answers are of a real Cinder 29: tests/e2e/test_cinder.py, which runs against one, records them again.
"""

import json
from pathlib import Path

import pytest
from recorded import BASE, played

from strongroom.base.errors import Canceled, SourceError
from strongroom.sources.base import PointWanted, RestoreWanted, SourceRef
from strongroom.sources.openstack.cinder import CinderDriver
from strongroom.sources.openstack.cloud import Address

pytestmark = [
    pytest.mark.filterwarnings("ignore::PendingDeprecationWarning"),
]

ANSWERS = Path(__file__).with_name("cinder_answers.json")
GIB = 1 << 30
VOLUME = "00000000-0000-4000-8000-000000000001"


@pytest.fixture
def words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    clouds = tmp_path / "clouds.yaml"
    who = {"username": "ours", "password": "p", "project_name": "ours"} | dict.fromkeys(
        ("user_domain_id", "project_domain_id"), "default"
    )
    entry = {"auth": who | {"auth_url": f"{BASE}/v3"}, "region_name": "RegionOne"}
    clouds.write_text(json.dumps({"clouds": {"ours": entry}}))  # JSON is YAML
    monkeypatch.setenv("OS_CLIENT_CONFIG_FILE", str(clouds))
    monkeypatch.setattr("strongroom.sources.openstack.waiting.POLL_S", 0.01)
    for name in ("COPY", "VOLUME"):
        with (tmp_path / name).open("wb") as file:
            file.truncate(GIB)
    return {"PLACE-OF-COPY": str(tmp_path / "COPY"), "PLACE-OF-VOLUME": str(tmp_path / "VOLUME"), "THE-VOLUME": VOLUME}


def ref() -> SourceRef:
    return SourceRef(resource_id=VOLUME, type="OS::Cinder::Volume", path=f"cinder:ours/{VOLUME}".encode())


def test_a_backup_and_a_restore_take_back_all_they_made(words: dict[str, str], tmp_path: Path) -> None:
    """Snapshot, copy, attachment; and back in the other order. The restore writes what differs, then detaches."""
    driver = CinderDriver()
    with (tmp_path / "COPY").open("r+b") as file:
        file.write(b"as it was")
    with played(ANSWERS, words) as asked:
        assert driver.inspect(ref()).size_bytes == GIB
        with driver.open_point(ref(), PointWanted()) as point:
            buffer = bytearray(9)
            point.stream.read_into(0, memoryview(buffer))
            point.commit()
        assert bytes(buffer) == b"as it was"
        wanted = RestoreWanted(task_id="t", target=ref(), same_resource=True, kind="block", size_bytes=GIB)
        with driver.open_target(driver.plan_restore(wanted)) as target:
            target.stream.write(0, memoryview(b"as it was"))
            assert target.finish().written_bytes == 9
    assert (tmp_path / "VOLUME").read_bytes()[:9] == b"as it was"
    made = [key.split("?")[0].split("/v3/")[1].split("/", 1)[1] for key in asked if key[:3] in ("POS", "DEL")][1:]
    kinds = [place.split("/")[0] for place in made if "metadata" not in place and place != "tokens"]
    assert kinds == [
        *("snapshots", "volumes", "attachments", "attachments"),
        *("attachments", "volumes", "snapshots"),
        *("attachments", "attachments", "attachments"),
    ], made


def test_a_cancel_is_heard_while_a_snapshot_is_made_and_nothing_is_left(words: dict[str, str]) -> None:
    """Cinder may copy for hours: the wait ends at once, and what it was for is deleted when that can be."""

    def canceled() -> None:
        raise Canceled

    with played(ANSWERS, words) as asked, pytest.raises(Canceled):
        CinderDriver().open_point(ref(), PointWanted(check=canceled))
    made = [
        key.split("/v3/")[1].split("/", 1)[1].split("/")[0]
        for key in asked
        if key.startswith("POST") and "tokens" not in key
    ]
    assert made == ["snapshots"]
    assert [key for key in asked if key.startswith("DELETE") and "/snapshots/" in key], asked


@pytest.mark.parametrize(
    "path", ["cinder:", "cinder:a", "cinder:a/b", "cinder:../x/" + VOLUME, f"cinder:a/{VOLUME}/..", "/x"]
)
def test_an_address_is_a_cloud_and_a_volume(path: str) -> None:
    """Anything else is refused before a request is made of it."""
    with pytest.raises(SourceError, match="cinder:CLOUD/VOLUME-ID"):
        Address.parse(path.encode())


def test_no_secret_is_kept_in_the_record() -> None:
    """Tokens are replaced, and requests, with their passwords, are not recorded at all."""
    text = ANSWERS.read_text()
    assert "gAAAA" not in text and "password" not in json.loads(text)
