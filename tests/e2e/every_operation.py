"""Every operation that a server answers: the table of the nouns, the identity, and the operator's accounts."""

from typing import Any

from strongroom.api.accounts import AccountsApi
from strongroom.api.identity import IdentityApi
from strongroom.api.operation import Operation
from strongroom.api.table import OPERATIONS


def every_operation() -> list[Operation]:
    """Rows to look at; the handlers of the identity stand on nothing and must not be called."""
    nothing: Any = None
    identity = IdentityApi(callers=nothing, logins=nothing, accounts=nothing, region="", endpoint=None)
    admin = AccountsApi(accounts=nothing, callers=nothing, passwords=nothing, keys=nothing, endpoint=None)
    return [*OPERATIONS, *identity.operations, *admin.operations]
