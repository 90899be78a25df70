"""Sharing through the API, against the contract, on a real database: who may do what, and what a share's end does."""

import asyncio
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from contract_schema import check_answer, check_error
from points_world import DISK, TURBO, World

from strongroom.base.ids import new_hex_id, new_id
from strongroom.base.units import GIB
from strongroom.control.access import ROLE_READER


@dataclass
class Tenant:
    """Somebody's calls. `project` is theirs."""

    world: World
    project: str
    header: dict[str, str]

    async def call(self, method: str, path: str, **members: Any) -> httpx.Response:
        url = f"/v3/{self.project}/{path}"
        return await self.world.client.request(method, url, headers=self.header, **members)

    async def share(self, backup: str, *projects: str) -> httpx.Response:
        return await self.call("POST", f"backups/{backup}/members", json={"members": list(projects)})

    async def members(self, backup: str, **query: Any) -> httpx.Response:
        return await self.call("GET", f"backups/{backup}/members", params=query)

    async def decide(self, backup: str, status: Any, vault: str | None = None, of: str | None = None) -> httpx.Response:
        body = {"status": status} | ({"vault_id": vault} if vault is not None else {})
        return await self.call("PUT", f"backups/{backup}/members/{of or self.project}", json=body)

    async def revoke(self, backup: str, project: str) -> httpx.Response:
        return await self.call("DELETE", f"backups/{backup}/members/{project}")

    async def listed(self, **query: Any) -> list[str]:
        answer = check_answer("list_backups", await self.call("GET", "backups", params=query))
        assert answer["count"] == len(answer["backups"])
        return [backup["id"] for backup in answer["backups"]]

    async def restore(self, backup: str, target: str) -> httpx.Response:
        return await self.call("POST", f"backups/{backup}/restore", json={"restore": {"volume_id": target}})


@dataclass
class Story:
    """owner has `backup` of a disk in `vault`; receiver has an empty disk vault and a disk; stranger has neither."""

    owner: Tenant
    receiver: Tenant
    stranger: Tenant
    backup: str
    vault: str
    disk: str
    their_vault: str
    their_disk: str


async def tenant(world: World) -> Tenant:
    project, header = await world.add_project()
    return Tenant(world, project, header)


@pytest.fixture
async def story(world: World) -> Story:
    owner = Tenant(world, world.project, dict(world.client.headers))
    receiver, stranger = await tenant(world), await tenant(world)
    disk = await world.add_resource(DISK, name="disk-of-ada")
    vault = await world.add_vault([disk], kind=DISK)
    _, (backup,) = await world.backed_up(vault, name="monday")
    their_disk = await world.add_resource(DISK, project=receiver.project, name="disk-of-bob")
    their_vault = await world.add_vault([], kind=DISK, project=receiver.project, name="received")
    return Story(owner, receiver, stranger, backup, vault, disk, their_vault, their_disk)


async def accepted(story: Story) -> str:
    """Offer and accept; the id of the share."""
    check_answer("add_member", await story.owner.share(story.backup, story.receiver.project))
    answer = check_answer(
        "update_member_status", await story.receiver.decide(story.backup, "accepted", story.their_vault)
    )
    return str(answer["member"]["id"])


# --- the story ------------------------------------------------------------------------------------------------------


