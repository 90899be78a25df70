"""The command: where to go and as whom, the table, the page, the exit code."""

import contextlib
import tempfile
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from strongroom.base.clock import SystemClock
from strongroom.cli.client import Client
from strongroom.cli.command import CredentialsOption, EndpointOption, JsonOption, Session, StateOption, YesOption
from strongroom.cli.conformance.cast import Cast, find_target
from strongroom.cli.conformance.own import own_server
from strongroom.cli.credentials import load_credentials
from strongroom.cli.errors import EXIT_FAILED, EXIT_OK, EXIT_PARTLY_DONE, CommandRefused
from strongroom.cli.output import Output
from strongroom.conformance.findings import Findings
from strongroom.conformance.fuzzing import fuzz
from strongroom.conformance.report import NOT_CALLED, as_json, markdown, rows, totals
from strongroom.conformance.run import CLIENTS, run

PACKAGES = ("huaweicloudsdkcbr", "otcextensions", "openstacksdk", "python-openstackclient")


def conformance(
    resource: Annotated[
        list[str] | None,
        typer.Option(
            metavar="RESOURCE",
            help="What may be backed up and restored over, id or name; repeatable: one that can be copied elsewhere.",
        ),
    ] = None,
    partner: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Credentials of a tenant in another project, for sharing.")
    ] = None,
    replica: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Credentials in another region, where backups are copied to.")
    ] = None,
    client: Annotated[
        list[str] | None, typer.Option(metavar="CLIENT", help=f"Only this one, repeatable: {', '.join(CLIENTS)}.")
    ] = None,
    report: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the whole report as Markdown.")] = None,
    invented: Annotated[
        int, typer.Option("--fuzz", metavar="N", min=0, help="Also N invented requests for each operation and kind.")
    ] = 0,
    server_of_its_own: Annotated[
        bool, typer.Option("--own-server", help="Start a server for the run, with everything it needs, and remove it.")
    ] = False,
    yes: YesOption = False,
    state: StateOption = None,
    endpoint: EndpointOption = None,
    credentials: CredentialsOption = None,
    as_document: JsonOption = False,
) -> None:
    """Drive an endpoint as real clients do, and tell what they would stumble over. In a project for nothing else."""
    output = Output(as_json=as_document)
    if find_spec("jsonschema") is None:
        raise CommandRefused(reason="The kit needs more packages: pip install 'strongroom[conformance]'.")
    clients = client or list(CLIENTS)
    if strange := [name for name in clients if name not in CLIENTS]:
        raise typer.BadParameter(f"{strange[0]} is none of {', '.join(CLIENTS)}", param_hint="--client")
    with contextlib.ExitStack() as stack:
        if server_of_its_own:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="strongroom-conformance-")))
            output.note("Starting two servers on embedded defaults")
            cast = stack.enter_context(own_server(folder))
            where = "`strongroom serve` of this version, in two regions, with a disk image, a folder and two projects"
        else:
            cast = Cast(
                owner=load_credentials(state=state, endpoint=endpoint, file=credentials),
                partner=load_credentials(state=None, endpoint=endpoint, file=partner) if partner else None,
                replica=load_credentials(state=None, endpoint=None, file=replica) if replica else None,
                resources=resource or [],
            )
            where = cast.owner.endpoint
        with Client(cast.owner) as asking:
            target = find_target(asking, cast)
            question = f"Back up {target.resource.name} of {target.owner.endpoint}, and restore over it?"
            Session(client=asking, output=output).confirm(question, yes=yes or server_of_its_own)
        findings = run(target, clients, SystemClock().now(), output.note)
        if invented:
            fuzz(target, findings, SystemClock().now(), output.note, examples=invented, alone=server_of_its_own)
    if report is not None:
        day = SystemClock().now().date().isoformat()
        report.write_text(markdown(findings, clients, {"on": day, "against": where, **_versions()}), encoding="utf-8")
    _show(output, findings, clients)
    raise typer.Exit(_exit_code(findings, clients))


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("conformance")(conformance)


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def _show(output: Output, findings: Findings, clients: list[str]) -> None:
    if output.as_json:
        output.document(as_json(findings, clients))
        return
    ran = [client for client in clients if client not in findings.absent_clients]
    table = [[name, *(verdicts.get(c, NOT_CALLED) for c in ran)] for name, verdicts in rows(findings, ran)]
    output.cells(table, ["Operation", *ran])
    for client, operation_id, verdict, reasons in findings.cells(ran):
        if verdict not in ("ok", "explained"):
            output.say("")
            output.say(f"{operation_id}, {client}: {verdict}")
            for reason in reasons:
                output.say(f"  {reason}")
    for name, done in findings.fuzzed.items():
        output.say("")
        output.say(f"schemathesis, {name}: {sum(row.requests for row in done)} requests to {len(done)} operations")
        for fuzzed in done:
            if fuzzed.fault:
                output.say(f"  {fuzzed.operation}: {fuzzed.fault}")
    output.say("")
    for client, counts in totals(findings, ran).items():
        output.say(f"{client}: {', '.join(f'{count} {verdict}' for verdict, count in sorted(counts.items()))}")


def _exit_code(findings: Findings, clients: list[str]) -> int:
    """Failed when an answer was wrong; partly done when something is missing, refused, untried or did not run."""
    seen = {verdict for _, _, verdict, _ in findings.cells(clients)}
    if "fails" in seen or any(row.fault for done in findings.fuzzed.values() for row in done):
        return EXIT_FAILED
    return EXIT_PARTLY_DONE if findings.absent_clients or seen - {"ok", "explained"} else EXIT_OK
