"""What the operator's settings say of messages that leave: to which SMTP server, and where webhooks may go."""

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Outgoing:
    """smtp_host None: no mail. smtp_tls: starttls, tls or none.

    allow  hosts and networks that webhooks may reach although they are not public, and without TLS
    """

    smtp_host: str | None = None
    smtp_port: int = 25
    smtp_tls: str = "starttls"
    smtp_user: str | None = None
    smtp_password: str | None = field(default=None, repr=False)
    smtp_from: str = "strongroom@localhost"
    allow: Sequence[str] = ()
