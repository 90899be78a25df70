"""Which store a URL means. A new kind of store is one line in the table."""

from collections.abc import Callable
from urllib.parse import SplitResult, unquote, urlsplit

from strongroom.base.errors import ConfigError
from strongroom.engine.store.base import Store
from strongroom.engine.store.posix import PosixStore
from strongroom.engine.store.retry import RetryingStore


def _open_file(url: SplitResult) -> Store:
    path = unquote(url.path)
    if url.netloc not in ("", "localhost") or url.query or url.fragment or "\0" in path or not path.startswith("/"):
        raise ConfigError(reason=f"The store {url.geturl()} is not of the form file:///absolute/path.")
    return PosixStore(path.rstrip("/") or "/")


SCHEMES: dict[str, Callable[[SplitResult], Store]] = {"file": _open_file}


def open_store(url: str) -> Store:
    """The store at `url`, with retries. Raises ConfigError for a wrong URL, StoreError if it cannot be used."""
    parts = urlsplit(url)
    opener = SCHEMES.get(parts.scheme)
    if opener is None:
        known = ", ".join(f"{scheme}://" for scheme in sorted(SCHEMES))
        raise ConfigError(reason=f"The store {url} is of no kind that is known. Known are: {known}")
    return RetryingStore(opener(parts))
