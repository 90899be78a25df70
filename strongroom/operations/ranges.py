"""Ranges of a disk that are done, as the task's row keeps them for the next attempt."""

STATE_INTERVAL_S = 1.0  # they are saved at most this often; what is lost is written again


def merged(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Half-open ranges (offset, length), sorted and joined where they touch."""
    joined: list[tuple[int, int]] = []
    for offset, length in sorted(ranges):
        if joined and offset <= joined[-1][0] + joined[-1][1]:
            start = joined[-1][0]
            joined[-1] = (start, max(joined[-1][1], offset + length - start))
        else:
            joined.append((offset, length))
    return joined
