#!/usr/bin/env python3
"""Label a small set of textbook nonmetals with Quantum ESPRESSO's pw.x.

The result, ``crystal_gym/data/mini_labels.json``, is the data set the package ships for trying
things out without a download. Crystals are given by structure type and experimental lattice
constants; energies and gaps are computed here, with the settings behind the labels of Govindarajan
et al. 2024 (doi 10.1039/d4dd00024b), so the numbers can be compared and mixed with theirs.

The script is resumable: after every calculation the file is replaced atomically, and a second run
skips the crystals that are already in it. Failed calculations stay in the file with the reason.

Examples::

    python scripts/label_mini.py --pseudo sssp_efficiency.tar.gz
    python scripts/label_mini.py --only MgO-rocksalt LiF-rocksalt --output two.json
    python scripts/label_mini.py --parity "$CRYSTAL_GYM_DATA"     # compare with published labels
"""

from __future__ import annotations

import argparse
import csv
import gzip
import hashlib
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ase import Atoms
from ase.io.espresso import write_espresso_in

CODE = "pw.x 6.7 (Debian)"
VERSION = "6.7"
DEFAULT_OUTPUT = (
    Path(__file__).resolve().parent.parent / "crystal_gym" / "data" / "mini_labels.json"
)
DESCRIPTION = (
    "Total energies and band gaps of well-known nonmetals at experimental lattice constants, "
    "computed by scripts/label_mini.py with the settings of the labels of Govindarajan et al. 2024 "
    "(doi 10.1039/d4dd00024b). Energies in Ry per cell as pw.x prints them, gaps (LUMO - HOMO on "
    "the k-mesh, clipped at 0) in eV. Entries whose status is not 'ok' carry the reason."
)
SETTINGS: dict[str, Any] = {
    "calculation": "scf",
    "ecutwfc_ry": 30.0,
    "ecutrho_ry": 240.0,
    "conv_thr": 1e-6,
    "mixing_beta": 0.7,
    "k_mesh": [3, 3, 3],
    "k_offset": [0, 0, 0],
    "occupations": "fixed",
    "nspin": 1,
    "nbnd": 64,
    "functional": "PBE",
}
# Tried in turn where 64 bands are more than a small cell has plane waves.
SPARE_BANDS = (20, 8)


# --------------------------------------------------------------------------- structures


class Crystal(NamedTuple):
    """One crystal to label: a primitive cell and where it comes from."""

    name: str
    structure_type: str
    formula: str
    lattice: list[list[float]]
    frac_coords: list[list[float]]
    species: list[str]
    lattice_source: str

    def atoms(self) -> Atoms:
        """The crystal for ASE."""
        return Atoms(self.species, scaled_positions=self.frac_coords, cell=self.lattice, pbc=True)


class StructureType(NamedTuple):
    """Sites of a structure type; ``sites`` holds (position in the formula, coordinates)."""

    cell: Callable[..., list[list[float]]]
    sites: Callable[[float], list[tuple[int, list[float]]]]
    parameters: tuple[str, ...] = ("a",)


def cubic(a: float) -> list[list[float]]:
    """Primitive cubic cell."""
    return [[a, 0.0, 0.0], [0.0, a, 0.0], [0.0, 0.0, a]]


def fcc(a: float) -> list[list[float]]:
    """Primitive (and Niggli-reduced) cell of the face-centred cubic lattice."""
    h = a / 2
    return [[0.0, h, h], [h, 0.0, h], [h, h, 0.0]]


def hexagonal(a: float, c: float) -> list[list[float]]:
    """Hexagonal cell."""
    return [[a, 0.0, 0.0], [-a / 2, a * 3**0.5 / 2, 0.0], [0.0, 0.0, c]]


def tetragonal(a: float, c: float) -> list[list[float]]:
    """Primitive tetragonal cell."""
    return [[a, 0.0, 0.0], [0.0, a, 0.0], [0.0, 0.0, c]]


def _corner(fraction: float) -> list[float]:
    """The site at one fraction along the body diagonal."""
    return [fraction] * 3


def _wurtzite(u: float) -> list[tuple[int, list[float]]]:
    s, t = 1 / 3, 2 / 3
    return [(0, [s, t, 0.0]), (0, [t, s, 0.5]), (1, [s, t, u]), (1, [t, s, 0.5 + u])]


