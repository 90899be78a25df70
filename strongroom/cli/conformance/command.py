"""The command: where to go and as whom, the table, the page, the exit code."""

import contextlib
import tempfile
from collections.abc import Iterator
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from strongroom.base.clock import SystemClock
from strongroom.cli.client import Client
from strongroom.cli.command import CredentialsOption, EndpointOption, JsonOption, Session, StateOption, YesOption
from strongroom.cli.conformance.own import own_server
from strongroom.cli.credentials import Credentials, load_credentials
from strongroom.cli.errors import EXIT_FAILED, EXIT_OK, EXIT_PARTLY_DONE, CommandRefused
from strongroom.cli.output import Output
from strongroom.cli.signing import RequestSigner
from strongroom.conformance.findings import Findings
from strongroom.conformance.fuzzing import fuzz
from strongroom.conformance.report import NOT_CALLED, as_json, markdown, rows, totals
from strongroom.conformance.run import CLIENTS, run
from strongroom.conformance.target import Party, Target

KINDS = ("disk", "turbo", "server")  # in this order a resource is looked for
PACKAGES = ("huaweicloudsdkcbr", "otcextensions", "openstacksdk", "python-openstackclient")


def conformance(
    resource: Annotated[
        str | None,
        typer.Option(metavar="RESOURCE", help="What may be backed up and restored over, id or name. Needed."),
    ] = None,
    partner: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Credentials of a tenant in another project, for sharing.")
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
    other: Credentials | None
    with contextlib.ExitStack() as stack:
        if server_of_its_own:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="strongroom-conformance-")))
            output.note("Starting a server on embedded defaults")
            owner, other, resource = stack.enter_context(own_server(folder))
            where = "`strongroom serve` of this version, with a disk image and two projects"
        else:
            owner = load_credentials(state=state, endpoint=endpoint, file=credentials)
            other = load_credentials(state=None, endpoint=endpoint, file=partner) if partner else None
            where = owner.endpoint
        target = _target(stack.enter_context(_asking(owner)), owner, other, resource)
        with _asking(owner) as asking:
            question = f"Back up {target.resource_name} of {owner.endpoint}, and restore over it?"
            Session(client=asking, output=output).confirm(question, yes=yes or server_of_its_own)
        findings = run(target, clients, SystemClock().now(), output.note)
        if invented:
            fuzz(target, findings, SystemClock().now(), output.note, examples=invented)
    if report is not None:
        report.write_text(markdown(findings, clients, {"against": where, **_versions()}), encoding="utf-8")
    _show(output, findings, clients)
    raise typer.Exit(_exit_code(findings, clients))


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("conformance")(conformance)


@contextlib.contextmanager
def _asking(credentials: Credentials) -> Iterator[Client]:
    with Client(credentials) as client:
        yield client


def _target(client: Client, owner: Credentials, partner: Credentials | None, resource: str | None) -> Target:
    """Find the resource by id or exact name. Raises CommandRefused with a sentence."""
    if resource is None:
        raise CommandRefused(
            reason="Name the resource that may be backed up and restored over: --resource. Or try --own-server."
        )
    for kind in KINDS:
        found = client.get(client.v3(f"protectables/{kind}/instances"), name=resource)["instances"]
        found = found or client.get(client.v3(f"protectables/{kind}/instances"), id=resource)["instances"]
        if found:
            return Target(
                owner=_party(owner),
                partner=_party(partner) if partner is not None else None,
                resource_id=found[0]["id"],
                resource_name=found[0]["name"],
                resource_type=found[0]["type"],
                object_type=kind,
            )
    raise CommandRefused(reason=f"Nothing that can be protected is called {resource} ({', '.join(KINDS)}).")


def _party(credentials: Credentials) -> Party:
    return Party(
        endpoint=credentials.endpoint,
        project_id=credentials.project_id,
        access_key=credentials.access_key,
        secret_key=credentials.secret_key,
        username=credentials.username,
        password=credentials.password,
        domain_name=credentials.domain_name,
        project_name=credentials.project_name,
        region=credentials.region,
        signed=RequestSigner(credentials, SystemClock()),
    )


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
