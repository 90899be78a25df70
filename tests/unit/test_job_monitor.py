"""What a running job tells of itself: bytes, what is known of the total, and how fast it goes."""

from strongroom.operations.monitor import JobMonitor


def test_a_total_is_exact_estimated_or_unknown() -> None:
    """A counted total is exact; the size at the last look is an estimate; passed by the work, it is worth nothing."""
    monitor = JobMonitor(expected_bytes=1000)
    monitor.advance(100, 0, 1)
    found = monitor.progress(0.0)
    assert (found.bytes_total, found.total_exact, found.percent) == (1000, False, 10)
    monitor.advance(1001, 0, 2)
    found = monitor.progress(1.0)
    assert (found.bytes_total, found.total_exact, found.percent) == (0, False, 0)
    monitor.advance(1500, 2000, 3)
    found = monitor.progress(2.0)
    assert (found.bytes_total, found.total_exact, found.percent) == (2000, True, 75)
    monitor.advance(2000, 2000, 4)
    assert monitor.progress(3.0).percent == 99, "100 is said by the transaction that ends the task"


def test_the_rate_is_of_the_last_seconds() -> None:
    """Nothing after one look; then of what lies some ten seconds back, so that a stall shows."""
    monitor = JobMonitor()
    assert monitor.progress(0.0).rate_bytes_s is None
    for second in range(2, 32, 2):
        monitor.advance(second * 500, 0, 0)
        assert monitor.progress(float(second)).rate_bytes_s == 500
    rates = [monitor.progress(float(second)).rate_bytes_s for second in range(32, 46, 2)]
    assert rates == sorted(rates, reverse=True)  # type: ignore[type-var]
    assert rates[-1] == 0, "a job that hangs is seen to hang"


def test_two_looks_at_one_moment_are_no_rate() -> None:
    """No division by nothing, and work that begins again is never negative."""
    monitor = JobMonitor(bytes_done=10)
    monitor.progress(5.0)
    assert monitor.progress(5.0).rate_bytes_s is None
    monitor.advance(0, 0, 0)
    assert monitor.progress(7.0).rate_bytes_s == 0
