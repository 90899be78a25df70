"""Metadata of a backup, against the contract: JSON inside of texts, only where there is something to tell."""

import json

import pytest
from contract_schema import check_answer, check_error
from points_world import DISK, TURBO, World, reader_of

from strongroom.base.ids import new_id


@pytest.mark.parametrize("kind", [DISK, TURBO])
async def test_metadata_tells_of_the_source(world: World, kind: str) -> None:
    """The backup as GET shows it; of a disk its volume too; nothing of a machine, which there is not."""
    resource = await world.add_resource(kind, name="root-disk")
    _, (backup,) = await world.backed_up(await world.add_vault([resource], kind=kind))
    path = world.v3(f"backups/{backup}/metadata")
    answer = check_answer("show_metadata", await world.client.get(path, headers=reader_of(world)))
    shown = check_answer("show_backup", await world.client.get(world.v3(f"backups/{backup}")))["backup"]
    assert json.loads(answer["backups"]) == shown
    assert answer["backup_id"] == backup
    volumes = [json.loads(text) for text in answer["volumes"]]
    assert volumes == ([{"id": resource, "name": "root-disk", "size": 4}] if kind == DISK else [])
    assert (answer["server"], answer["ports"]) == (None, [])


async def test_metadata_of_what_is_not_there_is_refused(world: World) -> None:
    """A backup that is being made has none (6206); a foreign one is answered like an absent one (6200)."""
    vault = await world.add_vault([await world.add_resource()])
    await world.run(vault)
    backup = str(await world.one("SELECT id FROM backups"))
    check_error("show_metadata", await world.client.get(world.v3(f"backups/{backup}/metadata")), 400, "6206")
    other, header = await world.add_project()
    for asked in (backup, new_id()):
        refused = await world.client.get(f"/v3/{other}/backups/{asked}/metadata", headers=header)
        body = check_error("show_metadata", refused, 404, "6200")
        assert body["error_msg"] == f"Backup {asked} does not exist."
    check_error("show_metadata", await world.client.get(world.v3("backups/first/metadata")), 400, "9900")