def _rutile(u: float) -> list[tuple[int, list[float]]]:
    anions = [[u, u, 0.0], [1 - u, 1 - u, 0.0], [0.5 + u, 0.5 - u, 0.5], [0.5 - u, 0.5 + u, 0.5]]
    return [(0, _corner(0.0)), (0, _corner(0.5)), *((1, x) for x in anions)]


def _perovskite(_: float) -> list[tuple[int, list[float]]]:
    anions = [[0.5, 0.0, 0.0], [0.0, 0.5, 0.0], [0.0, 0.0, 0.5]]
    return [(0, _corner(0.5)), (1, _corner(0.0)), *((2, x) for x in anions)]


def _diagonal(*sites: tuple[int, float]) -> Callable[[float], list[tuple[int, list[float]]]]:
    """Sites on the body diagonal, which is all that the simple cubic types need."""
    return lambda _: [(index, _corner(fraction)) for index, fraction in sites]


_HEXAGONAL = ("a", "c", "u")
TYPES: dict[str, StructureType] = {
    "diamond": StructureType(fcc, _diagonal((0, 0.0), (0, 0.25))),
    "zincblende": StructureType(fcc, _diagonal((0, 0.0), (1, 0.25))),
    "wurtzite": StructureType(hexagonal, _wurtzite, _HEXAGONAL),
    "rocksalt": StructureType(fcc, _diagonal((0, 0.0), (1, 0.5))),
    "caesium-chloride": StructureType(cubic, _diagonal((0, 0.0), (1, 0.5))),
    "fluorite": StructureType(fcc, _diagonal((0, 0.0), (1, 0.25), (1, 0.75))),
    "antifluorite": StructureType(fcc, _diagonal((0, 0.25), (0, 0.75), (1, 0.0))),
    # The "filled zinc blende" I-II-V compounds: both cations surround the anion tetrahedrally.
    "half-heusler": StructureType(fcc, _diagonal((0, 0.5), (1, 0.0), (2, 0.25))),
    "rutile": StructureType(tetragonal, _rutile, _HEXAGONAL),
    "perovskite": StructureType(cubic, _perovskite),
}

# Experimental lattice constants in Å (a, or a, c and the internal coordinate u), room temperature.
LATTICE_CONSTANTS: dict[str, dict[str, tuple[float, ...]]] = {
    "diamond": {"C": (3.567,), "Si": (5.431,), "Ge": (5.658,), "Sn": (6.489,)},
    "zincblende": {
        "BN": (3.616,),
        "BP": (4.538,),
        "SiC": (4.360,),
        "BeS": (4.870,),
        "AlP": (5.467,),
        "AlAs": (5.661,),
        "GaP": (5.451,),
        "GaAs": (5.653,),
        "ZnS": (5.409,),
        "ZnSe": (5.668,),
        "InAs": (6.058,),
    },
    "wurtzite": {
        "BeO": (2.698, 4.377, 0.378),
        "AlN": (3.112, 4.982, 0.382),
        "GaN": (3.189, 5.185, 0.377),
        "ZnO": (3.250, 5.207, 0.382),
    },
    "rocksalt": {
        "LiH": (4.084,),
        "LiF": (4.027,),
        "LiCl": (5.130,),
        "NaF": (4.634,),
        "NaCl": (5.640,),
        "KF": (5.347,),
        "KCl": (6.293,),
        "MgO": (4.212,),
        "MgS": (5.202,),
        "CaO": (4.811,),
    },
    "caesium-chloride": {
        "CsCl": (4.123,),
        "CsBr": (4.286,),
        "CsI": (4.567,),
        "TlCl": (3.834,),
        "TlBr": (3.985,),
    },
    "fluorite": {"CaF2": (5.463,), "SrF2": (5.800,), "BaF2": (6.200,), "CdF2": (5.388,)},
    "antifluorite": {
        "Li2O": (4.619,),
        "Na2O": (5.55,),
        "K2O": (6.436,),
        "Li2S": (5.710,),
        "Na2S": (6.526,),
        "Be2C": (4.342,),
        "Mg2Si": (6.351,),
    },
    "half-heusler": {"LiZnN": (4.877,), "LiZnAs": (5.940,), "LiMgP": (6.005,)},
    "rutile": {
        "MgF2": (4.621, 3.052, 0.303),
        "TiO2": (4.594, 2.959, 0.305),
        "SnO2": (4.738, 3.187, 0.307),
    },
    "perovskite": {
        "KMgF3": (3.989,),
        "SrTiO3": (3.905,),
        "KTaO3": (3.989,),
        "BaTiO3": (4.00,),
    },
}
# Crystals that do not have their structure at room temperature say so.
CONDITIONS = {"BaTiO3": "cubic phase, above 393 K", "Sn": "grey tin, below 286 K"}


