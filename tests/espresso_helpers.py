"""What the tests of the live oracle share: cells, made-up files, stub programs, inputs."""

import os
import re
import stat
import sys
import textwrap
from pathlib import Path

from pymatgen.core import Lattice, Structure

CHEAP = {"ecutwfc_ry": 12, "ecutrho_ry": 60, "k_mesh": (2, 2, 2), "n_bands": 8}
"""Settings under which silicon takes half a second."""

HANG_S = 20.0
"""More than any test here takes to notice an end, even on a machine that is busy."""

# -- cells -----------------------------------------------------------------------------------------


def cubic(group, a, species, coords):
    cell = Structure.from_spacegroup(group, Lattice.cubic(a), species, coords)
    return cell.get_primitive_structure()


def silicon():
    return cubic("Fd-3m", 5.431, ["Si"], [[0, 0, 0]])


def lithium_fluoride():
    return cubic("Fm-3m", 4.03, ["Li", "F"], [[0, 0, 0], [0.5, 0.5, 0.5]])


def one_atom(element, a=4.0):
    return Structure(Lattice.cubic(a), [element], [[0, 0, 0]])


# -- pseudopotentials ------------------------------------------------------------------------------


def upf(element, valence=4.0, inside=None):
    """Return a made-up UPF file: a header that reads, and an end."""
    return (
        f'<UPF version="2.0.1">\n<PP_HEADER element="{inside or element}" z_valence="{valence}" '
        'wfc_cutoff="30.0" rho_cutoff="240.0"/>\n<PP_MESH></PP_MESH>\n</UPF>\n'
    )


def write_upf(folder, *elements, valence=4.0):
    folder.mkdir(parents=True, exist_ok=True)
    for element in elements:
        (folder / f"{element}.made.UPF").write_text(upf(element, valence))
    return folder


# -- programs --------------------------------------------------------------------------------------


def stub(folder, body, name="pw.x"):
    """Write an executable in Python; ``body`` is what it does."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(f"#!{sys.executable} -IS\n{textwrap.dedent(body)}")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def saying(folder, text, status=0):
    """Write an executable that says something and ends."""
    return stub(folder, f"import sys\nprint({text!r})\nsys.exit({status})\n")


IGNORES_SIGTERM = """
    import os, signal, time
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.fork()
    open(f"pid-{os.getpid()}", "w").close()
    time.sleep(40)
"""
"""A stub that hangs with a child, neither of which ends when asked to."""


# -- processes -------------------------------------------------------------------------------------


def alive(pid):
    """Return whether a process runs: a zombie does not."""
    try:
        text = Path("/proc", str(pid), "stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return text.rsplit(")", 1)[1].split()[0] not in "ZX"


def processes_in(folder):
    """Return the living processes whose working folder is below ``folder``."""
    found = []
    for name in os.listdir("/proc"):
        try:
            where = os.readlink(f"/proc/{name}/cwd") if name.isdigit() else ""
        except OSError:
            continue
        if Path(where.removesuffix(" (deleted)")).is_relative_to(folder) and alive(name):
            found.append(int(name))
    return found


def shared_memory_of(pids):
    """Return the files in /dev/shm that belong to some processes, by the numbers in their names."""
    files = os.listdir("/dev/shm") if Path("/dev/shm").is_dir() else []
    # Whole numbers: a server of another test may have drawn one that holds a process's.
    return [f for f in files if any(re.search(rf"(?<!\d){pid}(?!\d)", f) for pid in pids)]


# -- a session by hand -----------------------------------------------------------------------------

INPUT = """&control
 calculation='scf', prefix='pw', outdir='{outdir}', pseudo_dir='{pseudo_dir}', disk_io='none'
 max_seconds={max_seconds}
/
&system
 ibrav=0, nat={nat}, ntyp=1, ecutwfc={ecutwfc}, ecutrho={ecutrho}, occupations='fixed', {system}
/
&electrons
 conv_thr=1e-6, mixing_beta=0.7
/
ATOMIC_SPECIES
{species}
K_POINTS automatic
{k_points} 0 0 0
CELL_PARAMETERS angstrom
{cell}
ATOMIC_POSITIONS crystal
{positions}
"""
SILICON = "Si 28.085 Si.pbe-n-rrkjus_psl.1.0.0.UPF"
DEFAULTS = {
    "outdir": ".",
    "max_seconds": 300,
    "nat": 2,
    "ecutwfc": 12,
    "ecutrho": 60,
    "system": "nbnd=8",
    "species": SILICON,
    "k_points": "2 2 2",
    "cell": "0 2.7155 2.7155\n2.7155 0 2.7155\n2.7155 2.7155 0",
    "positions": "Si 0 0 0\nSi .25 .25 .25",
}
