"""The read limit of a source."""

from strongroom.sources.pace import BURST_S, Pace


class FakeTime:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def monotonic_s(self) -> float:
        return self.now_s

    def sleep(self, duration_s: float) -> None:
        self.now_s += duration_s


def test_reading_takes_as_long_as_the_limit_says() -> None:
    """100 pieces of 1000 bytes at 10 000 bytes a second take 10 s, but for the burst at the start."""
    time = FakeTime()
    pace = Pace(10_000, monotonic_s=time.monotonic_s, sleep=time.sleep)
    for _ in range(100):
        pace.take(1000)
    assert abs(time.now_s - 1000.0 - (10 - BURST_S)) < 1e-6


def test_a_pause_is_not_saved_up() -> None:
    """After a pause only the burst is free, not all that could have been read meanwhile."""
    time = FakeTime()
    pace = Pace(1000, monotonic_s=time.monotonic_s, sleep=time.sleep)
    pace.take(1000)
    time.now_s += 3600
    begun_s = time.now_s
    pace.take(2000)
    assert abs(time.now_s - begun_s - (2 - BURST_S)) < 1e-6


def test_no_limit_never_waits() -> None:
    """None is no limit."""
    time = FakeTime()
    Pace(None, monotonic_s=time.monotonic_s, sleep=time.sleep).take(1 << 60)
    assert time.now_s == 1000.0