def build_crystal(structure_type: str, formula: str, constants: Sequence[float]) -> Crystal:
    """The primitive cell of one formula in one structure type."""
    kind = TYPES[structure_type]
    symbols = re.findall(r"[A-Z][a-z]?", formula)
    u = constants[2] if len(constants) == 3 else 0.0
    sites = kind.sites(u)
    values = ", ".join(
        f"{label} = {value}" + ("" if label == "u" else " Å")
        for label, value in zip(kind.parameters, constants, strict=True)
    )
    condition = CONDITIONS.get(formula, "room temperature")
    return Crystal(
        name=f"{formula}-{structure_type}",
        structure_type=structure_type,
        formula=formula,
        lattice=kind.cell(*constants[:2]),
        frac_coords=[coords for _, coords in sites],
        species=[symbols[index] for index, _ in sites],
        lattice_source=f"experimental lattice constant, {condition}: {values}",
    )


def all_crystals() -> list[Crystal]:
    """Every crystal of the set, in file order."""
    return [
        build_crystal(structure_type, formula, constants)
        for structure_type, members in LATTICE_CONSTANTS.items()
        for formula, constants in members.items()
    ]


# --------------------------------------------------------------------------- pseudopotentials


class Pseudopotential(NamedTuple):
    """One UPF file."""

    file: str
    md5: str
    valence: float


class PseudopotentialFolder(NamedTuple):
    """A folder with the UPF files of the elements in use."""

    path: Path
    by_element: dict[str, Pseudopotential]


def element_of_file(name: str) -> str:
    """Element symbol a UPF file name starts with, as in ``b_pbe_v1.4.uspp.F.UPF``."""
    return re.split(r"[._-]", Path(name).name, maxsplit=1)[0].capitalize()


def is_upf(name: str) -> bool:
    """Whether a file name ends like a pseudopotential's."""
    return name.lower().endswith(".upf")


def read_header(path: Path) -> tuple[str, float]:
    """Element and number of valence electrons, from a UPF file of version 1 or 2."""
    text = path.read_text(encoding="utf-8", errors="replace")
    element = re.search(r'\belement="\s*(\w+)\s*"|^\s*(\w+)\s+Element\s*$', text, re.MULTILINE)
    valence = re.search(r'\bz_valence="\s*([^"\s]+)\s*"|^\s*(\S+)\s+Z valence', text, re.MULTILINE)
    if element is None or valence is None:
        raise SystemExit(f"error: {path.name} has no element or valence in its header")
    return element.group(1) or element.group(2), float(valence.group(1) or valence.group(2))


def collect_pseudopotentials(
    source: Path, elements: Iterable[str], folder: Path
) -> PseudopotentialFolder:
    """Copy the pseudopotentials of ``elements`` from a folder or tar archive into ``folder``."""
    wanted = set(elements)
    if source.is_dir():
        for path in sorted(source.iterdir()):
            if is_upf(path.name) and element_of_file(path.name) in wanted:
                shutil.copyfile(path, folder / path.name)
    elif source.is_file():
        extract_archive(source, wanted, folder)
    else:
        raise SystemExit(f"error: no pseudopotential folder or archive at {source}")
    found: dict[str, Pseudopotential] = {}
    for path in sorted(folder.iterdir()):
        element, valence = read_header(path)
        if element in found:
            raise SystemExit(f"error: {source} holds two pseudopotentials for {element}")
        digest = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
        found[element] = Pseudopotential(path.name, digest, valence)
    missing = sorted(wanted - set(found))
    if missing:
        raise SystemExit(f"error: {source} holds no pseudopotential for {', '.join(missing)}")
    return PseudopotentialFolder(folder, found)


