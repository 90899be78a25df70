"""Tokens, and secrets at rest: both sealed by one ring of keys that is derived from the master key. Pure: no database.

A token is a Fernet token (AES-128-CBC and HMAC-SHA256) that holds a msgpack array. It says who logged in and for which
project, never what that user may do: roles are read when it is used, so that taking one away works at once.
"""

import base64
from collections.abc import Sequence
from datetime import UTC, datetime

import msgspec
from blake3 import blake3
from cryptography.fernet import Fernet, InvalidToken, MultiFernet

from strongroom.base.errors import Corrupt, Unauthenticated

TOKEN_CHARS_MAX = 8192  # the longest that real clouds send (contract/identity.md section 2)
_SECRET_BYTES_MIN = 32

_TOKENS = "strongroom v1 identity tokens"
_SECRETS = "strongroom v1 identity secrets"


class Token(msgspec.Struct, frozen=True, array_like=True, kw_only=True):
    """What a token says.

    project_id  the scope; "" for none        methods  how its first owner proved who it is, such as ("password",)
    issued_at, expires_at  aware UTC
    """

    user_id: str
    project_id: str
    methods: tuple[str, ...]
    issued_at: datetime
    expires_at: datetime


class Ring:
    """Keys of one installation. The newest master secret seals; older ones still open, until they are left out."""

    def __init__(self, master_secrets: Sequence[bytes]) -> None:
        """`master_secrets`, newest first: bytes of the master key file, at least 32 each."""
        assert master_secrets
        assert all(len(secret) >= _SECRET_BYTES_MIN for secret in master_secrets)
        self._tokens = MultiFernet([_fernet(_TOKENS, secret) for secret in master_secrets])
        self._secrets = MultiFernet([_fernet(_SECRETS, secret) for secret in master_secrets])
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(Token)

    def __repr__(self) -> str:
        return "Ring()"

    def seal_token(self, token: Token) -> str:
        """The text of a token, some 300 characters, safe in a header."""
        return self._tokens.encrypt(self._encoder.encode(token)).decode("ascii")

    def open_token(self, text: str, now: datetime) -> Token:
        """Raises Unauthenticated for anything that this ring did not seal, and for what has expired."""
        if len(text) > TOKEN_CHARS_MAX:
            raise Unauthenticated(reason="decrypt token fail")
        try:
            token = self._decoder.decode(self._tokens.decrypt(text.encode("utf-8", "replace")))
        except (InvalidToken, msgspec.DecodeError) as err:
            raise Unauthenticated(reason="decrypt token fail") from err
        if now >= token.expires_at:
            raise Unauthenticated(reason="token expires", detail=f"at {token.expires_at.astimezone(UTC).isoformat()}")
        return token

    def seal_secret(self, secret: str) -> bytes:
        """A secret as it may stand in the database."""
        return self._secrets.encrypt(secret.encode())

    def open_secret(self, sealed: bytes) -> str:
        """Raises Corrupt when no key of the ring opens it: the master key is another one, or the row is damaged."""
        try:
            return self._secrets.decrypt(sealed).decode()
        except InvalidToken as err:
            raise Corrupt(reason="an access key's secret does not open with this master key") from err


def _fernet(purpose: str, master_secret: bytes) -> Fernet:
    return Fernet(base64.urlsafe_b64encode(blake3(master_secret, derive_key_context=purpose).digest()))
