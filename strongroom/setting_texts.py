"""The texts of settings: each function takes the text and returns the value, or makes a function that does.

All raise ValueError with the end of the sentence "NAME must be ...".
"""

import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from strongroom.base.units import GIB, KIB, MIB

_SIZE = re.compile(r"(\d{1,15})\s*(|B|KiB|MiB|GiB)")
_UNIT_BYTES = {"": 1, "B": 1, "KiB": KIB, "MiB": MIB, "GiB": GIB}


@dataclass(frozen=True, kw_only=True)
class Listen:
    """Where the server waits: a host (address or name) and a port, 0 for any free one."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """True when only this machine can connect."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"


def networks(text: str) -> tuple[str, ...]:
    found = () if text == "none" else tuple(part.strip() for part in text.split(","))
    try:
        for one in found:
            ipaddress.ip_network(one)
    except ValueError as err:
        raise ValueError("none, or addresses and networks with commas between them, as 127.0.0.1, 10.0.0.0/8") from err
    return found


def listen_at(text: str) -> Listen:
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isdigit() or int(port) > 65535:
        raise ValueError("HOST:PORT, such as 127.0.0.1:8799")
    return Listen(host=host, port=int(port))


def boolean(text: str) -> bool:
    if text.lower() not in ("true", "false", "1", "0", "yes", "no"):
        raise ValueError("true or false")
    return text.lower() in ("true", "1", "yes")


def number(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not re.fullmatch(r"\d{1,15}", text) or not low <= int(text) <= high:
            raise ValueError(f"a whole number from {low} to {high}")
        return int(text)

    return parse


def size(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        found = _SIZE.fullmatch(text)
        value = int(found[1]) * _UNIT_BYTES[found[2]] if found else -1
        if not low <= value <= high:
            raise ValueError(f"a size from {low} to {high} bytes, such as 512MiB")
        return value

    return parse


def one_of(*choices: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in choices:
            raise ValueError(f"one of {', '.join(choices)}")
        return text

    return parse


def matching(pattern: re.Pattern[str], what: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if not pattern.fullmatch(text):
            raise ValueError(what)
        return text

    return parse


def url_of(schemes: tuple[str, ...], example: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if urlsplit(text).scheme not in schemes:
            raise ValueError(f"a URL such as {example}")
        return text

    return parse


def mail_address(text: str) -> str:
    if not re.fullmatch(r"[!-~]+@[!-~]+", text):
        raise ValueError("an address such as backup@example.org")
    return text


def words(text: str) -> tuple[str, ...]:
    return tuple(word.strip().lower() for word in text.split(",") if word.strip())


def path_of(text: str) -> Path:
    return Path(text).expanduser().absolute()
