"""Running one program under limits, so that it ends and leaves nothing behind.

ASE starts a calculation with ``check_call``, which has no time limit and knows nothing of the
processes that MPI starts. Here a program gets a session of its own; every process in the session
is ended when the program ends, when its time is up, or when we are killed ourselves.
"""

from __future__ import annotations

import os
import resource
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from crystal_gym.interrupts import noted_interrupts
from crystal_gym.pools import die_with_parent, libc_with_prctl

__all__ = ["Finished", "run_session"]

_GRACE_S = 1.0
"""Seconds between SIGTERM and SIGKILL."""

_LONGEST_POLL_MS = 2**31 - 1  # of a C int: 24 days

_PROC = Path("/proc")


@dataclass(frozen=True)
class Finished:
    """How a program ended.

    Attributes:
        returncode: Exit status, minus the signal's number where one ended it.
        timed_out: Whether its time was up.
        wall_s: Seconds it took.
    """

    returncode: int
    timed_out: bool
    wall_s: float


def run_session(
    command: Sequence[str],
    *,
    folder: Path,
    output: Path,
    timeout_s: float,
    memory_bytes: int | None = None,
    environment: Mapping[str, str] | None = None,
) -> Finished:
    """Run a program to its end, or end it.

    Args:
        command: Program and arguments; no shell is involved.
        folder: Where it runs.
        output: File for its standard output and error.
        timeout_s: Wall time after which its whole session gets SIGTERM, and SIGKILL a second later.
        memory_bytes: Most address space of each of its processes; None for no limit.
        environment: Its environment variables.

    Returns:
        How it ended, after how long.

    Raises:
        OSError: If it cannot be started or ``output`` cannot be written.
    """
    start = time.monotonic()
    process: subprocess.Popen[bytes] | None = None
    timed_out = False
    with open(output, "wb") as file:
        try:
            # In the middle of a start there is a child that nobody knows yet.
            with noted_interrupts() as interrupted:
                process = subprocess.Popen(
                    command,
                    cwd=folder,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    preexec_fn=_child_setup(memory_bytes),
                )
            if interrupted.is_set():
                signal.raise_signal(signal.SIGINT)
            timed_out = not _wait(process, timeout_s)
        finally:  # whatever ends the wait: nothing of the session goes on
            if process is not None:
                _end_session(process)
    return Finished(process.returncode, timed_out, time.monotonic() - start)


def _child_setup(memory_bytes: int | None) -> Callable[[], None]:
    """Return what the child does between fork and exec: two system calls, prepared beforehand."""
    libc, parent = libc_with_prctl(), os.getpid()
    if memory_bytes is not None:  # no process may raise a limit that is set already
        limits = [n for n in resource.getrlimit(resource.RLIMIT_AS) if n != resource.RLIM_INFINITY]
        memory_bytes = min([memory_bytes, *limits])

    def setup() -> None:
        if libc is not None:
            die_with_parent(libc)
            if os.getppid() != parent:  # it died before we could ask
                os._exit(1)
        if memory_bytes is not None:
            resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))

    return setup


def _wait(process: subprocess.Popen[bytes], timeout_s: float) -> bool:
    """Return whether the process ended in time, without polling where the system allows."""
    if not hasattr(os, "pidfd_open"):
        try:
            process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return False
        return True
    handle = os.pidfd_open(process.pid)
    try:
        poll = select.poll()  # select() refuses handles above 1023
        poll.register(handle, select.POLLIN)
        return bool(poll.poll(min(1000 * timeout_s, _LONGEST_POLL_MS)))
    finally:
        os.close(handle)


def _end_session(process: subprocess.Popen[bytes]) -> None:
    """End every process of the session; the leader is a zombie until it is waited for."""
    session = process.pid
    if not _PROC.is_dir():  # not Linux: the group that the session began with is all we can name
        if process.poll() is None:
            os.killpg(session, signal.SIGKILL)
    else:
        _signal({session, *_groups(session)}, signal.SIGTERM)
        kill_at = time.monotonic() + _GRACE_S
        give_up_at = kill_at + _GRACE_S  # a process that waits for a disk dies when that answers
        while (groups := _groups(session)) and time.monotonic() < give_up_at:
            if time.monotonic() > kill_at:
                _signal({session, *groups}, signal.SIGKILL)
            time.sleep(0.01)
        # One that was born while /proc was read is not in the list, but it is in the group.
        _signal({session, *_groups(session)}, signal.SIGKILL)
    process.wait()


def _signal(groups: Iterable[int], number: int) -> None:
    """Signal process groups: the kernel lets no process of a group fork meanwhile."""
    for group in groups:
        try:
            os.killpg(group, number)
        except ProcessLookupError:
            continue


def _groups(session: int) -> set[int]:
    """Return the groups of a session with living processes: MPI gives every rank its own."""
    return {group for state, group, sid in _processes() if sid == session and state not in "ZX"}


def _processes() -> Iterator[tuple[str, int, int]]:
    """Yield state, process group and session of every process of the machine."""
    for name in os.listdir(_PROC):
        if not name.isdigit():
            continue
        try:
            text = (_PROC / name / "stat").read_text()
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue  # it ended meanwhile
        # "pid (name) state ppid pgrp session ..."; a name may hold spaces and parentheses.
        state, _, group, session = text.rsplit(")", 1)[1].split()[:4]
        yield state, int(group), int(session)
