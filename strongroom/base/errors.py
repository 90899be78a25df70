"""Every error of the product, as a class with typed fields and one sentence.

`message` is safe for tenants and says what to do; `detail` is for operators. `code` is the number of the published
CBR table (contract/errors.md); lower floors know no HTTP, so the status is chosen in api/errors.py and the exit code
in cli. `retryable` is decided where the knowledge is and obeyed in store/retry.py and operations/worker.py only.
"""

from dataclasses import dataclass
from typing import ClassVar


@dataclass(kw_only=True, eq=False)
class StrongroomError(Exception):
    """Root of the tree. Fields of a subclass fill its `template`."""

    code: ClassVar[str] = "BackupService.9910"
    template: ClassVar[str] = "Unknown error. Give the operator the request id."
    retryable: ClassVar[bool] = False

    detail: str = ""

    @property
    def message(self) -> str:
        """One sentence for the tenant: what is wrong and what to do."""
        return self.template.format(**self.__dict__)

    @property
    def published_code(self) -> str:
        """The code a client sees; the class decides it, except where one class serves many cases (Conflict)."""
        return self.code

    def __str__(self) -> str:
        return f"{self.message} [{self.detail}]" if self.detail else self.message


# --- request side ---------------------------------------------------------------------------------------------------
@dataclass(kw_only=True, eq=False)
class InvalidRequest(StrongroomError):
    """A member of a request is missing, malformed or out of range."""

    code: ClassVar[str] = "BackupService.9900"
    template: ClassVar[str] = "{reason}"
    reason: str


@dataclass(kw_only=True, eq=False)
class Unauthenticated(StrongroomError):
    """No credentials, or credentials that do not hold."""

    code: ClassVar[str] = "APIGW.0301"
    template: ClassVar[str] = "Incorrect IAM authentication information: {reason}"
    reason: str


@dataclass(kw_only=True, eq=False)
class Forbidden(StrongroomError):
    """Who it is is known; it may not do this."""

    code: ClassVar[str] = "BackupService.8600"
    template: ClassVar[str] = "{reason}"
    reason: str


@dataclass(kw_only=True, eq=False)
class NotFound(StrongroomError):
    """Missing, or of somebody else: the answer is the same."""

    template: ClassVar[str] = "{kind} {id} does not exist."
    kind: ClassVar[str] = "Object"
    id: str

    @property
    def message(self) -> str:
        return self.template.format(kind=self.kind, id=self.id)


class VaultNotFound(NotFound):
    code = "BackupService.6105"
    kind = "Vault"


class PolicyNotFound(NotFound):
    code = "BackupService.6000"
    kind = "Policy"


@dataclass(kw_only=True, eq=False)
class PolicyNotApplied(NotFound):
    """vault: its name."""

    code: ClassVar[str] = "BackupService.6002"
    template: ClassVar[str] = "Policy {id} is not applied to vault {vault}."
    vault: str

    @property
    def message(self) -> str:
        return self.template.format(id=self.id, vault=self.vault)


class BackupNotFound(NotFound):
    code = "BackupService.6200"
    kind = "Backup"


class MemberNotFound(NotFound):
    """A share of a backup, named by the project that receives it."""

    code = "BackupService.6705"
    kind = "Share member"


class ShareEnded(NotFound):
    """A restore read a backup of another project, which shares it no longer. id: the backup's."""

    code = "BackupService.6705"
    template = (
        "Backup {id} is not shared with your project any more: its owner revoked the share or deleted the backup, or "
        "your project gave it up. Restore another backup."
    )


class CheckpointNotFound(NotFound):
    code = "BackupService.6217"
    kind = "Restore point"


class TaskNotFound(NotFound):
    code = "BackupService.6500"
    kind = "Operation log"


class ResourceNotFound(NotFound):
    code = "BackupService.6302"
    kind = "Resource"


class DiskNotFound(NotFound):
    code = "BackupService.7000"
    kind = "Disk"


class ServerNotFound(NotFound):
    code = "BackupService.7100"
    kind = "Server"


class NotificationNotFound(NotFound):
    """Of the project: ours, so with the general code."""

    code = "BackupService.9900"
    kind = "Notification"


class AccountNotFound(NotFound):
    """A project, user, domain or access key of the identity."""

    code = "BackupService.9900"
    kind = "Account"


