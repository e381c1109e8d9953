"""Ctrl-C where stopping at once would lose something."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

__all__ = ["noted_interrupts"]


@contextlib.contextmanager
def noted_interrupts(*others: signal.Signals) -> Iterator[threading.Event]:
    """Turn Ctrl-C into an event, for code that is better not left in its middle.

    What to do about it afterwards is for the caller to say: ``signal.raise_signal(signal.SIGINT)``
    interrupts as if it came then.

    Args:
        others: Signals that are to count like Ctrl-C.

    Yields:
        The event, set once a signal has come; outside of the main thread none is noted.
    """
    event = threading.Event()
    before: dict[signal.Signals, Any] = {}
    in_main_thread = threading.current_thread() is threading.main_thread()
    try:
        for number in (signal.SIGINT, *others):
            # Else signals do not arrive here, or a handler of C does with them as it likes.
            if in_main_thread and signal.getsignal(number) is not None:
                before[number] = signal.signal(number, lambda *_: event.set())
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
