"""What can go wrong on the client's side of the API, and the exit codes of every command."""

from dataclasses import dataclass
from typing import ClassVar

from strongroom.base.errors import StrongroomError

# docs/CLI.md promises these to scripts.
EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_PARTLY_DONE = 3
EXIT_INTERRUPTED = 130


@dataclass(kw_only=True, eq=False)
class RequestRefused(StrongroomError):
    """The server answered with an error; `reason` is its sentence."""

    template: ClassVar[str] = "{reason}"
    reason: str
    status: int
    error_code: str
    request_id: str

    @property
    def published_code(self) -> str:
        return self.error_code


@dataclass(kw_only=True, eq=False)
class ServerUnreachable(StrongroomError):
    """No answer at the endpoint."""

    template: ClassVar[str] = (
        "No server answers at {endpoint}. Start it with `strongroom serve`, or name another one with --endpoint."
    )
    endpoint: str


@dataclass(kw_only=True, eq=False)
class TransportUntrusted(StrongroomError):
    """TLS with the endpoint could not be made."""

    template: ClassVar[str] = (
        "There is no trusted TLS with {endpoint}: {reason}. Name the file of its certificate's authority in "
        "SSL_CERT_FILE, or check --endpoint."
    )
    endpoint: str
    reason: str


@dataclass(kw_only=True, eq=False)
class AnswerStrange(StrongroomError):
    """Something answers, but it is not Strongroom, or its answer was cut off."""

    template: ClassVar[str] = "{endpoint} gave an answer that is not Strongroom's: {reason}. Check --endpoint."
    endpoint: str
    reason: str


@dataclass(kw_only=True, eq=False)
class AnswerCutOff(StrongroomError):
    """A download ended before its end; nothing of it is kept."""

    template: ClassVar[str] = (
        "The download ended early: {got} of {wanted} bytes came. The data is damaged, or the server was stopped; "
        "the server's log tells which."
    )
    got: int
    wanted: int


@dataclass(kw_only=True, eq=False)
class NameUnknown(StrongroomError):
    """Nothing has that name."""

    template: ClassVar[str] = "No {kind} is named {name}. `{command}` shows those that exist."
    kind: str
    name: str
    command: str


@dataclass(kw_only=True, eq=False)
class NameAmbiguous(StrongroomError):
    """Several things have that name."""

    template: ClassVar[str] = "Several are named {name}: {ids}. Give the id of the {kind} you mean."
    kind: str
    name: str
    ids: str


@dataclass(kw_only=True, eq=False)
class CommandRefused(StrongroomError):
    """The command itself cannot go on: a file in the way, a confirmation not given."""

    template: ClassVar[str] = "{reason}"
    reason: str
