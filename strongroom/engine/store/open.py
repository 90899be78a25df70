"""Which store a URL means. A new kind of store is one line in the table."""

from collections.abc import Callable
from urllib.parse import SplitResult, unquote, urlsplit

from strongroom.base.errors import ConfigError
from strongroom.engine.store.access import S3Access
from strongroom.engine.store.base import Store
from strongroom.engine.store.posix import PosixStore
from strongroom.engine.store.retry import RetryingStore


def _open_file(url: SplitResult, _: S3Access) -> Store:
    path = unquote(url.path)
    if url.netloc not in ("", "localhost") or url.query or url.fragment or "\0" in path or not path.startswith("/"):
        raise ConfigError(reason=f"The store {url.geturl()} is not of the form file:///absolute/path.")
    return PosixStore(path.rstrip("/") or "/")


def _open_s3(url: SplitResult, access: S3Access) -> Store:
    from strongroom.engine.store.s3 import open_s3  # its clients take 0.2 s to import

    return open_s3(url, access)


SCHEMES: dict[str, Callable[[SplitResult, S3Access], Store]] = {"file": _open_file, "s3": _open_s3}


def open_store(url: str, s3: S3Access | None = None) -> Store:
    """The store at `url`, with retries. `s3` is needed for s3:// only.

    Raises ConfigError for a wrong URL or missing keys, StoreError if it cannot be used.
    """
    parts = urlsplit(url)
    opener = SCHEMES.get(parts.scheme)
    if opener is None:
        known = ", ".join(f"{scheme}://" for scheme in sorted(SCHEMES))
        raise ConfigError(reason=f"The store {url} is of no kind that is known. Known are: {known}")
    return RetryingStore(opener(parts, s3 or S3Access()))
