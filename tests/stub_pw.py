"""A stand-in for pw.x: one file that is the program, and what makes and counts its runs.

``install`` copies this file as ``pw.x`` into a folder. The copy prints pw.x's banner and, after a
time, an output whose energy and levels follow from the input, and notes in a log beside it when it
starts and when it is done.
"""

import json
import os
import signal
import sys
import time
import zlib

BANNER = "\n     Program PWSCF v.{} starts on 24Nov2026 at 17:49:30\n\n"
OUTPUT = """\
     number of electrons       =         8.00
     number of Kohn-Sham states=            8

     convergence has been achieved in   7 iterations

     highest occupied, lowest unoccupied level (ev):     5.0000 {:10.4f}

!    total energy              =  {} Ry

   JOB DONE.
"""
FAILURES = {
    "timeout": ("     Maximum CPU time exceeded\n\n   JOB DONE.\n", 2),
    "not_converged": ("     convergence NOT achieved after 100 iterations: stopping\n", 2),
    "configuration": ("     Error in routine readpp (1):\n     file X.UPF not found\n", 1),
    "truncated": ("     number of electrons       =         8.00\n", 0),
    "killed": ("", -9),
    "kills": ("", -9),  # whoever started it, and then itself
}


def run(path):
    """Do what pw.x does; ``path`` is that of the program."""
    with open(os.path.join(os.path.dirname(path), "stub.json")) as file:
        options = json.load(file)
    with open(sys.argv[sys.argv.index("-in") + 1]) as file:
        lines = file.read().split("\n")
    sys.stdout.write(BANNER.format(options["version"]))
    sys.stdout.flush()
    if lines == [""]:  # it is asked for its version
        os._exit(1)
    start = next(i for i, line in enumerate(lines) if line.startswith("K_POINTS"))
    species = [line.split()[0] for line in lines[start:] if len(line.split()) == 4]
    energy = f"-{100 + zlib.crc32(chr(10).join(lines[start:]).encode()) / 1e7:.8f}"
    note(options["log"], "start", energy)
    if any(options["failures"].get(s) == "kills" for s in species):
        os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(options["seconds"])
    failing = [options["failures"][s] for s in species if s in options["failures"]]
    text, code = FAILURES[failing[0]] if failing else (OUTPUT.format(5.5, energy), 0)
    sys.stdout.write(text)
    sys.stdout.flush()
    if code < 0:
        os.kill(os.getpid(), -code)
    note(options["log"], "done", energy)
    os._exit(code)  # at once: what is killed after this line has been told that it was done


def note(log, *words):
    with open(log, "a") as file:
        file.write(f"{' '.join(words)} {time.time():.6f}\n")


class Stub:
    """An installed stub.

    Attributes:
        pw: The program.
        pseudopotentials: Folder of made UPF files.
    """

    def __init__(self, folder, elements, **options):
        self.folder = folder
        self.pw = folder / "pw.x"
        self.log = folder / "log"
        self.pseudopotentials = folder / "pseudo"
        self.pseudopotentials.mkdir(parents=True)
        self.options = {"version": "6.7MaX", "seconds": 0.0, "failures": {}, "log": str(self.log)}
        self.set(**options)
        with open(__file__) as file:
            text = file.read()
        self.pw.write_text(f"#!{sys.executable} -IS\n{text}")
        self.pw.chmod(0o755)
        for element in elements:
            self.write_pseudopotential(element)

    def write_pseudopotential(self, element, comment=""):
        (self.pseudopotentials / f"{element}.stub.UPF").write_text(
            f'<UPF version="2.0.1"><!-- {comment} -->\n'
            f'<PP_HEADER element="{element}" z_valence="4.0"/>\n</UPF>\n'
        )

    def set(self, **options):
        """Change how the next runs go: ``version``, ``seconds``, ``failures`` by element."""
        self.options |= options
        new = self.folder / "stub.json.new"
        new.write_text(json.dumps(self.options))
        new.replace(self.folder / "stub.json")  # whole, for a run that begins now

    def logged(self, word):
        """Return energy and time of the calculations that were begun ("start") or "done"."""
        lines = self.log.read_text().split("\n") if self.log.exists() else []
        return [
            (line.split()[1], float(line.split()[2])) for line in lines if line.startswith(word)
        ]

    @property
    def started(self):
        """Energies of the calculations that were begun, in order."""
        return [energy for energy, _ in self.logged("start")]

    @property
    def done(self):
        """Energies of the calculations that came to their end."""
        return [energy for energy, _ in self.logged("done")]

    def processes(self):
        """Process ids of the stub's living runs."""
        found = []
        for name in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open(f"/proc/{name}/cmdline", "rb") as file:
                    words = file.read().split(b"\0")
            except OSError:
                continue
            if os.fsencode(self.pw) in words:
                found.append(int(name))
        return found


if __name__ == "__main__":
    run(os.path.abspath(__file__))
