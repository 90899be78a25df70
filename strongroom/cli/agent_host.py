"""`agent enroll` and `agent run`: on a protected host, where there is no server and nobody logs in."""

import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from strongroom.cli.output import Output

CONFIG = Path("/etc/strongroom/agent.toml")
HOME = Path("/var/lib/strongroom-agent")
ConfigOption = Annotated[Path, typer.Option("--config", metavar="FILE", help="What this host allows; root's.")]
HomeOption = Annotated[Path, typer.Option("--home", metavar="DIR", help="Key and certificate of this host.")]


def enroll(
    server: Annotated[str, typer.Option(metavar="HOST:PORT", help="Where the server waits for agents.")],
    token: Annotated[
        str, typer.Option(envvar="STRONGROOM_AGENT_TOKEN", help="From `strongroom agent register`; counts once.")
    ],
    allow: Annotated[
        list[str] | None, typer.Option(metavar="PATH", help="A path that may be read; repeatable. Writes the file.")
    ] = None,
    allow_restore: Annotated[
        bool, typer.Option("--allow-restore", help="With --allow: restores may write there too.")
    ] = False,
    config: ConfigOption = CONFIG,
    home: HomeOption = HOME,
) -> None:
    """Make this host known to a server, once. The private key is made here and stays here."""
    from strongroom.agent.identity import enroll as run_enrolment
    from strongroom.agent.policy import load_policy, write_policy

    output = Output(as_json=False)
    if allow:
        write_policy(config, allow, restore=allow_restore)
    policy = load_policy(config, own=(home,))
    identity = run_enrolment(home, server.removeprefix("tls://"), token)
    output.say(f"Enrolled as {identity.agent_id}. {config} allows: ")
    output.say("  read     " + (", ".join(os.fsdecode(path) for path in policy.paths) or "nothing"))
    places = ", ".join(os.fsdecode(path) for path in policy.restore_paths)
    output.say("  restore  " + (places if policy.restore else "nothing"))
    output.say("Now start it: systemctl enable --now strongroom-agent, or strongroom agent run")


def run(config: ConfigOption = CONFIG, home: HomeOption = HOME) -> None:
    """Dial the server and do its jobs, within what this host allows. Ends with SIGTERM."""
    import logging
    import resource

    import structlog

    from strongroom.agent.run import Agent
    from strongroom.base.clock import SystemClock

    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.format_exc_info,
            structlog.processors.KeyValueRenderer(key_order=["level", "event"]),
        ],
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
    )
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 65_536)), hard))
    agent = Agent(home=home, config=config, clock=SystemClock())
    end_with_signals(agent.stop)
    agent.run()


def end_with_signals(stop: Callable[[], None]) -> None:
    """SIGTERM and SIGINT call it in a thread of its own: the one that they interrupt may hold a lock that it takes."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: threading.Thread(target=stop).start())


def register(app: typer.Typer) -> None:
    """Add the commands to the noun."""
    app.command("enroll")(enroll)
    app.command("run")(run)