async def test_offer_look_accept_reject_revoke(story: Story) -> None:
    """A backup is offered, seen, accepted into a vault, given up, offered again and taken back; each side sees it."""
    owner, receiver, backup = story.owner, story.receiver, story.backup
    assert await receiver.listed(own_type="shared") == []
    added = check_answer("add_member", await owner.share(backup, receiver.project))
    (member,) = added["members"]
    assert added["count"] == 1
    assert {name: member[name] for name in ("backup_id", "dest_project_id", "status", "vault_id", "image_id")} == {
        "backup_id": backup, "dest_project_id": receiver.project, "status": "pending", "vault_id": None,
        "image_id": None,
    }  # fmt: skip

    for person in (owner, receiver):
        path = f"backups/{backup}/members/{receiver.project}"
        assert check_answer("show_member_detail", await person.call("GET", path)) == {"member": member}
        assert check_answer("show_members_detail", await person.members(backup)) == {"members": [member], "count": 1}
    shown = check_answer("show_backup", await receiver.call("GET", f"backups/{backup}"))["backup"]
    own = check_answer("show_backup", await owner.call("GET", f"backups/{backup}"))["backup"]
    assert shown == own | {"member_status": "pending"}
    assert own["member_status"] is None
    assert await receiver.listed() == []
    assert await receiver.listed(own_type="shared") == await receiver.listed(own_type="all_granted") == [backup]

    taken = check_answer("update_member_status", await receiver.decide(backup, "accepted", story.their_vault))["member"]
    assert taken == member | {"status": "accepted", "vault_id": story.their_vault, "updated_at": taken["updated_at"]}
    shown = check_answer("show_backup", await receiver.call("GET", f"backups/{backup}"))["backup"]
    assert (shown["vault_id"], shown["project_id"], shown["status"]) == (story.their_vault, owner.project, "available")
    assert await receiver.listed(own_type="shared", vault_id=story.their_vault) == [backup]
    assert check_answer("show_backup", await owner.call("GET", f"backups/{backup}"))["backup"] == own

    given_up = check_answer("update_member_status", await receiver.decide(backup, "rejected"))["member"]
    assert (given_up["status"], given_up["vault_id"]) == ("rejected", None)
    assert await receiver.listed(own_type="shared") == []
    assert await receiver.listed(own_type="shared", member_status="rejected") == [backup]
    check_answer("update_member_status", await receiver.decide(backup, "accepted", story.their_vault))  # thinks again
    open_again = check_answer("update_member_status", await receiver.decide(backup, "pending"))["member"]
    assert (open_again["status"], open_again["vault_id"]) == ("pending", None)

    check_answer("delete_member", await owner.revoke(backup, receiver.project))
    check_error("show_backup", await receiver.call("GET", f"backups/{backup}"), 404, "6200")
    assert await receiver.listed(own_type="shared", member_status="pending") == []
    assert check_answer("show_members_detail", await owner.members(backup)) == {"members": [], "count": 0}


async def test_lists_of_received(story: Story, world: World) -> None:
    """own_type and member_status choose whose backups are listed; other filters, order and paging hold for all."""
    owner, receiver = story.owner, story.receiver
    others = [(await world.backed_up(story.vault, name=f"day-{i}"))[1][0] for i in range(3)]
    mine = await world.add_vault([story.their_disk], kind=DISK, project=receiver.project)
    await receiver.call("POST", "checkpoints", json={"checkpoint": {"vault_id": mine}})
    (own,) = await receiver.listed()
    for backup in (story.backup, *others):
        check_answer("add_member", await owner.share(backup, receiver.project))
    check_answer("update_member_status", await receiver.decide(others[0], "accepted", story.their_vault))
    check_answer("update_member_status", await receiver.decide(others[1], "rejected"))
    assert await receiver.listed() == await receiver.listed(own_type="private", member_status="pending") == [own]
    assert await receiver.listed(own_type="shared") == [others[2], others[0], story.backup]
    assert await receiver.listed(own_type="all_granted") == [own, others[2], others[0], story.backup]
    for status, found in (("pending", [others[2], story.backup]), ("accepted", [others[0]]), ("rejected", [others[1]])):
        assert await receiver.listed(own_type="shared", member_status=status) == found
    assert await receiver.listed(own_type="all_granted", member_status="accepted") == [own, others[0]]
    assert await receiver.listed(own_type="shared", name="day-2") == [others[2]]
    assert await receiver.listed(own_type="shared", status="available", sort="created_at:asc")  # same filters
    assert await receiver.listed(own_type="shared", status="error") == []
    assert await receiver.listed(own_type="shared", resource_id=story.disk) == [others[2], others[0], story.backup]
    pages = []
    for _ in range(5):
        query = {"own_type": "all_granted", "limit": 1} | ({"marker": pages[-1]} if pages else {})
        page = check_answer("list_backups", await receiver.call("GET", "backups", params=query))
        pages.extend(backup["id"] for backup in page["backups"])
        assert page["count"] == 4
    assert pages == [own, others[2], others[0], story.backup]
    assert await owner.listed(own_type="shared") == []


