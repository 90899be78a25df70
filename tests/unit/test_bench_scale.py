"""The model of docs/SCALE.md: what it says where the answer is known."""

from dataclasses import replace

import pytest

from bench.scale import model
from bench.scale.model import ASSUMED, Large


def test_a_fit_finds_the_line_that_points_lie_on() -> None:
    """y = 3 + 2 log10 x, from three of its points."""
    line = model.fit([(10, 5.0), (100, 7.0), (1000, 9.0)])
    assert line.at(10**6) == pytest.approx(15.0)


def test_one_thread_waits_for_itself_and_many_for_the_cores() -> None:
    """One task at a time takes its CPU and its wait; of very many the cores are the limit; none passes either."""
    assert model.throughput(1, 0.1, 1, 0.9) == pytest.approx(1.0)
    assert model.throughput(500, 0.1, 2, 0.9) == pytest.approx(20.0, rel=0.01)
    rates = [model.throughput(n, 0.1, 2, 0.9) for n in range(1, 60)]
    assert rates == sorted(rates)
    assert all(rate <= min(20.0, n / 1.0) + 1e-9 for n, rate in enumerate(rates, 1))


def test_a_day_that_fits_is_not_late_and_one_that_does_not_is() -> None:
    """What cannot be run while it falls due is run afterwards; looks in vain take from PostgreSQL what tasks need."""
    small = Large(workers=1000, points=1e8, task_ms=20, look_ms=0.2, tickers_ms=2)
    day = model.simulate(small)
    assert day.late_h < 0.1
    assert day.cores["tasks"] == pytest.approx(
        1e8 / ASSUMED["days a restore point is kept"] / 8 / 3600 * 0.02, rel=0.02
    )
    assert model.simulate(replace(small, points=1e10)).late_h > 1
    dear = replace(small, look_ms=5)
    assert model.simulate(dear).cores["looks of woken workers"] > 10 * day.cores["looks of woken workers"]
