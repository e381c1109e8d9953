"""What a fuzzed call may not do: a traceback, a hang, memory without end, a write elsewhere."""

from __future__ import annotations

import faulthandler
import os
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

__all__ = ["ANSWERS", "Failure", "guarded", "limit_memory", "watch_writes"]

LONGEST_S = 5.0
"""Of processor time, which other work on a machine does not lengthen."""

_WAITING = 12
"""How many times as long a call may take by the clock: what waits takes no processor time."""

MOST_BYTES = 2_000_000_000

ANSWERS = (ValueError, OSError)
"""What a function may raise, with one sentence, on input that it cannot use."""

_LONGEST_SENTENCE = 2_000


class Failure(BaseException):
    """A finding. No handler of the code under test may swallow it, so it is no Exception."""


class _Watch:
    """Where writing is allowed just now (None: everywhere), and what was tried elsewhere."""

    allowed: tuple[str, ...] | None = None
    seen: list[str]


_WATCH = _Watch()

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

# Arguments of the audit events that name what is changed.
_CHANGES = {
    "os.chmod": (0,),
    "os.chown": (0,),
    "os.link": (0, 1),
    "os.mkdir": (0,),
    "os.remove": (0,),
    "os.rename": (0, 1),
    "os.rmdir": (0,),
    "os.symlink": (1,),
    "os.truncate": (0,),
    "os.utime": (0,),
    "shutil.copyfile": (1,),
    "shutil.move": (1,),
    "shutil.rmtree": (0,),
    "sqlite3.connect": (0,),
}
_PROGRAMS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "socket.connect")


def watch_writes() -> None:
    """Install the audit hook, which stays for the life of the process."""
    sys.addaudithook(_hook)


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _WATCH.allowed is None:
        return
    if event == "open":
        path, mode, flags = arguments
        writes = any(c in str(mode or "") for c in "wax+") or bool((flags or 0) & _WRITES)
        touched = [path] if writes and not isinstance(path, int) else []
    elif event in _CHANGES:
        touched = [arguments[i] for i in _CHANGES[event]]
    elif event in _PROGRAMS:
        _refuse(f"{event} {arguments!r:.200}")
        return
    else:
        return
    for path in touched:
        if isinstance(path, int):
            continue
        where = os.path.realpath(os.fsdecode(path))
        if where != os.devnull and not where.startswith(_WATCH.allowed):
            _refuse(f"{event} {where}")


def _refuse(what: str) -> None:
    _WATCH.seen.append(what)
    raise Failure(f"touched what it may not: {what}")  # so it does not happen either


def limit_memory() -> None:
    """Let no allocation take this process 2 GB above what it has now."""
    limit = _status("VmSize") + MOST_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def guarded(
    call: Callable[[], object], folder: Path, answers: tuple[type[BaseException], ...] = ANSWERS
) -> BaseException | None:
    """Make a call; return the exception with which it refused its input, if it did.

    Args:
        call: What is tested.
        folder: The only place where it may write.
        answers: Exceptions that are an answer, if they say one sentence.

    Raises:
        Failure: If it raised anything else or more than a sentence, took longer than 5 s of
            processor time (a minute by the clock) or more than 2 GB, wrote outside ``folder``, or
            started a program.
    """
    if Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = _status("VmRSS")
    old = [signal.signal(number, _too_long) for _, number in _TIMERS]
    # Hangs outside of Python, where no handler runs.
    faulthandler.dump_traceback_later((_WAITING + 4) * LONGEST_S, exit=True)
    signal.setitimer(signal.ITIMER_PROF, LONGEST_S)
    signal.setitimer(signal.ITIMER_REAL, _WAITING * LONGEST_S)
    _WATCH.seen, _WATCH.allowed = [], (os.path.realpath(folder) + os.sep,)
    answer: BaseException | None = None
    try:
        call()
    except answers as error:
        answer = error
    except Exception as error:
        raise Failure(f"{type(error).__name__}: {error!s:.300}") from error
    finally:
        for (timer, number), handler in zip(_TIMERS, old, strict=True):
            signal.setitimer(timer, 0)
            signal.signal(number, handler)
        _WATCH.allowed = None
        faulthandler.cancel_dump_traceback_later()
    if _WATCH.seen:
        raise Failure(f"touched what it may not: {_WATCH.seen[0]}")
    grown = _status("VmHWM") - before
    if grown > MOST_BYTES:
        raise Failure(f"took {grown:,} bytes of memory")
    if answer is not None:
        said = str(answer)
        if not said.strip() or "\n" in said or len(said) > _LONGEST_SENTENCE:
            raise Failure(f"{type(answer).__name__} is no sentence: {said!r:.300}") from answer
    return answer


_TIMERS = ((signal.ITIMER_PROF, signal.SIGPROF), (signal.ITIMER_REAL, signal.SIGALRM))


def _too_long(signum: int, frame: FrameType | None) -> None:
    raise Failure(f"took longer than {LONGEST_S:g} s")


def _status(name: str) -> int:
    """Return a quantity of ``/proc/self/status`` in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    return 0
