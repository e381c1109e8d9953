"""`run_session`: one program under limits, which ends and leaves nothing behind."""

import os
import resource
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
from espresso_helpers import HANG_S, IGNORES_SIGTERM, alive, processes_in, silicon, stub

from crystal_gym.oracles import Status
from crystal_gym.oracles.espresso.process import run_session

pytest_plugins = ["espresso_fixtures"]

linux = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux's /proc")
TIMEOUT_S = 1.0
# A time limit, a second for SIGTERM, and how long an idle machine may take on top.
GONE_S = TIMEOUT_S + 3.0


@pytest.fixture
def run(tmp_path):
    """Return a function that runs the body of a stub; the output is in ``pw.out``."""

    def start(body, *arguments, timeout_s=HANG_S, **options):
        program = stub(tmp_path / "bin", body)
        return run_session(
            [str(program), *arguments],
            folder=tmp_path,
            output=tmp_path / "pw.out",
            timeout_s=timeout_s,
            **options,
        )

    return start


def pids_in(folder):
    return [int(path.name.split("-")[1]) for path in folder.glob("pid-*")]


def wait_for(condition, seconds=HANG_S):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


@pytest.mark.parametrize("status", [0, 3])
def test_a_program_that_ends_gives_its_status(run, status):
    finished = run(f"raise SystemExit({status})")
    assert (finished.returncode, finished.timed_out) == (status, False)
    assert 0 < finished.wall_s < HANG_S


def test_output_and_error_go_to_one_file(run, tmp_path):
    run("import sys\nprint('out', flush=True)\nprint('err', file=sys.stderr)")
    assert (tmp_path / "pw.out").read_text() == "out\nerr\n"


def test_arguments_reach_the_program_without_a_shell(run, tmp_path):
    run("import sys\nprint(sys.argv[1:])", "a b", "$HOME; ls")
    assert (tmp_path / "pw.out").read_text() == "['a b', '$HOME; ls']\n"


def test_the_program_reads_nothing_from_our_input(run, tmp_path):
    run("import sys\nprint(repr(sys.stdin.read()))")
    assert (tmp_path / "pw.out").read_text() == "''\n"


def test_the_program_runs_in_its_folder_with_its_environment(run, tmp_path):
    run("import os\nprint(os.getcwd(), dict(os.environ))", environment={"ONE": "1"})
    assert (tmp_path / "pw.out").read_text().startswith(f"{tmp_path.resolve()} {{'ONE': '1'")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM])
def test_a_signal_that_ends_it_is_told(run, number):
    finished = run(f"import os\nos.kill(os.getpid(), {int(number)})")
    assert (finished.returncode, finished.timed_out) == (-number, False)


def test_a_program_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="no-such-program"):
        run_session(
            ["/no-such-program"], folder=tmp_path, output=tmp_path / "pw.out", timeout_s=HANG_S
        )


def test_an_output_that_cannot_be_written_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        run_session(
            [sys.executable], folder=tmp_path, output=tmp_path / "nowhere" / "out", timeout_s=HANG_S
        )