def extract_archive(archive: Path, wanted: set[str], folder: Path) -> None:
    """Unpack the wanted UPF files flat; member paths are never trusted."""
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                name = Path(member.name).name
                if member.isfile() and is_upf(name) and element_of_file(name) in wanted:
                    stream = tar.extractfile(member)
                    assert stream is not None  # isfile() holds
                    (folder / name).write_bytes(stream.read())
    except tarfile.TarError as error:
        raise SystemExit(f"error: {archive} is not a readable tar archive") from error


# --------------------------------------------------------------------------- pw.x


class Run(NamedTuple):
    """Outcome of one pw.x process."""

    returncode: int | None
    """Exit status; ``None`` when the wall limit ended it."""
    output: str
    wall_s: float


def write_input(
    path: Path, crystal: Crystal, pseudopotentials: PseudopotentialFolder, nbnd: int
) -> None:
    """Write the pw.x input of one calculation."""
    parameters = {
        "control": {
            "calculation": SETTINGS["calculation"],
            "prefix": "mini",
            "outdir": ".",
            "pseudo_dir": str(pseudopotentials.path),
            "disk_io": "none",
        },
        "system": {
            "ecutwfc": SETTINGS["ecutwfc_ry"],
            "ecutrho": SETTINGS["ecutrho_ry"],
            "occupations": SETTINGS["occupations"],
            "nspin": SETTINGS["nspin"],
            "nbnd": nbnd,
        },
        "electrons": {
            "conv_thr": SETTINGS["conv_thr"],
            "mixing_beta": SETTINGS["mixing_beta"],
        },
    }
    files = {s: pseudopotentials.by_element[s].file for s in set(crystal.species)}
    with path.open("w", encoding="utf-8") as handle:
        write_espresso_in(
            handle,
            crystal.atoms(),
            input_data=parameters,
            pseudopotentials=files,
            kpts=SETTINGS["k_mesh"],
            koffset=SETTINGS["k_offset"],
            crystal_coordinates=True,
        )


def session_members(session: int) -> Iterator[int]:
    """Process ids of one session; MPI gives every rank a process group of its own."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if os.getsid(int(entry.name)) == session:
                    yield int(entry.name)
            except (ProcessLookupError, PermissionError):
                continue


def kill_session(process: subprocess.Popen[bytes]) -> None:
    """End the session of a process that we started: politely, then not."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        for pid in session_members(process.pid):
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            continue


