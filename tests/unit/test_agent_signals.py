"""An agent that is told to end while it holds a lock."""

import signal
import threading

from strongroom.cli.agent_host import end_with_signals


def test_a_signal_that_interrupts_a_lock_holder_does_not_wait_for_itself() -> None:
    """SIGTERM arrives in the middle of a read: what stops the agent gets the lock when the read has let go of it."""
    lock, stopped = threading.Lock(), threading.Event()

    def stop() -> None:
        if lock.acquire(timeout=20):
            stopped.set()

    before = [(number, signal.getsignal(number)) for number in (signal.SIGTERM, signal.SIGINT)]
    try:
        end_with_signals(stop)
        with lock:
            signal.raise_signal(signal.SIGTERM)
            assert not stopped.is_set()
        assert stopped.wait(20)
    finally:
        for number, handler in before:
            signal.signal(number, handler)
