"""`strongroom conformance`: the kit of strongroom/conformance on the command line."""

from strongroom.cli.conformance.command import register

__all__ = ["register"]
