"""Processes that work for this one, and end with it."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
from concurrent.futures import ProcessPoolExecutor
from typing import Any

__all__ = ["cores", "die_with_parent", "libc_with_prctl", "process_pool"]

_PR_SET_PDEATHSIG = 1


def process_pool(workers: int | None = None) -> ProcessPoolExecutor:
    """Return a pool whose workers leave Ctrl-C to this process and end when it does.

    Args:
        workers: Processes; defaults to the cores at hand.

    Returns:
        A pool that the caller has to shut down.
    """
    return ProcessPoolExecutor(
        workers or cores(), initializer=_start_worker, initargs=(os.getpid(),)
    )


def _start_worker(parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then stops us
    # Else workers would wait for ever: each holds the ends of the pipes that the others read.
    die_with_parent()
    if os.getppid() != parent and multiprocessing.get_start_method() != "forkserver":
        os._exit(1)  # it ended before we could ask


def cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def die_with_parent(libc: Any = None) -> None:
    """Ask the kernel to kill this process when its parent ends (Linux; elsewhere nothing).

    Args:
        libc: :func:`libc_with_prctl`, where it was called before a fork.
    """
    libc = libc or libc_with_prctl()
    if libc is not None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def libc_with_prctl() -> ctypes.CDLL | None:
    """Return the C library where it can be asked for that, else None."""
    try:
        libc = ctypes.CDLL(None)
        libc.prctl  # noqa: B018 (asks whether there is one)
    except (AttributeError, OSError, TypeError):
        return None
    return libc
