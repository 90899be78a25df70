"""`region`: where replicas can go, whether the way there works, and the commands that send them."""

from typing import Annotated

import typer

from strongroom.cli import names
from strongroom.cli.backups import BackupArgument
from strongroom.cli.client import Json
from strongroom.cli.command import Session, WaitOption, group, remote
from strongroom.cli.errors import EXIT_FAILED, EXIT_OK, CommandRefused
from strongroom.cli.vaults import MEMBERS, VaultArgument
from strongroom.cli.watching import outcome_code, tell_failures, watch

app = group("Other regions: Strongroom servers that keep replicas of your restore points.")

RegionOption = Annotated[str, typer.Option("--region", metavar="REGION", help="Region it goes to, see `region list`.")]
TargetOption = Annotated[
    str, typer.Option("--to-vault", metavar="VAULT", help="Id of a vault over there that was made with --replicas.")
]
TASKS_PAGE = 1000
VAULTS_MAX = 1000  # one page of the API; a project has fewer
VAULT_COLUMNS = ("Id", "Name", "Holds", "Size GB", "Used MB", "Status")


@remote(app, "list")
def list_regions(session: Session) -> None:
    """Show the regions that your restore points can be copied to."""
    client = session.client
    rows = client.get(client.ext("regions"))["regions"]
    session.output.table(rows, {"Region": "name", "Your project there": "project_id"})


@remote(app, "vaults")
def list_vaults(
    session: Session,
    region: Annotated[str, typer.Argument(metavar="REGION", help="Name, see `region list`.")],
) -> None:
    """Show your vaults in another region that take replicas: --to-vault wants their ids."""
    client = session.client
    there = _project_there(session, region)
    answer = client.get(client.v3("vaults/external"), region_id=region, external_project_id=there, limit=VAULTS_MAX)
    session.output.table(
        answer["vaults"], {label: member for label, member in MEMBERS.items() if label in VAULT_COLUMNS}
    )


@remote(app, "check")
def check(
    session: Session,
    region: Annotated[str, typer.Argument(metavar="REGION", help="Name, see `region list`.")],
) -> int:
    """Try everything that a replication needs, both ways, and say what does not work."""
    client = session.client
    steps = client.post(client.ext(f"regions/{region}/check"), {})["steps"]
    if session.output.as_json:
        session.output.document({"region": region, "steps": steps})
    else:
        for step in steps:
            session.output.say(f"{'ok    ' if step['works'] else 'FAILED'}  {step['what']}")
            if step["reason"]:
                session.output.say(f"        {step['reason']}")
    return EXIT_OK if all(step["works"] for step in steps) else EXIT_FAILED


def register(backups: typer.Typer, vaults: typer.Typer) -> None:
    """`backup replicate` and `vault replicate`."""

    @remote(backups, "replicate")
    def replicate_backup(
        session: Session,
        backup: BackupArgument,
        region: RegionOption,
        to_vault: TargetOption,
        name: Annotated[str | None, typer.Option(help="Name of the replica; the backup's own without.")] = None,
        wait: WaitOption = False,
    ) -> int:
        """Copy one backup to another region."""
        client = session.client
        body = {**_destination(session, region, to_vault), **({"name": name} if name is not None else {})}
        chosen = names.backup_id(client, backup)
        answer = client.post(client.v3(f"backups/{chosen}/replicate"), {"replicate": body})["replication"]
        return _follow(session, answer, [answer["backup_id"]], wait=wait)

    @remote(vaults, "replicate")
    def replicate_vault(
        session: Session, vault: VaultArgument, region: RegionOption, to_vault: TargetOption, wait: WaitOption = False
    ) -> int:
        """Copy every backup of a vault that is not in that region yet."""
        client = session.client
        body = {**_destination(session, region, to_vault), "vault_id": names.vault_id(client, vault)}
        answer = client.post(client.v3("checkpoints/replicate"), {"replicate": body})["replication"]
        return _follow(session, answer, [backup["backup_id"] for backup in answer["backups"]], wait=wait)


def _destination(session: Session, region: str, vault: str) -> Json:
    return {
        "destination_region": region,
        "destination_project_id": _project_there(session, region),
        "destination_vault_id": vault,
    }


def _project_there(session: Session, region: str) -> str:
    rows = session.client.get(session.client.ext("regions"))["regions"]
    regions = {str(row["name"]): str(row["project_id"]) for row in rows}
    if region not in regions:
        known = ", ".join(sorted(regions)) or "none"
        raise CommandRefused(reason=f"Your project has no region {region} to copy to. There is: {known}.")
    return regions[region]


def _follow(session: Session, answer: Json, backup_ids: list[str], *, wait: bool) -> int:
    client = session.client
    if not wait:
        if session.output.as_json:
            session.output.document(answer)
        else:
            session.output.note(f"{len(backup_ids)} on the way. See `task list`, or `backup show`.")
        return EXIT_OK
    rows = client.pages(client.ext("tasks"), "tasks", operation_type="replication", limit=TASKS_PAGE)
    newest = {row["backup_id"]: row["id"] for row in reversed(rows)}
    ended = watch(client, session.output, [newest[backup_id] for backup_id in backup_ids])
    tell_failures(session.output, ended)
    return outcome_code(ended)