def test_many_open_files_do_not_matter(run):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 1200:
        pytest.skip("this system does not allow 1200 open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 1200), hard))
    files = [os.open(os.devnull, os.O_RDONLY) for _ in range(1050)]
    try:
        assert run("pass").returncode == 0
    finally:
        for file in files:
            os.close(file)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_limit_of_a_year_is_none_too_long(run):
    assert run("pass", timeout_s=365 * 86400.0).returncode == 0


# -- limits ----------------------------------------------------------------------------------------


@linux
def test_a_program_that_heeds_sigterm_is_ended_at_its_limit(run, tmp_path):
    start = time.monotonic()
    finished = run("import time\ntime.sleep(40)", timeout_s=TIMEOUT_S)
    assert (finished.returncode, finished.timed_out) == (-signal.SIGTERM, True)
    assert time.monotonic() - start < GONE_S + HANG_S
    assert processes_in(tmp_path) == []


@linux
def test_a_program_and_a_child_that_ignore_sigterm_are_gone_soon_after_the_limit(run, tmp_path):
    start = time.monotonic()
    finished = run(IGNORES_SIGTERM, timeout_s=TIMEOUT_S)
    assert time.monotonic() - start < GONE_S + HANG_S
    assert (finished.returncode, finished.timed_out) == (-signal.SIGKILL, True)
    assert len(pids_in(tmp_path)) == 2
    assert [pid for pid in pids_in(tmp_path) if alive(pid)] == []


@linux
def test_a_child_in_another_process_group_is_ended_too(run, tmp_path):
    body = """
        import os, time
        if os.fork() == 0:
            os.setpgid(0, 0)  # as mpirun does with every rank
        open(f"pid-{os.getpid()}", "w").close()
        time.sleep(40)
    """
    run(body, timeout_s=TIMEOUT_S)
    assert len(pids_in(tmp_path)) == 2
    assert [pid for pid in pids_in(tmp_path) if alive(pid)] == []


@linux
def test_children_that_outlive_the_program_are_ended(run, tmp_path):
    body = """
        import os, time
        if os.fork() == 0:
            open(f"pid-{os.getpid()}", "w").close()
            time.sleep(40)
        while not [f for f in os.listdir(".") if f.startswith("pid-")]:
            time.sleep(0.01)
    """
    finished = run(body)
    assert (finished.returncode, finished.timed_out) == (0, False)
    assert [alive(pid) for pid in pids_in(tmp_path)] == [False]


@linux
def test_children_that_are_born_while_all_are_killed_are_killed_too(run, tmp_path):
    body = """
        import os, signal, time
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        for _ in range(4000):  # every process makes one that goes on, and ends
            time.sleep(0.005)
            if os.fork():
                os._exit(0) if os.getpid() != os.getsid(0) else time.sleep(40)
    """
    run(body, timeout_s=TIMEOUT_S)
    assert processes_in(tmp_path) == []


@pytest.fixture
def interruptible():
    """Let SIGINT interrupt us, which a shell that starts tests in the background prevents."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@linux
@pytest.mark.usefixtures("interruptible")
def test_an_interruption_of_ours_ends_the_program(run, tmp_path):
    interruption = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
    interruption.start()
    with pytest.raises(KeyboardInterrupt):
        run(IGNORES_SIGTERM)
    interruption.join()
    assert [pid for pid in pids_in(tmp_path) if alive(pid)] == []


@linux
def test_other_sessions_are_left_alone(run):
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as other:
        try:
            run("import time\ntime.sleep(40)", timeout_s=TIMEOUT_S)
            assert other.poll() is None
        finally:
            other.kill()


@linux
def test_memory_is_limited(run, tmp_path):
    finished = run("x = bytearray(2**31)", memory_bytes=2**30)
    assert finished.returncode == 1
    assert "MemoryError" in (tmp_path / "pw.out").read_text()


# -- a process of ours that is limited, or killed --------------------------------------------------

_OTHER_PROCESS = """
    import resource, sys
    from pathlib import Path
    from crystal_gym.oracles.espresso.process import run_session
    limit = {limit}
    if limit:
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    folder = Path({folder!r})
    finished = run_session([{program!r}], folder=folder, output=folder / "pw.out", timeout_s=60,
                           memory_bytes={memory})
    sys.exit(finished.returncode)
"""


def other_process(tmp_path, body, limit=None, memory=None):
    program = stub(tmp_path / "bin", body)
    text = _OTHER_PROCESS.format(
        folder=str(tmp_path), program=str(program), limit=limit, memory=memory
    )
    return subprocess.Popen([sys.executable, "-c", textwrap.dedent(text)])


@linux
def test_a_lower_limit_of_the_system_stays(tmp_path):
    body = "import resource\nprint(resource.getrlimit(resource.RLIMIT_AS))"
    with other_process(tmp_path, body, limit=3 * 2**30, memory=8 * 2**30) as process:
        assert process.wait(HANG_S) == 0
    assert (tmp_path / "pw.out").read_text() == f"{(3 * 2**30, 3 * 2**30)}\n"


@linux
def test_a_program_ends_with_the_python_process_that_runs_it(tmp_path):
    body = IGNORES_SIGTERM.replace("os.fork()", "pass")
    with other_process(tmp_path, body) as process:
        wait_for(lambda: pids_in(tmp_path))
        process.kill()
        process.wait(HANG_S)
    wait_for(lambda: not processes_in(tmp_path))


# -- the oracle around it --------------------------------------------------------------------------


@linux
@pytest.mark.usefixtures("clean")
def test_the_oracle_calls_a_hung_program_a_timeout(stub_oracle, tmp_path):
    oracle = stub_oracle(stub(tmp_path / "bin", IGNORES_SIGTERM), timeout_s=TIMEOUT_S)
    found = oracle.evaluate([silicon()])[0]
    assert found.status is Status.TIMEOUT
    assert not found.status.is_final
    assert "pw.x was ended at its wall time limit" in found.provenance
    folder = Path(found.details["folder"])
    assert {"pw.in", "pw.out"} <= {path.name for path in folder.iterdir()}
    assert folder.parent == tmp_path / "scratch" / "failed"


@linux
@pytest.mark.usefixtures("clean", "interruptible")
def test_an_interruption_leaves_no_folder(stub_oracle, tmp_path):
    oracle = stub_oracle(stub(tmp_path / "bin", IGNORES_SIGTERM), timeout_s=HANG_S)
    interruption = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
    interruption.start()
    with pytest.raises(KeyboardInterrupt):
        oracle.evaluate([silicon()])
    interruption.join()


@linux
def test_what_a_killed_process_left_running_goes_at_the_next_start(stub_oracle, tmp_path):
    program = stub(tmp_path / "bin", "pass")
    oracle = stub_oracle(program)
    with subprocess.Popen(["true"]) as ended:
        ended.wait()
    running = oracle.scratch / "running"
    dead = running / f"{socket.gethostname()}-{ended.pid}-0123456789ab"
    ours = running / f"{socket.gethostname()}-{os.getpid()}-0123456789ab"
    elsewhere = running / f"another-host-{ended.pid}-0123456789ab"
    for folder in (dead, ours, elsewhere):
        folder.mkdir()
    stub_oracle(program)
    assert sorted(running.iterdir()) == sorted([ours, elsewhere])


@linux
def test_an_interruption_while_a_child_is_born_does_not_lose_it(run, monkeypatch):
    born = []

    class Slow(subprocess.Popen):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            born.append(self)
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)  # a signal handler runs at the latest here

    monkeypatch.setattr(subprocess, "Popen", Slow)
    with pytest.raises(KeyboardInterrupt):
        run("import time; time.sleep(60)")
    (child,) = born
    assert child.returncode is not None
