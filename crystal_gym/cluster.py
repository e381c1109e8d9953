"""Calculations on other machines: an Executor in front of the workers of a Dask scheduler."""

from __future__ import annotations

import itertools
import logging
import uuid
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Executor, Future
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from crystal_gym.extras import require_extra

__all__ = ["ClusterLostError", "WorkersDiedError", "executor_at"]

_SCHEME = "dask://"
_CONNECT_S = 10.0
_RETRIES = 2
"""Further tries, as a rule elsewhere, of a task that raised: its machine may lack something."""


class ClusterLostError(BrokenExecutor):
    """The cluster is gone, and all that it had not sent back with it."""


class WorkersDiedError(ChildProcessError):
    """One task ended each of the workers that took it; the others are not affected."""


@contextmanager
def executor_at(address: str | None) -> Iterator[Executor | None]:
    """Give an executor whose workers are those of a Dask scheduler.

    Its futures raise :class:`WorkersDiedError` where one task ended all the workers that took it,
    and :class:`ClusterLostError` where the scheduler went away. On leaving, whatever has not begun
    is withdrawn at once; what runs is not waited for and ends by itself.

    Args:
        address: ``dask://host:port``, or ``dask://FILE.json`` for what the scheduler wrote with
            ``--scheduler-file``. None gives None: processes of this machine.

    Raises:
        ValueError: If the address is not understood.
        ImportError: If Dask is not installed.
        ConnectionError: If no scheduler answers there.
        FileNotFoundError: If there is no such file.
    """
    if address is None:
        yield None
        return
    location, client_class = _location(address), _client_class(address)
    with _quiet_client_log(), _connect(client_class, location, address) as client:
        if not client.nthreads():
            warnings.warn(
                f"{address} has no workers yet: the work begins when the first one comes, such as "
                "by `dask worker`",
                stacklevel=3,
            )
        yield _ClusterExecutor(client, address)


@contextmanager
def _quiet_client_log() -> Iterator[None]:
    """Keep the tracebacks of lost connections off the screen: our own errors tell of them."""
    log = logging.getLogger("distributed.client")
    before = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(before)


def _location(address: str) -> dict[str, str]:
    """Return an address as an argument of Dask's client."""
    rest = address.removeprefix(_SCHEME)
    host, _, port = rest.rpartition(":")
    if rest != address and rest.endswith(".json"):
        if not Path(rest).is_file():  # Dask would wait for it
            raise FileNotFoundError(
                f"{rest} does not exist: expected what `dask scheduler --scheduler-file {rest}` "
                "writes when it starts"
            )
        return {"scheduler_file": rest}
    if rest == address or not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ValueError(
            f"executor {address!r} is not understood: expected dask://host:port, as `dask "
            "scheduler` prints it (there with tcp://), or dask://FILE.json"
        )
    return {"address": f"tcp://{rest}"}


def _client_class(address: str) -> Any:
    require_extra("cluster", f"{address} (here, and where the workers are)")
    from distributed import Client  # which sets up its logs

    return Client


def _connect(client_class: Any, location: dict[str, str], address: str) -> Any:
    try:
        return client_class(**location, timeout=_CONNECT_S, set_as_default=False)
    except (OSError, ValueError) as error:
        raise ConnectionError(
            f"no Dask scheduler answers at {address} within {_CONNECT_S:.0f} s: check host and "
            "port, that `dask scheduler` runs there, and that no firewall is in between"
        ) from error


class _ClusterExecutor(Executor):
    """Submits to a Dask client; Dask's own executor keeps results on the workers and never tells.

    Args:
        client: Connected.
        address: As the user gave it, for messages.
    """

    def __init__(self, client: Any, address: str) -> None:
        self._client = client
        self._address = address
        # Keys that differ in their number alone are one group to the scheduler, which then holds
        # tasks back until a worker is free: a worker that dies takes down only what it ran.
        self._keys = zip(itertools.repeat(f"crystal-gym-{uuid.uuid4().hex}"), itertools.count())

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Send a call to the scheduler; a future that is cancelled is withdrawn from there."""
        task = self._client.submit(
            partial(fn, *args, **kwargs), key=next(self._keys), pure=False, retries=_RETRIES
        )
        future: Future[Any] = Future()
        # Without a round trip, and as soon as the result is here: workers keep none in memory.
        future.add_done_callback(lambda _: task.release())
        self._client.loop.add_callback(self._hand_over, task, future)
        return future

    def map(
        self,
        fn: Callable[..., Any],
        *iterables: Any,
        timeout: float | None = None,
        chunksize: int = 1,
        **options: Any,
    ) -> Iterator[Any]:
        """Return results in order; ``chunksize`` calls are one task, as in a process pool."""
        calls = zip(*iterables, strict=False)
        chunks = iter(lambda: list(itertools.islice(calls, chunksize)), [])
        results = super().map(partial(_call_each, fn), chunks, timeout=timeout, **options)
        return itertools.chain.from_iterable(results)

    async def _hand_over(self, task: Any, future: Future[Any]) -> None:
        result, error = None, None
        try:
            result = await task
        except Exception as raised:  # noqa: BLE001 (it belongs to whoever asked for the result)
            # What the task itself raised, or a connection that broke on the way to its result.
            error = self._explained(raised) if task.status == "error" else self._gone()
        if not future.set_running_or_notify_cancel():
            return
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)

    def _gone(self) -> ClusterLostError:
        return ClusterLostError(
            f"the scheduler at {self._address} is gone: what had come back is kept; start it again "
            "and run the same command to go on"
        )

    def _explained(self, error: Exception) -> Exception:
        from distributed import KilledWorker
        from distributed.scheduler import NoValidWorkerError, NoWorkerError

        if isinstance(error, KilledWorker):
            return WorkersDiedError(
                f"{error.allowed_failures + 1} workers died while they calculated this, the last "
                f"of them {error.last_worker.address} (out of memory?)"
            )
        if isinstance(error, (NoValidWorkerError, NoWorkerError)):
            return ClusterLostError(
                f"{self._address} has had no workers for its no-workers-timeout: what had come "
                "back is kept; start workers and run the same command to go on"
            )
        return error


def _call_each(fn: Callable[..., Any], calls: list[tuple[Any, ...]]) -> list[Any]:
    return [fn(*words) for words in calls]
