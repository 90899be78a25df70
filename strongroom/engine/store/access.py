"""How an S3 store is reached. A value of its own, so that naming it does not import the client."""

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class S3Access:
    """Endpoint and keys of one object store. The keys never show in a repr.

    endpoint    base URL without a path; None means AWS in `region`
    allow_http  accept an endpoint without TLS, for servers on this machine and closed networks
    """

    endpoint: str | None = None
    region: str = "us-east-1"
    access_key: str | None = field(default=None, repr=False)
    secret_key: str | None = field(default=None, repr=False)
    allow_http: bool = False
