"""Entrance of the program: `strongroom ...` and `python -m strongroom ...`.

`engine` is sent to its own small parser before the command line of the service is imported: a backup script that calls
it a thousand times pays the start-up a thousand times.
"""

import sys


def main() -> int:
    """Run one command line; the value is the exit code (docs/CLI.md)."""
    argv = sys.argv[1:]
    if argv[:1] == ["engine"]:
        from strongroom.cli.engine import run as run_engine

        return run_engine(argv[1:])
    from strongroom.cli.main import run

    return run(argv)


if __name__ == "__main__":
    sys.exit(main())