@dataclass(kw_only=True, eq=False)
class TokenNotFound(NotFound):
    """Of another user, expired, revoked, or never a token: the answer is the same."""

    code: ClassVar[str] = "BackupService.9900"
    kind: ClassVar[str] = "Token"
    template: ClassVar[str] = "The token of X-Subject-Token does not exist, has ended, or is not yours."
    id: str = ""


class AgentNotFound(NotFound):
    code = "BackupService.7410"
    kind = "Agent"


class TagNotFound(NotFound):
    code = "BackupService.6601"
    kind = "Tag"


class EntryNotFound(NotFound):
    """A path that the restore point does not hold."""

    code = "BackupService.6302"
    kind = "Path"


@dataclass(kw_only=True, eq=False)
class Conflict(StrongroomError):
    """Legal in itself, refused in this state. Code and sentence come from the call (contract/errors.md has 90)."""

    template: ClassVar[str] = "{reason}"
    reason: str
    conflict_code: str

    @property
    def published_code(self) -> str:
        return f"BackupService.{self.conflict_code}"


@dataclass(kw_only=True, eq=False)
class QuotaExceeded(StrongroomError):
    """limit: number and what of, such as `20 vaults`."""

    template: ClassVar[str] = "The quota of {limit} is used up. Delete some, or ask the operator for more."
    limit: str
    quota_code: str

    @property
    def published_code(self) -> str:
        return f"BackupService.{self.quota_code}"


@dataclass(kw_only=True, eq=False)
class TooLarge(StrongroomError):
    code: ClassVar[str] = "APIGW.0201"
    template: ClassVar[str] = "The request body is larger than {limit_bytes} bytes."
    limit_bytes: int


@dataclass(kw_only=True, eq=False)
class TooSlow(StrongroomError):
    code: ClassVar[str] = "APIGW.0201"
    template: ClassVar[str] = "The request body did not arrive within {limit_s} seconds. Send it again."
    limit_s: int


@dataclass(kw_only=True, eq=False)
class Unsupported(StrongroomError):
    code: ClassVar[str] = "BackupService.9900"
    template: ClassVar[str] = "{reason}"
    reason: str


@dataclass(kw_only=True, eq=False)
class DatabaseBehind(StrongroomError):
    """The database is an older copy: the store holds restore points of a vault that it has never heard of."""

    template: ClassVar[str] = (
        "The store holds {count} restore points of this vault that the database does not know, as after an older copy "
        "of the database was put back. Run `strongroom vault sync` for this vault, or stop the server and run "
        "`strongroom rebuild`; until then nothing is pruned."
    )
    count: int


@dataclass(kw_only=True, eq=False)
class Unavailable(StrongroomError):
    """A part that is needed does not answer; nothing was changed."""

    template: ClassVar[str] = "{reason}"
    retryable: ClassVar[bool] = True
    reason: str


class Throttled(Unavailable):
    """Too much was asked in too short a time; the sentence says when to come back."""

    code = "APIGW.0308"


@dataclass(kw_only=True, eq=False)
class Canceled(StrongroomError):
    template: ClassVar[str] = "Canceled on request."


@dataclass(kw_only=True, eq=False)
class ConfigError(StrongroomError):
    """A setting, or the state folder, is not usable; the sentence names it."""

    template: ClassVar[str] = "{reason}"
    reason: str


# --- store ----------------------------------------------------------------------------------------------------------
@dataclass(kw_only=True, eq=False)
class StoreError(StrongroomError):
    """The store refused or broke. Nothing is known to be stored after it. Names of objects are for operators only."""

    template: ClassVar[str] = "The backup store failed. Try again later; if it stays so, tell the operator."
    name: str

    def __post_init__(self) -> None:
        self.detail = f"{self.name}: {self.detail}" if self.detail else self.name


class ObjectMissing(StoreError):
    template = "The backup store does not hold an object that should be there. Tell the operator."


class ObjectExists(StoreError):
    template = "The backup store already holds an object of that name."


class StoreFull(StoreError):
    code = "BackupService.6107"
    template = "The backup store is full. Free space or enlarge it, then run the task again."


class StoreDenied(StoreError):
    template = "The backup store denied access. Tell the operator."


class StoreTimeout(StoreError):
    template = "The backup store did not answer in time. Try again later."
    retryable = True


@dataclass(kw_only=True, eq=False)
class ShortRead(StoreError):
    template: ClassVar[str] = "The backup store returned {got} of {wanted} bytes that were asked for."
    retryable: ClassVar[bool] = True
    wanted: int
    got: int


