"""Ctrl-C where stopping at once would lose something."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator

__all__ = ["noted_interrupts"]


@contextlib.contextmanager
def noted_interrupts() -> Iterator[threading.Event]:
    """Turn Ctrl-C into an event, for code that is better not left in its middle.

    What to do about it afterwards is for the caller to say: ``signal.raise_signal(signal.SIGINT)``
    interrupts as if it came then.
    """
    event = threading.Event()
    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or signal.getsignal(signal.SIGINT) is None:
        yield event  # signals do not arrive here, or a handler of C does with them as it likes
        return
    before = signal.signal(signal.SIGINT, lambda *_: event.set())
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, before)
