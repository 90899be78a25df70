"""Another region: a Strongroom of its own that replicas are sent to, and come from."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from blake3 import blake3

REGION_HEADER = "X-Strongroom-Region"  # whom a request is for
SECRET_HEX_DIGITS = 64  # 32 random bytes, the same on both sides


@dataclass(frozen=True, kw_only=True)
class Region:
    """One entry of regions.toml.

    name      as that server's own setting `region` says         endpoint  its base URL, without a slash at the end
    secret    32 bytes that only the two servers know            ca_file   of its certificate; None: the system's
    projects  project here -> project there, in both directions: nothing goes to, or comes from, any other
    """

    name: str
    endpoint: str
    secret: bytes = field(repr=False)
    ca_file: Path | None = None
    projects: Mapping[str, str] = field(default_factory=dict)

    @property
    def signing_key(self) -> str:
        """Signs requests between the two."""
        return self._derived("request").hex()

    @property
    def wrapping_key(self) -> bytes:
        """Wraps the keys of a domain on their way, beside TLS."""
        return self._derived("wrap")

    def maps(self, *, here: str, there: str) -> bool:
        """Whether the two projects may have replicas of each other."""
        return self.projects.get(here) == there

    def _derived(self, purpose: str) -> bytes:
        return blake3(self.secret, derive_key_context=f"strongroom v1 region {purpose}").digest()
