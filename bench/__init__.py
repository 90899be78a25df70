"""What Strongroom costs, measured. Each file says how it is run; docs/benchmarks has what came out."""


def parse_count(text: str) -> int:
    """A decimal count: 2M are two million."""
    units = {"K": 10**3, "M": 10**6, "G": 10**9}
    return int(float(text[:-1]) * units[text[-1]]) if text[-1] in units else int(text)