async def test_list_of_members(story: Story, world: World) -> None:
    """Members are filtered, sorted and paged; a receiver finds itself only."""
    owner, backup = story.owner, story.backup
    people = [story.receiver, *[await tenant(world) for _ in range(3)]]
    check_answer("add_member", await owner.share(backup, *[person.project for person in people]))
    check_answer("update_member_status", await story.receiver.decide(backup, "accepted", story.their_vault))
    check_answer("update_member_status", await people[1].decide(backup, "rejected"))

    async def found(person: Tenant = owner, **query: Any) -> list[str]:
        answer = check_answer("show_members_detail", await person.members(backup, **query))
        names = {p.project: str(i) for i, p in enumerate(people)}
        assert answer["count"] >= len(answer["members"])
        return sorted(names[member["dest_project_id"]] for member in answer["members"])

    assert await found() == ["0", "1", "2", "3"]
    assert await found(status="accepted") == await found(vault_id=story.their_vault) == ["0"]
    assert await found(status="pending") == ["2", "3"]
    assert await found(dest_project_id=people[3].project) == ["3"]
    assert await found(image_id=new_id()) == await found(status="nonsense") == await found(offset=4) == []
    for i, person in enumerate(people):
        assert await found(person) == [str(i)]
        assert await found(person, dest_project_id=people[i - 1].project) == []
    seen: list[str] = []
    for _ in range(5):
        query = {"limit": 1, "sort": "status:asc,id"} | ({"marker": seen[-1]} if seen else {})
        answer = check_answer("show_members_detail", await owner.members(backup, **query))
        seen.extend(member["id"] for member in answer["members"])
        assert answer["count"] == 4
    assert len(set(seen)) == 4
    for query in ({"limit": 0}, {"limit": 1001}, {"offset": -1}, {"marker": "x"}, {"marker": new_id()}, {"sort": "x"}):
        check_error("show_members_detail", await owner.members(backup, **query), 400, "9900")


# --- refusals -------------------------------------------------------------------------------------------------------


async def test_what_cannot_be_shared(story: Story, world: World) -> None:
    """Only an available, whole backup of a server or disk, in an available vault, is shared."""
    owner, project = story.owner, story.receiver.project
    folder = await world.add_resource(TURBO)
    _, (of_folder,) = await world.backed_up(await world.add_vault([folder]))
    check_error("add_member", await owner.share(of_folder, project), 400, "6700")
    await world.execute("UPDATE backups SET parent_id = id, machine_id = resource_id WHERE id = %s", story.backup)
    check_error("add_member", await owner.share(story.backup, project), 400, "6700")
    await world.execute("UPDATE backups SET parent_id = NULL, machine_id = NULL, resource_type = 'OS::Nova::Server'")
    check_answer("add_member", await owner.share(story.backup, project))
    await owner.revoke(story.backup, project)
    for status in ("error", "restoring", "protecting"):
        await world.execute("UPDATE backups SET status = %s WHERE id = %s", status, story.backup)
        check_error("add_member", await owner.share(story.backup, project), 400, "6702")
    await world.execute("UPDATE backups SET status = 'available' WHERE id = %s", story.backup)
    await world.execute("UPDATE vault_resources SET protect_status = 'removing'")
    check_error("add_member", await owner.share(story.backup, project), 400, "6702")
    await world.execute("UPDATE vault_resources SET protect_status = 'available'")
    await world.execute("UPDATE vaults SET status = 'frozen' WHERE id = %s", story.vault)
    check_error("add_member", await owner.share(story.backup, project), 400, "6712")
    assert check_answer("show_members_detail", await owner.members(story.backup))["count"] == 0


