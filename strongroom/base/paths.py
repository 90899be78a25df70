"""Paths are bytes; people and JSON want text."""


def readable_path(raw: bytes) -> str:
    """Text of a path: UTF-8 as it is, bytes that are not UTF-8 as %XX. For reading only; two paths may look alike."""
    text = raw.decode("utf-8", "surrogateescape")
    return "".join(f"%{ord(c) - 0xDC00:02X}" if "\udc80" <= c <= "\udcff" else c for c in text)