# --- repository -----------------------------------------------------------------------------------------------------
@dataclass(kw_only=True, eq=False)
class RepositoryError(StrongroomError):
    template: ClassVar[str] = "The repository cannot be used: {reason}"
    reason: str


class Fenced(RepositoryError):
    """A newer attempt of the same task exists; this one must not write any more."""

    template = "A newer attempt of this task took over: {reason}"


class FormatUnknown(RepositoryError):
    template = "The repository is of a format this version does not read: {reason}"


class KeyWrong(RepositoryError):
    template = "The key does not open this repository: {reason}"


class Corrupt(RepositoryError):
    """Stored bytes are not what was written. Never retried, never swallowed."""

    template = "Damaged data in the repository: {reason}. Use another restore point, and tell the operator."


class ChunkCorrupt(Corrupt):
    template = "A damaged chunk: {reason}. Use another restore point, and tell the operator."


class PackCorrupt(Corrupt):
    template = "A damaged pack: {reason}. Use another restore point, and tell the operator."


class IndexIncomplete(Corrupt):
    template = "The index is damaged or incomplete: {reason}"


class ManifestCorrupt(Corrupt):
    template = "A damaged manifest: {reason}. Use another restore point, and tell the operator."


# --- sources --------------------------------------------------------------------------------------------------------
@dataclass(kw_only=True, eq=False)
class SourceError(StrongroomError):
    """The protected resource cannot be read, or the target cannot be written."""

    code: ClassVar[str] = "BackupService.6215"
    template: ClassVar[str] = "{reason}"
    reason: str


class SourceGone(SourceError):
    """What was registered is not there (any more)."""


class SourceDenied(SourceError):
    """The service may not read or write it."""


class SourceUnreachable(SourceError):
    """What reads the resource is not connected (any more); it may be again in a while."""

    retryable = True


class SourceShort(SourceError):
    """Fewer bytes came than the source said it has."""


class SourceChanged(SourceError):
    """It changed in a way that makes this point useless."""


class MachineBusy(SourceError):
    """Somebody else is at work on the machine; nothing was touched."""


class TargetBusy(SourceError):
    """Another process has the target open."""

    code = "BackupService.2011"


class AttemptAlive(TargetBusy):
    """An earlier attempt of this very task still holds the target: frozen, most likely. It will let go."""


class TargetTooSmall(SourceError):
    """The backup does not fit."""

    code = "BackupService.2001"


class TargetDenied(SourceError):
    """The target refuses writes, or its layout would lead a restore out of its root."""

    code = "BackupService.2011"


# --- jobs -----------------------------------------------------------------------------------------------------------
@dataclass(kw_only=True, eq=False)
class WorkerStops(StrongroomError):
    """The worker was asked to end; the task is given back and goes on elsewhere or later."""

    template: ClassVar[str] = "The worker is stopping. The task goes on when a worker is there again."
    retryable: ClassVar[bool] = True


@dataclass(kw_only=True, eq=False)
class ComeAgain(StrongroomError):
    """Somebody else is at work: the task is given back, and looked at again after `delay_s`. Not an attempt."""

    template: ClassVar[str] = "The work goes on elsewhere; the task looks again in a while."
    delay_s: float


# --- other regions --------------------------------------------------------------------------------------------------
@dataclass(kw_only=True, eq=False)
class RegionUnreachable(Unavailable):
    """The other region did not answer, or not like one of ours. The sentence says what to look at."""

    code: ClassVar[str] = "BackupService.6118"
    template: ClassVar[str] = "Region {region} cannot be reached: {reason}"
    region: str


class RegionSilent(StoreTimeout):
    """As RegionUnreachable, for what is read of the other region's store."""

    code = "BackupService.6118"
    template = "The other region does not answer. The task goes on when it does."


class RecordNotFound(NotFound):
    """One of the two regions has no such record (any more)."""

    code = "BackupService.6200"
    kind = "Replication record"


class PeerObjectNotFound(NotFound):
    """The store of the region that was asked does not hold it, or does not offer it."""

    code = "BackupService.6302"
    kind = "Object"


@dataclass(kw_only=True, eq=False)
class RegionRefused(StrongroomError):
    """The other region answered, and said no. error_code and reason are its own; status of its answer."""

    template: ClassVar[str] = "Region {region} refuses: {reason}"
    region: str
    reason: str
    status: int
    error_code: str

    @property
    def published_code(self) -> str:
        return self.error_code