async def test_receivers_that_cannot_be(story: Story, world: World) -> None:
    """Members are other projects that exist, each once, ten at most; a refused call shares with nobody."""
    owner, backup = story.owner, story.backup
    one, two = story.receiver.project, story.stranger.project
    for projects, code in (
        ([one, owner.project], "6704"),
        ([one, new_hex_id()], "6704"),
        ([one, "not-a-project"], "6704"),
        ([one, two, one], "6714"),
        ([new_hex_id() for _ in range(11)], "6701"),
        ([], "9900"),
    ):
        check_error("add_member", await owner.share(backup, *projects), 400, code)
    path = f"backups/{backup}/members"
    for body in ({}, {"members": None}, {"members": "x"}, {"members": [1]}, {"members": [one], "domains": ["d"]}):
        check_error("add_member", await owner.call("POST", path, json=body), 400, "9900")
    await world.execute("UPDATE projects SET enabled = false WHERE id = %s", two)
    check_error("add_member", await owner.share(backup, two), 400, "6704")
    assert check_answer("show_members_detail", await owner.members(backup))["count"] == 0

    check_answer("add_member", await owner.call("POST", path, json={"members": [one], "domains": []}))
    check_error("add_member", await owner.share(backup, one), 400, "6703")
    await story.receiver.decide(backup, "rejected")
    check_error("add_member", await owner.share(backup, one), 400, "6703")
    nine = [(await tenant(world)).project for _ in range(10)]
    check_error("add_member", await owner.share(backup, *nine), 400, "6701")
    check_answer("add_member", await owner.share(backup, *nine[:9]))
    check_error("add_member", await owner.share(backup, nine[9]), 400, "6701")


async def test_two_shares_at_once_keep_the_limit(story: Story, world: World) -> None:
    """Twelve offers at the same moment end in ten members."""
    people = [await tenant(world) for _ in range(12)]
    answers = await asyncio.gather(*(story.owner.share(story.backup, person.project) for person in people))
    assert sorted(answer.status_code for answer in answers) == [200] * 10 + [400] * 2
    assert check_answer("show_members_detail", await story.owner.members(story.backup))["count"] == 10


async def test_vaults_that_cannot_receive(story: Story, world: World) -> None:
    """A backup is accepted into an available backup vault of its kind, of the receiver's own, with room."""
    receiver, backup = story.receiver, story.backup
    check_answer("add_member", await story.owner.share(backup, receiver.project))
    for vault, status, code in (
        (None, 400, "9900"),
        ("not-an-id", 400, "9900"),
        (new_id(), 404, "6105"),
        (story.vault, 404, "6105"),
        (await world.add_vault(kind=TURBO, project=receiver.project), 400, "6713"),
        (await world.add_vault(kind=DISK, project=receiver.project, protect_type="replication"), 400, "6713"),
        (await world.add_vault(kind=DISK, project=receiver.project, status="lock"), 400, "6712"),
        (await world.add_vault(kind=DISK, project=receiver.project, size_gb=1, used_bytes=GIB), 400, "6114"),
    ):
        check_error("update_member_status", await receiver.decide(backup, "accepted", vault), status, code)
    for status in ("accept", "", "ACCEPTED"):
        check_error("update_member_status", await receiver.decide(backup, status, story.their_vault), 400, "6706")
    for status in (None, 5):
        check_error("update_member_status", await receiver.decide(backup, status, story.their_vault), 400, "9900")
    await world.execute("UPDATE backups SET status = 'error' WHERE id = %s", backup)
    check_error("update_member_status", await receiver.decide(backup, "accepted", story.their_vault), 400, "6708")
    await world.execute("UPDATE backups SET status = 'restoring' WHERE id = %s", backup)  # the owner's own business
    check_answer("update_member_status", await receiver.decide(backup, "accepted", story.their_vault))
    another = await world.add_vault(kind=DISK, project=receiver.project)
    moved = check_answer("update_member_status", await receiver.decide(backup, "accepted", another))["member"]
    assert moved["vault_id"] == another


