"""Byte units, and the two roundings the CBR API uses: sizes of resources in GB, of backups in MB, both upwards."""

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30
TIB = 1 << 40


def ceil_div(value: int, unit: int) -> int:
    """Quotient rounded up; 0 stays 0."""
    return -(-value // unit)


def gigabytes(size_bytes: int) -> int:
    """Logical size as the API shows it: GB (2**30 bytes), rounded up (RULINGS 19)."""
    return ceil_div(size_bytes, GIB)


def megabytes(size_bytes: int) -> int:
    """Stored size as the API shows it: MB (2**20 bytes), rounded up, so at least 1 if there is any (RULINGS 19)."""
    return ceil_div(size_bytes, MIB)


def human_bytes(size_bytes: float) -> str:
    """Text for people, such as `1.4 GiB`; three significant digits are enough to compare."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(size_bytes) < 1024:
            return f"{size_bytes:.0f} {unit}" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1024
    return f"{size_bytes:.1f} PiB"
