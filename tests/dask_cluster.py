"""A Dask scheduler and workers as processes of their own, which all end with the test."""

import contextlib
import os
import resource
import signal
import subprocess
import sys
import time

from distributed import Client

SETTINGS = {
    "DASK_DISTRIBUTED__SCHEDULER__WORKER_SATURATION": "1.0",
    "DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL": "1s",  # five, since that is ten heartbeats
}


class Cluster:
    """Starts them below ``folder``; ``close`` ends whatever of them is left."""

    def __init__(self, folder, workers=2, allowed_failures=1):
        failures = {"DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": str(allowed_failures)}
        self.environment = os.environ | SETTINGS | failures
        self.folder = folder
        self.processes = []
        folder.mkdir(parents=True, exist_ok=True)
        try:
            self.start_scheduler()
            for _ in range(workers):
                self.start_worker()
        except BaseException:
            self.close()
            raise

    def start_scheduler(self):
        self.file = self.folder / f"scheduler-{len(self.processes)}.json"
        self.scheduler = self._start(
            "dask_scheduler", "--host", "127.0.0.1", "--port", "0", "--scheduler-file", self.file
        )
        self.address = f"dask://{self._said('Scheduler at:')}"

    def start_worker(self):
        """Start a worker under a nanny, which starts it again where it dies."""
        words = "--scheduler-file", self.file, "--nthreads", "1", "--host", "127.0.0.1"
        nanny = self._start("dask_worker", *words, "--local-directory", self.folder / "dask")
        self._said("Registered to:")
        return nanny

    def workers(self, count=2):
        """Wait until there are so many, and return their process ids."""
        with Client(scheduler_file=self.file, set_as_default=False) as client:
            client.wait_for_workers(count, timeout=60)
            return list(client.run(os.getpid).values())

    def worker_of(self, calculation):
        """Return the worker that waits for a process, None where it has died just now."""
        with contextlib.suppress(ProcessLookupError, FileNotFoundError):
            with open(f"/proc/{calculation}/stat") as file:
                parent = int(file.read().rsplit(")", 1)[1].split()[1])
            if os.getsid(parent) in [process.pid for process in self.processes]:
                return parent
        return None

    def _start(self, program, *words):
        self.log = self.folder / f"log-{len(self.processes)}"
        with open(self.log, "wb") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", f"distributed.cli.{program}", *words, "--no-dashboard"],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=self.environment,
                start_new_session=True,
            )
        self.processes.append(process)
        return process

    def _said(self, words):
        """Wait for words in the log of what was started last; return what follows tcp://."""
        deadline = time.monotonic() + 60
        while words not in (text := self.log.read_text()):
            assert self.processes[-1].poll() is None, text
            assert time.monotonic() < deadline, text
            time.sleep(0.05)
        return text.partition(words)[2].split()[0].removeprefix("tcp://")

    def close(self):
        for process in self.processes:
            end(process)


def fill_disk(process):
    """Make every write of a process, and of those that it starts, fail as on a full disk."""
    resource.prlimit(process, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))


def end(process):
    """Kill a process with all that is in its session's first group, a nanny's worker included."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