async def test_each_side_does_its_own_part(story: Story) -> None:
    """The owner does not accept, the receiver does not share, revoke, rename or delete; nobody answers for another."""
    owner, receiver, stranger, backup = story.owner, story.receiver, story.stranger, story.backup
    check_answer("add_member", await owner.share(backup, receiver.project))
    as_owner = await owner.decide(backup, "accepted", story.vault, of=receiver.project)
    check_error("update_member_status", as_owner, 400, "6708")
    check_error("update_member_status", await owner.decide(backup, "rejected", of=stranger.project), 404, "6705")
    check_error("update_member_status", await receiver.decide(backup, "rejected", of=stranger.project), 404, "6705")
    for status in ("pending", "accepted"):
        if status == "accepted":
            check_answer("update_member_status", await receiver.decide(backup, status, story.their_vault))
        check_error("add_member", await receiver.share(backup, stranger.project), 400, "6707")
        check_error("delete_member", await receiver.revoke(backup, receiver.project), 400, "6707")
        check_error("delete_backup", await receiver.call("DELETE", f"backups/{backup}"), 400, "6711")
        renaming = await receiver.call("PUT", f"backups/{backup}", json={"backup": {"name": "mine"}})
        check_error("update_backup", renaming, 400, "6707")
    for person in (owner, receiver):
        answer = await person.call("GET", f"backups/{backup}/members/{stranger.project}")
        check_error("show_member_detail", answer, 404, "6705")
        check_error("show_member_detail", await person.call("GET", f"backups/{backup}/members/x"), 400, "9900")
    check_error("delete_member", await owner.revoke(backup, stranger.project), 404, "6705")
    check_error("delete_member", await owner.revoke(backup, "x"), 400, "9900")
    shown = check_answer("show_backup", await owner.call("GET", f"backups/{backup}"))["backup"]
    assert (shown["name"], shown["status"]) == ("monday", "available")