def run_pw(pw: str, folder: Path, timeout_s: float) -> Run:
    """Run pw.x serially on ``pw.in`` in ``folder``."""
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        # A bare MPI program otherwise starts a daemon in a session we could not kill.
        "OMPI_MCA_ess_singleton_isolated": "1",
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "TMPDIR": str(folder),  # MPI's own files go with the folder, however the run ends
    }
    start = time.monotonic()
    returncode: int | None = None
    with (folder / "pw.out").open("wb") as output:
        process = subprocess.Popen(
            [pw, "-in", "pw.in"],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            returncode = process.wait(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            pass  # returncode stays None
        finally:
            if process.poll() is None:
                kill_session(process)
    wall = time.monotonic() - start
    text = (folder / "pw.out").read_text(encoding="utf-8", errors="replace")
    return Run(returncode, text, wall)


_ENERGY = re.compile(r"^!\s+total energy\s+=\s+(\S+)\s+Ry", re.MULTILINE)
_LEVELS = re.compile(r"highest occupied, lowest unoccupied level \(ev\):\s+(\S+)\s+(\S+)")
_ITERATIONS = re.compile(r"convergence has been achieved in\s+(\d+)\s+iterations")
_ERROR = re.compile(r"Error in routine\s+([^\n]+)\n\s*([^\n]+)")
_VERSION = re.compile(r"Program PWSCF v\.(\d+\.\d+)")
_TOO_MANY_BANDS = "more bands than PWs"


def failure_reason(run: Run) -> str | None:
    """Why a run gives no label, in one sentence; ``None`` when it does give one.

    "JOB DONE" is no evidence: pw.x prints it after an unconverged calculation too.
    """
    if run.returncode is None:
        return f"pw.x did not finish within {run.wall_s:.0f} s."
    error = _ERROR.search(run.output)
    if error is not None:
        routine, message = (text.strip(" :!.") for text in error.groups())
        return f"pw.x stopped in routine {routine}: {message}."
    if "convergence NOT achieved" in run.output:
        return "The self-consistency cycle did not converge."
    if run.returncode != 0:
        return f"pw.x ended with status {run.returncode}."
    if _ITERATIONS.search(run.output) is None:
        return "The output does not say that convergence has been achieved."
    energies = _ENERGY.findall(run.output)
    if len(energies) != 1:
        return f"The output has {len(energies)} final energies instead of one."
    if _LEVELS.search(run.output) is None:
        return "The output has no pair of highest occupied and lowest unoccupied levels."
    if float(energies[0]) >= 0:
        return f"The total energy {energies[0]} Ry is not negative."
    return None


def check_version(run: Run) -> None:
    """Refuse to file results of another pw.x under :data:`CODE`."""
    match = _VERSION.search(run.output)
    if match is not None and match.group(1) != VERSION:
        raise SystemExit(
            f"error: the labels are those of pw.x {VERSION}, but this is {match.group(1)}"
        )


def band_numbers(n_electrons: int) -> list[int]:
    """Numbers of bands to try, the published one first."""
    occupied = n_electrons // 2
    candidates = [SETTINGS["nbnd"], *(occupied + spare for spare in SPARE_BANDS)]
    return [n for i, n in enumerate(candidates) if n > occupied and n not in candidates[:i]]


def calculate(
    crystal: Crystal, pseudopotentials: PseudopotentialFolder, pw: str, timeout_s: float
) -> dict[str, Any]:
    """Label one crystal; the keys are those of an entry after its inputs."""
    valence = sum(pseudopotentials.by_element[s].valence for s in crystal.species)
    n_electrons = round(valence)
    result: dict[str, Any] = dict.fromkeys(
        ("nbnd", "status", "reason", "total_energy_ry", "band_gap_ev", "homo_ev", "lumo_ev")
    )
    result |= {"n_electrons": n_electrons, "n_scf_iterations": None, "wall_s": 0.0}
    if n_electrons % 2:
        odd = f"{n_electrons} electrons per cell cannot have fixed occupations without spin."
        return result | {"status": "failed", "reason": odd}
    for nbnd in band_numbers(n_electrons):
        with tempfile.TemporaryDirectory(prefix="label_mini_") as name:
            folder = Path(name)
            write_input(folder / "pw.in", crystal, pseudopotentials, nbnd)
            run = run_pw(pw, folder, timeout_s)
        check_version(run)
        result["nbnd"] = nbnd
        result["wall_s"] = round(result["wall_s"] + run.wall_s, 2)
        reason = failure_reason(run)
        if reason is None or _TOO_MANY_BANDS not in run.output:
            break
    if reason is not None:
        status = "timeout" if run.returncode is None else "failed"
        return result | {"status": status, "reason": reason}
    homo, lumo = (float(x) for x in _LEVELS.findall(run.output)[-1])
    return result | {
        "status": "ok",
        "total_energy_ry": float(_ENERGY.findall(run.output)[0]),
        # Difference of two numbers with four decimals: rounding removes binary noise only.
        "band_gap_ev": max(0.0, round(lumo - homo, 4)),
        "homo_ev": homo,
        "lumo_ev": lumo,
        "n_scf_iterations": int(_ITERATIONS.findall(run.output)[-1]),
    }


# --------------------------------------------------------------------------- result file


def entry_inputs(crystal: Crystal, pseudopotentials: PseudopotentialFolder) -> dict[str, Any]:
    """The part of an entry that is known before the calculation."""
    files = {
        symbol: {
            "file": pseudopotentials.by_element[symbol].file,
            "md5": pseudopotentials.by_element[symbol].md5,
        }
        for symbol in dict.fromkeys(crystal.species)
    }
    return crystal._asdict() | {"pseudopotentials": files}


def read_entries(path: Path) -> dict[str, dict[str, Any]]:
    """Entries of an earlier run by name."""
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        settings, entries = content["settings"], content["entries"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise SystemExit(f"error: {path} is not a file of this script ({error})") from error
    if settings != SETTINGS:
        raise SystemExit(f"error: {path} was made with other settings; give another --output")
    return {entry["name"]: entry for entry in entries}


def write_entries(path: Path, entries: dict[str, dict[str, Any]], order: Sequence[str]) -> None:
    """Replace the result file in one step, so an interrupted run leaves a whole file."""
    names = [name for name in order if name in entries]
    names += [name for name in entries if name not in set(order)]  # nothing is dropped
    content = {
        "description": DESCRIPTION,
        "code": CODE,
        "settings": SETTINGS,
        "entries": [entries[name] for name in names],
    }
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def is_finished(entry: dict[str, Any] | None, inputs: dict[str, Any], retry_failed: bool) -> bool:
    """Whether an entry answers for exactly these inputs."""
    if entry is None or any(entry.get(key) != value for key, value in inputs.items()):
        return False
    return entry["status"] == "ok" or not retry_failed


def progress_line(position: int, total: int, entry: dict[str, Any]) -> str:
    """One line per calculation."""
    head = (
        f"[{position}/{total}] {entry['name']:<24} {entry['wall_s']:7.1f} s  nbnd {entry['nbnd']}"
    )
    if entry["status"] != "ok":
        return f"{head}  {entry['status']}: {entry['reason']}"
    return f"{head}  E {entry['total_energy_ry']:.8f} Ry  gap {entry['band_gap_ev']:.4f} eV"


def label_all(
    crystals: Sequence[Crystal],
    pseudopotentials: PseudopotentialFolder,
    arguments: argparse.Namespace,
) -> None:
    """Label what the result file does not hold yet."""
    output: Path = arguments.output
    entries = read_entries(output)
    order = [crystal.name for crystal in all_crystals()]
    for position, crystal in enumerate(crystals, start=1):
        inputs = entry_inputs(crystal, pseudopotentials)
        if is_finished(entries.get(crystal.name), inputs, arguments.retry_failed):
            print(f"[{position}/{len(crystals)}] {crystal.name:<24} already in {output.name}")
            continue
        outcome = calculate(crystal, pseudopotentials, arguments.pw, arguments.timeout)
        entries[crystal.name] = inputs | outcome
        write_entries(output, entries, order)
        print(progress_line(position, len(crystals), entries[crystal.name]), flush=True)
    summarise(list(entries.values()))


def summarise(entries: Sequence[dict[str, Any]]) -> None:
    """Print what the file holds."""
    gaps = [entry["band_gap_ev"] for entry in entries if entry["status"] == "ok"]
    kinds = {entry["structure_type"] for entry in entries if entry["status"] == "ok"}
    print(f"{len(gaps)} labelled, {len(entries) - len(gaps)} failed, {len(kinds)} structure types")
    if gaps:
        print(f"gaps {min(gaps):.3f} to {max(gaps):.3f} eV, median {np.median(gaps):.3f} eV")
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(f"CPU time of pw.x in this run: {usage.ru_utime + usage.ru_stime:.0f} s")


# --------------------------------------------------------------------------- parity

# Rows of the published training split: MgO, hexagonal BN, Li2O, CaF2, Mg2Si.
PARITY_ROWS = (2082, 22607, 6952, 24291, 5969)


def read_csv(path: Path) -> Iterator[dict[str, str]]:
    """Rows of a gzipped CSV file."""
    if not path.is_file():
        raise SystemExit(f"error: {path} does not exist; point --parity to the data folder")
    with gzip.open(path, "rt", encoding="utf-8", newline="") as handle:
        yield from csv.DictReader(handle)


def published_crystals(data: Path, rows: Sequence[int]) -> dict[int, Crystal]:
    """Crystals of the published training split, keyed by row position."""
    from pymatgen.core import Structure

    crystals = {}
    for position, row in enumerate(read_csv(data / "mp20" / "train.csv.gz")):
        if position in rows:
            structure = Structure.from_str(row["cif"], fmt="cif")
            crystals[position] = Crystal(
                name=f"train-{position}",
                structure_type="published",
                formula=row["pretty_formula"],
                lattice=structure.lattice.matrix.tolist(),
                frac_coords=structure.frac_coords.tolist(),
                species=[site.specie.symbol for site in structure],
                lattice_source="MP-20",
            )
    return crystals


def check_parity(arguments: argparse.Namespace, folder: Path) -> None:
    """Recompute published labels through the same code and print the differences."""
    labels = {
        int(row["index"]): row
        for row in read_csv(arguments.parity / "qe" / "labels.csv.gz")
        if row["split"] == "train"
    }
    crystals = published_crystals(arguments.parity, PARITY_ROWS)
    elements = {symbol for crystal in crystals.values() for symbol in crystal.species}
    pseudopotentials = collect_pseudopotentials(arguments.pseudo, elements, folder)
    for row, crystal in crystals.items():
        result = calculate(crystal, pseudopotentials, arguments.pw, arguments.timeout)
        head = f"train row {row} {crystal.formula}: {result['wall_s']:.1f} s,"
        if result["status"] != "ok":
            print(f"{head} {result['reason']}")
            continue
        energy = float(labels[row]["total_energy_ry"])
        gap = float(labels[row]["band_gap_ev"])
        print(
            f"{head} energy {result['total_energy_ry']:.8f} Ry "
            f"(difference {1e3 * (result['total_energy_ry'] - energy):+.5f} mRy/cell), "
            f"gap {result['band_gap_ev']:.4f} eV "
            f"(difference {1e3 * (result['band_gap_ev'] - gap):+.2f} meV)",
            flush=True,
        )


# --------------------------------------------------------------------------- command line


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Command line of the script."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    data = os.environ.get("CRYSTAL_GYM_DATA")
    parser.add_argument(
        "--pseudo",
        type=Path,
        metavar="DIR_OR_ARCHIVE",
        default=Path(data, "qe", "sssp_efficiency.tar.gz") if data else None,
        help="UPF files (default: qe/sssp_efficiency.tar.gz under the variable CRYSTAL_GYM_DATA)",
    )
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT, help="JSON file to write")
    parser.add_argument("--pw", default="pw.x", help="the pw.x executable")
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds per calculation")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="label these crystals only")
    parser.add_argument("--retry-failed", action="store_true", help="repeat failed calculations")
    parser.add_argument("--list", action="store_true", help="print the crystals and stop")
    parser.add_argument(
        "--parity",
        type=Path,
        metavar="DATA",
        help="recompute a few published labels of the data folder and compare, nothing else",
    )
    arguments = parser.parse_args(argv)
    if arguments.pseudo is None and not arguments.list:
        parser.error("give the pseudopotentials with --pseudo or the variable CRYSTAL_GYM_DATA")
    return arguments


def select(crystals: Sequence[Crystal], names: Sequence[str] | None) -> list[Crystal]:
    """The crystals asked for."""
    if names is None:
        return list(crystals)
    unknown = sorted(set(names) - {crystal.name for crystal in crystals})
    if unknown:
        raise SystemExit(f"error: unknown crystals {', '.join(unknown)}; see --list")
    return [crystal for crystal in crystals if crystal.name in names]


def main(argv: list[str] | None = None) -> int:
    """Label the set, or check parity with the published labels."""
    arguments = parse_arguments(argv)
    crystals = select(all_crystals(), arguments.only)
    if arguments.list:
        for crystal in crystals:
            print(f"{crystal.name:<24} {len(crystal.species)} atoms  {crystal.lattice_source}")
        return 0
    executable = shutil.which(arguments.pw)
    if executable is None:
        raise SystemExit(f"error: {arguments.pw} was not found; install Quantum ESPRESSO")
    arguments.pw = str(Path(executable).absolute())  # the calculation runs in another folder
    # Ending this script must end its pw.x too, which lives in a session of its own.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with tempfile.TemporaryDirectory(prefix="label_mini_upf_") as name:
        folder = Path(name)
        if arguments.parity is not None:
            check_parity(arguments, folder)
            return 0
        elements = {symbol for crystal in crystals for symbol in crystal.species}
        pseudopotentials = collect_pseudopotentials(arguments.pseudo, elements, folder)
        label_all(crystals, pseudopotentials, arguments)
    return 0


if __name__ == "__main__":
    sys.exit(main())
