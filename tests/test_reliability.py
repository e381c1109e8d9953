"""The quick forms of the checks in benchmarks/reliability: each has to do its work, and to pass."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

CHECKS = Path(__file__).parent.parent / "benchmarks" / "reliability"

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="the checks look into /proc"
)


def run(name, *words):
    command = [sys.executable, str(CHECKS / name), *map(str, words)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize("command", ["build", "train", "evaluate"])
def test_killed_commands_end_as_undisturbed_ones(command):
    if command != "build":
        pytest.importorskip("d3rlpy")
    text = run("kill_commands.py", command, "--kills", 2)
    assert re.search(rf"{command}: 2 kills in \d+ trials, 0 results that differ", text), text


def test_the_vector_environment_leaks_nothing():
    text = run("soak_env.py", "--steps", 400_000)
    assert re.search(r"4\d\d,\d{3} steps, 1\d\d,\d{3} episodes, mean reward 2\.", text), text


def test_comparison_sees_a_changed_number(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(CHECKS))
    import kill_commands
    import numpy as np

    for name, value in (("a", 1.0), ("b", 1.0 + 1e-12)):
        (tmp_path / name).mkdir()
        np.savez(tmp_path / name / "table.npz", x=np.array([value]), y=np.array([np.nan]))
        (tmp_path / name / "config.json").write_text(json.dumps({"seconds": value, "steps": 5}))
    found = [kill_commands.contents(tmp_path / name) for name in ("a", "b")]
    assert kill_commands.differences(*found) == ["table.npz:x"]
    assert kill_commands.differences(found[0], found[0]) == []
    del found[1]["table.npz:y"]
    assert kill_commands.differences(*found) == ["table.npz:y", "table.npz:x"]


def test_a_process_that_outlives_a_kill_is_seen(monkeypatch):
    monkeypatch.syspath_prepend(str(CHECKS))
    import kill_commands

    script = "import subprocess, time; subprocess.Popen(['sleep', '60']); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", script], start_new_session=True)
    monkeypatch.setattr(kill_commands.time, "sleep", lambda _: None)
    try:
        while len(kill_commands.left_over(process)) < 2:
            assert process.poll() is None
        process.kill()
        process.wait()
        assert len(kill_commands.left_over(process)) == 1
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
