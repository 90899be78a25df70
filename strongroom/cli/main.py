"""The command line's table of commands, and the one place where an error becomes an exit code (docs/CLI.md)."""

import sys
from collections.abc import Sequence

import typer

from strongroom.base.errors import Canceled, StrongroomError
from strongroom.cli import (
    accounts,
    agent_host,
    agents,
    audit,
    backups,
    checkpoints,
    conformance,
    demo,
    disaster,
    local,
    notifications,
    organization,
    policies,
    protectables,
    quotas,
    recover,
    regions,
    restores,
    scrubbing,
    sharing,
    simulation,
    sources,
    tasks,
    vault_contents,
    vaults,
    verifying,
)
from strongroom.cli.command import group
from strongroom.cli.errors import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK
from strongroom.cli.output import print_error

app = typer.Typer(
    help="Strongroom: self-hosted backup and recovery with the CBR v3 API.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
local.register(app)
disaster.register(app)
demo.register(app)
conformance.register(app)
app.add_typer(recover.app, name="recover")
app.add_typer(sources.app, name="source")
scrubbing.register(app)
app.add_typer(accounts.domains, name="domain")
app.add_typer(accounts.projects, name="project")
app.add_typer(accounts.users, name="user")
app.add_typer(accounts.keys, name="key")
app.add_typer(accounts.token_keys, name="token-key")
agent = group("Hosts with an agent: on the host `enroll` and `run`, anywhere the others.")
agent_host.register(agent)
agents.register(agent)
app.add_typer(agent, name="agent")
app.add_typer(audit.app, name="audit")
app.add_typer(notifications.app, name="notification")
app.add_typer(quotas.app, name="quota")
app.add_typer(protectables.app, name="protectable")
regions.register(backups.app, vaults.app)
app.add_typer(regions.app, name="region")
vault_contents.register(vaults.app)
app.add_typer(vaults.app, name="vault")
simulation.register(policies.app)
app.add_typer(policies.app, name="policy")
app.add_typer(organization.app, name="organization")
app.add_typer(checkpoints.app, name="checkpoint")
sharing.register(backups.app)
app.add_typer(backups.app, name="backup")
restores.register(app)
verifying.register(app)
app.add_typer(tasks.app, name="task")


@app.command(
    "engine", context_settings={"ignore_unknown_options": True, "allow_extra_args": True}, add_help_option=False
)
def engine() -> None:
    """A repository in a folder, without a server: init, backup, restore, list."""
    raise AssertionError("strongroom/__main__.py sends `engine` to its own parser")


def exit_code(error: StrongroomError) -> int:
    """Every class of error ends a command with 1, except a task or command that was told to stop."""
    return EXIT_INTERRUPTED if isinstance(error, Canceled) else EXIT_FAILED


def run(argv: Sequence[str]) -> int:
    """Run one command line (without the program's name) and return its exit code."""
    try:
        app(args=list(argv), prog_name="strongroom")
    except StrongroomError as error:
        print_error(error, as_json="--json" in argv)
        return exit_code(error)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else EXIT_OK
    except BrokenPipeError:
        # The reader of our output left (`| head`): nothing to tell, and nothing to flush at exit.
        sys.stderr.close()
        return EXIT_FAILED
    return EXIT_OK
