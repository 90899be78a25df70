"""Tokens, and secrets at rest. Pure: no database.

A token is a Fernet token (AES-128-CBC and HMAC-SHA256) that holds a msgpack array. It says who logged in and for which
project, never what that user may do: roles are read when it is used, so that taking one away works at once. Tokens have
keys of their own (control/token_keys), which are changed while the service runs; those, and the secrets of access keys,
are sealed by a ring that is derived from the master key.
"""

import base64
import secrets
from collections.abc import Sequence
from datetime import UTC, datetime

import msgspec
from blake3 import blake3
from cryptography.fernet import Fernet, InvalidToken, MultiFernet

from strongroom.base.errors import Corrupt, Unauthenticated

_REMEMBERED_MAX = 10_000  # tokens whose content is remembered: what a token says never changes
TOKEN_CHARS_MAX = 8192  # the longest that real clouds send (contract/identity.md section 2)
TOKEN_KEY_BYTES = 32
_SECRET_BYTES_MIN = 32
_AUDIT_BYTES = 12

_TOKENS = "strongroom v1 identity tokens"
_SECRETS = "strongroom v1 identity secrets"


class Token(msgspec.Struct, frozen=True, array_like=True, kw_only=True):
    """What a token says.

    project_id  the scope; "" for none        methods  how its first owner proved who it is, such as ("password",)
    issued_at, expires_at  aware UTC          audit_id its name in lists of revoked tokens: random, no secret
    """

    user_id: str
    project_id: str
    methods: tuple[str, ...]
    issued_at: datetime
    expires_at: datetime
    audit_id: str = ""


class TokenRing:
    """Keys of tokens: the first one seals, all of them open."""

    def __init__(self, keys: Sequence[bytes]) -> None:
        """`keys`: 32 bytes each, the one that seals first."""
        assert keys
        self._fernet = MultiFernet([_fernet(key) for key in keys])
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(Token)
        self._opened: dict[str, Token] = {}  # by these keys, which are those of a few seconds: TokenKeys

    def __repr__(self) -> str:
        return "TokenRing()"

    def seal(self, token: Token) -> str:
        """The text of a token, some 300 characters, safe in a header."""
        return self._fernet.encrypt(self._encoder.encode(token)).decode("ascii")

    def open(self, text: str, now: datetime) -> Token:
        """Raises Unauthenticated for anything that this ring did not seal, and for what has expired."""
        token = self._opened.get(text) or self._decrypted(text)
        if now >= token.expires_at:
            raise Unauthenticated(reason="token expires", detail=f"at {token.expires_at.astimezone(UTC).isoformat()}")
        return token

    def _decrypted(self, text: str) -> Token:
        if len(text) > TOKEN_CHARS_MAX:
            raise Unauthenticated(reason="decrypt token fail")
        try:
            token = self._decoder.decode(self._fernet.decrypt(text.encode("utf-8", "replace")))
        except (InvalidToken, msgspec.DecodeError) as err:
            raise Unauthenticated(reason="decrypt token fail") from err
        if len(self._opened) < _REMEMBERED_MAX:
            self._opened[text] = token
        return token


class Ring:
    """What seals secrets at rest. The newest master secret seals; older ones still open, until they are left out."""

    def __init__(self, master_secrets: Sequence[bytes]) -> None:
        """`master_secrets`, newest first: bytes of the master key file, at least 32 each."""
        assert master_secrets
        assert all(len(secret) >= _SECRET_BYTES_MIN for secret in master_secrets)
        self._secrets = MultiFernet([_fernet(_derived(_SECRETS, secret)) for secret in master_secrets])
        self._first_token_key = _derived(_TOKENS, master_secrets[0])

    def __repr__(self) -> str:
        return "Ring()"

    @property
    def first_token_key(self) -> bytes:
        """The key of tokens before it is changed for the first time: every process that starts first has the same."""
        return self._first_token_key

    def seal_secret(self, secret: str) -> bytes:
        """A secret as it may stand in the database."""
        return self._secrets.encrypt(secret.encode())

    def open_secret(self, sealed: bytes) -> str:
        """Raises Corrupt when no key of the ring opens it: the master key is another one, or the row is damaged."""
        try:
            return self._secrets.decrypt(sealed).decode()
        except InvalidToken as err:
            raise Corrupt(reason="a secret of the database does not open with this master key") from err


def new_audit_id() -> str:
    """The name of a new token."""
    return secrets.token_urlsafe(_AUDIT_BYTES)


def _derived(purpose: str, master_secret: bytes) -> bytes:
    return blake3(master_secret, derive_key_context=purpose).digest()


def _fernet(key: bytes) -> Fernet:
    return Fernet(base64.urlsafe_b64encode(key))
