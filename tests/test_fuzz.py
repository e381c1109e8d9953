"""The fuzzer: it sees what it is there to see, and no saved input fails any more."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def run(code):
    """Run code in a process of its own: the guard's audit hook cannot be taken out again."""
    head = """
        import os, sys, tempfile, time
        from pathlib import Path
        from fuzz import guard
        folder = Path(os.path.realpath(tempfile.mkdtemp()))
        outside = Path(os.path.realpath(tempfile.mkdtemp()))
        guard.LONGEST_S = 0.5
        guard.watch_writes()
        guard.limit_memory()
        def fails(call, answers=guard.ANSWERS):
            try:
                guard.guarded(call, folder, answers)
            except guard.Failure as failure:
                print(failure)
                return
            print("nothing failed")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(head) + textwrap.dedent(code)],
        capture_output=True, text=True, cwd=ROOT, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_an_answer_in_one_sentence_is_no_failure():
    said = run(
        """
        def refuse():
            (folder / "a").write_text("x")
            raise ValueError("this is not a crystal: expected one")
        fails(refuse)
        fails(lambda: time.sleep(0.1))
        """
    )
    assert said == "nothing failed\nnothing failed\n"


def test_a_traceback_is_a_failure_and_so_is_a_refusal_of_many_lines():
    said = run(
        """
        fails(lambda: {}["x"])
        def lines():
            raise ValueError("one\\ntwo")
        fails(lines)
        def silent():
            raise ValueError("")
        fails(silent)
        """
    )
    first, second, third = said.splitlines()
    assert first.startswith("KeyError: 'x'")
    assert second.startswith("ValueError is no sentence")
    assert third.startswith("ValueError is no sentence")


def test_a_hang_is_a_failure_even_where_all_exceptions_are_caught():
    said = run(
        """
        def hang():
            while True:
                try:
                    time.sleep(60)
                except Exception:
                    pass
        fails(hang)
        """
    )
    assert said == "took longer than 0.5 s\n"


def test_a_hang_outside_of_python_ends_the_process():
    code = """
        from fuzz import guard
        import hashlib, tempfile
        from pathlib import Path
        guard.LONGEST_S = 0.2
        guard.guarded(
            lambda: hashlib.pbkdf2_hmac("sha256", b"x", b"y", 10**9), Path(tempfile.mkdtemp())
        )
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True, text=True, cwd=ROOT, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1
    assert "Timeout" in done.stderr


def test_too_much_memory_is_a_failure_asked_for_or_held():
    said = run(
        """
        fails(lambda: bytearray(3_000_000_000))
        guard.MOST_BYTES = 100_000_000
        fails(lambda: len(b"x" * 300_000_000))
        """
    )
    first, second = said.splitlines()
    assert first.startswith("MemoryError")
    assert second.startswith("took ")


@pytest.mark.parametrize(
    "call",
    [
        "(outside / 'a').write_text('x')",
        "os.mkdir(outside / 'a')",
        "(outside / 'b').unlink()",
        "os.rename(folder / 'c', outside / 'c')",
        "os.symlink(folder, outside / 'd')",
        "os.open(outside / 'e', os.O_CREAT | os.O_WRONLY)",
        "open(folder / '..' / outside.name / 'f', 'w')",
        "__import__('sqlite3').connect(outside / 'g.db')",
        "os.system('true')",
        "__import__('subprocess').run(['true'])",
    ],
)
def test_a_write_elsewhere_and_a_program_are_failures_and_do_not_happen(call):
    said = run(
        f"""
        (folder / "c").touch()
        (outside / "b").touch()
        def touch():
            try:
                {call}
            except BaseException:
                pass  # whatever catches it
        fails(touch)
        print(sorted(p.name for p in outside.iterdir()))
        """
    )
    assert said.startswith("touched what it may not: ")
    assert said.endswith("['b']\n")


@pytest.mark.parametrize("target", sorted(p.name for p in (ROOT / "fuzz" / "corpus").iterdir()))
def test_no_saved_input_fails(target, tmp_path):
    pytest.importorskip("torch")
    done = subprocess.run(
        [sys.executable, "-m", "fuzz.engine", "hypothesis", target, "0"],
        capture_output=True, text=True, cwd=ROOT, check=False, timeout=300,
        env={**os.environ, "FUZZ_FINDINGS": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    saved = len(list((ROOT / "fuzz" / "corpus" / target).iterdir()))
    assert f"COUNT {saved} " in done.stdout


def test_the_fuzzer_fails_where_the_code_does(tmp_path):
    """Break the reading of structures on purpose: hypothesis has to see it."""
    code = """
        import sys
        import crystal_gym.structures as structures
        def broken(text):
            raise KeyError("what no one expected") if "_cell" in text else ValueError("no cell")
        structures._parse_cifs = broken
        structures._UNREADABLE = (ValueError,)
        from fuzz.engine import main
        sys.exit(main("hypothesis", "cif", 5))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True, text=True, cwd=ROOT, check=False, timeout=120,
        env={**os.environ, "FUZZ_FINDINGS": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 1
    assert "cif: FAILED, KeyError: 'what no one expected'" in done.stdout
    assert len(list(tmp_path.iterdir())) == 1