async def test_a_stranger_sees_nothing(story: Story, world: World) -> None:
    """To a third project a shared backup answers like one that never was, in every operation and list."""
    await accepted(story)
    stranger = story.stranger
    their_disk = await world.add_resource(DISK, project=stranger.project)
    their_vault = await world.add_vault([their_disk], kind=DISK, project=stranger.project)
    answers = []
    for backup in (story.backup, new_id()):
        for operation, answer in (
            ("add_member", await stranger.share(backup, story.receiver.project)),
            ("show_members_detail", await stranger.members(backup)),
            ("show_member_detail", await stranger.call("GET", f"backups/{backup}/members/{story.receiver.project}")),
            ("show_member_detail", await stranger.call("GET", f"backups/{backup}/members/{stranger.project}")),
            ("update_member_status", await stranger.decide(backup, "accepted", their_vault)),
            ("update_member_status", await stranger.decide(backup, "rejected", of=story.receiver.project)),
            ("delete_member", await stranger.revoke(backup, story.receiver.project)),
            ("show_backup", await stranger.call("GET", f"backups/{backup}")),
            ("delete_backup", await stranger.call("DELETE", f"backups/{backup}")),
            ("update_backup", await stranger.call("PUT", f"backups/{backup}", json={"backup": {"name": "x"}})),
            ("restore_backup", await stranger.restore(backup, their_disk)),
        ):
            body = check_error(operation, answer, 404, "6200")
            answers.append((operation, body["error_msg"].replace(backup, "ID")))
        for path in ("", "/entries", "/download"):
            answer = await world.client.get(
                f"/ext/v1/{stranger.project}/backups/{backup}{path}", headers=stranger.header
            )
            if not path:
                assert (answer.status_code, answer.json()["error_code"]) == (404, "BackupService.6200")
    assert answers[: len(answers) // 2] == answers[len(answers) // 2 :]
    assert await stranger.listed(own_type="shared") == await stranger.listed(own_type="shared", name="monday") == []


async def test_readers_only_look(story: Story, world: World) -> None:
    """A role that may only read sees members, and offers, decides and revokes nothing."""
    await accepted(story)
    for person in (story.owner, story.receiver):
        reader = Tenant(world, person.project, world.add_caller(person.project, ROLE_READER))
        check_answer("show_members_detail", await reader.members(story.backup))
        check_error("add_member", await reader.share(story.backup, story.stranger.project), 403, "8600")
        check_error("update_member_status", await reader.decide(story.backup, "rejected"), 403, "8600")
        check_error("delete_member", await reader.revoke(story.backup, story.receiver.project), 403, "8600")


# --- restoring what was received, and the end of a share ----------------------------------------------------------


async def test_restore_needs_acceptance_and_a_vault(story: Story, world: World) -> None:
    """Contents are for who accepted; a restore is logged at the receiver, in its vault, and the owner sees nothing."""
    owner, receiver, backup = story.owner, story.receiver, story.backup
    check_answer("add_member", await owner.share(backup, receiver.project))
    check_error("restore_backup", await receiver.restore(backup, story.their_disk), 400, "2005")
    report = f"/ext/v1/{receiver.project}/backups/{backup}"
    assert (await world.client.get(report, headers=receiver.header)).json()["error_code"] == "BackupService.2005"
    await receiver.decide(backup, "rejected")
    check_error("restore_backup", await receiver.restore(backup, story.their_disk), 400, "2005")
    await receiver.decide(backup, "accepted", story.their_vault)
    assert (await world.client.get(report, headers=receiver.header)).json()["backup"]["kind"] == "tree"
    check_error("restore_backup", await receiver.restore(backup, story.disk), 404, "7000")  # the owner's disk
    await world.execute("UPDATE vaults SET status = 'lock' WHERE id = %s", story.their_vault)
    check_error("restore_backup", await receiver.restore(backup, story.their_disk), 400, "6202")
    await world.execute("UPDATE vaults SET status = 'available' WHERE id = %s", story.their_vault)
    await world.execute("UPDATE backups SET status = 'error' WHERE id = %s", backup)
    check_error("restore_backup", await receiver.restore(backup, story.their_disk), 400, "2005")
    await world.execute("UPDATE backups SET status = 'available' WHERE id = %s", backup)

    job = check_answer("restore_backup", await receiver.restore(backup, story.their_disk))["job_id"]
    log = check_answer("show_op_log", await receiver.call("GET", f"operation-logs/{job}"))["operation_log"]
    assert (log["vault_id"], log["extra_info"]["restore"]["backup_id"]) == (story.their_vault, backup)
    check_error("show_op_log", await owner.call("GET", f"operation-logs/{job}"), 404, "6500")
    check_error("restore_backup", await receiver.restore(backup, story.their_disk), 400, "2010")
    second = await world.add_resource(DISK, project=receiver.project)
    check_error("restore_backup", await receiver.restore(backup, second), 400, "2005")  # as with an own one
    status = {}
    for name, person in (("owner", owner), ("receiver", receiver)):
        status[name] = (await person.call("GET", f"backups/{backup}")).json()["backup"]["status"]
    assert status == {"owner": "available", "receiver": "waiting_restore"}
    assert await receiver.listed(own_type="shared", status="waiting_restore") == [backup]
    assert check_answer("restore_backup", await owner.restore(backup, story.disk))  # both at once
