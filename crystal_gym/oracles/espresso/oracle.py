"""The oracle that calculates: one pw.x run per structure, each in a folder of its own."""

from __future__ import annotations

import json
import math
import os
import shutil
import socket
import tempfile
import uuid
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crystal_gym.files import cache_dir
from crystal_gym.oracles.base import Properties, Status
from crystal_gym.oracles.espresso.inputs import (
    check_structure,
    count_bands,
    count_electrons,
    pw_input,
)
from crystal_gym.oracles.espresso.outputs import PwOutput, read_output, read_version
from crystal_gym.oracles.espresso.process import run_session
from crystal_gym.oracles.espresso.pseudopotentials import Pseudopotentials
from crystal_gym.oracles.espresso.settings import PwSettings, make_settings
from crystal_gym.oracles.references import ReferenceEnergies, find_references, formation_energy
from crystal_gym.structures import site_symbols

if TYPE_CHECKING:
    from pymatgen.core import Structure

__all__ = ["EspressoOracle", "find_pw", "pw_environment", "pw_version"]

_INSTALL = (
    "Debian and Ubuntu: `apt-get install quantum-espresso`; conda: `conda install -c conda-forge "
    "qe`; on a cluster: `module load quantum-espresso` or similar"
)


_LEAST_MEMORY_GB = 0.5
"""Below some 0.35 GB pw.x cannot even begin: OpenBLAS asks for its buffer again and again."""


_NO_FORMATION_ENERGY = "; no formation energy: "


class EspressoOracle:
    """Calculates total energy and band gap with Quantum ESPRESSO's pw.x.

    PBE at fixed occupations and a fixed cell, as behind the labels of Govindarajan et al. 2024
    (doi 10.1039/d4dd00024b). The gap is the lowest unoccupied minus the highest occupied level on
    the k-mesh, over both spin channels, and not below 0. Formation energies are eqn (15), with
    reference energies that belong to these settings and pseudopotentials.

    A calculation that fails has a status that says why, and its folder is kept below
    ``scratch/failed``; that of a good one is removed.

    Args:
        preset: ``"labels"``, ``"fast"``, ``"paper"`` or a :class:`PwSettings`.
        pseudopotentials: Folder of UPF files; defaults to ``$CRYSTAL_GYM_PSEUDO`` or where
            ``crystal-gym data fetch sssp`` puts them.
        references: Reference energies; ``"auto"`` finds those of the settings, None gives no
            formation energies.
        pw: The executable, by name or path.
        ranks: MPI processes; 1 runs pw.x without ``mpirun``. Two workers with one rank each are
            faster than one with two.
        timeout_s: Wall time of one run of pw.x.
        memory_gb: Most address space of each process, at least 0.5.
        scratch: Where calculations run; defaults to ``espresso`` in the user's cache.
        **changes: Single settings that differ from the preset's, such as ``k_mesh=(2, 2, 2)``.

    Raises:
        FileNotFoundError: If there is no pw.x, no mpirun for several ranks, or no pseudopotential.
        ValueError: If a setting is unknown or not usable, or no reference energies are known for
            the settings.
        OSError: If the scratch folder cannot be written.
    """

    def __init__(
        self,
        preset: str | PwSettings = "labels",
        *,
        pseudopotentials: Path | str | None = None,
        references: ReferenceEnergies | str | None = "auto",
        pw: str = "pw.x",
        ranks: int = 1,
        timeout_s: float = 3600.0,
        memory_gb: float = 8.0,
        scratch: Path | str | None = None,
        **changes: Any,
    ) -> None:
        self.settings = make_settings(preset, **changes)
        if not isinstance(ranks, int) or isinstance(ranks, bool) or ranks < 1:
            raise ValueError(f"ranks={ranks!r} is not usable: expected a whole number above 0")
        _check_limit("timeout_s", timeout_s, 0.0)
        _check_limit("memory_gb", memory_gb, _LEAST_MEMORY_GB)
        self.pw = find_pw(pw)
        self.ranks = ranks
        self.timeout_s = float(timeout_s)
        self.memory_gb = float(memory_gb)
        self.pseudopotentials = Pseudopotentials(pseudopotentials)
        self.references = self._find_references(references)
        self.scratch = Path(scratch) if scratch is not None else cache_dir() / "espresso"
        self.scratch = self.scratch.absolute()
        if self.ranks > 1 and shutil.which("mpirun") is None:
            raise FileNotFoundError(f"ranks={ranks} needs mpirun, which is not installed: use 1")
        _prepare_scratch(self.scratch)

    def __repr__(self) -> str:
        return f"EspressoOracle(pw.x {self.version}, {self.settings})"

    @cached_property
    def version(self) -> str:
        """Version of pw.x, such as ``6.7MaX``."""
        return pw_version(self.pw)

    # -- the oracle's protocol -------------------------------------------------------------------

    def evaluate(self, structures: Sequence[Structure]) -> list[Properties]:
        """Return the properties of each structure, calculated one after the other."""
        return [self._evaluate(structure) for structure in structures]

    def fingerprint(self, elements: Iterable[str]) -> str:
        """Return what a result depends on besides the crystal: settings, files, pw.x version."""
        files = {e: self._md5(e) for e in sorted(set(elements))}
        return json.dumps(
            {"pw.x": self.version, "settings": self.settings.key, "pseudopotentials": files},
            sort_keys=True,
        )

    def derive(self, properties: Properties, species: Sequence[str]) -> Properties:
        """Return stored properties with the formation energy that the references give.

        Args:
            properties: Of a calculation with the same :meth:`fingerprint`.
            species: Element of every site.

        Returns:
            A copy; without a formation energy where a reference is missing, which its provenance
            says.
        """
        energy = properties.total_energy_ry
        # What was noted when it was stored may have changed since.
        provenance = properties.provenance.partition(_NO_FORMATION_ENERGY)[0]
        value = None
        if self.references is not None and energy is not None:
            missing = self.references.missing({e: self._md5(e) for e in set(species)})
            if missing:
                provenance += (
                    f"{_NO_FORMATION_ENERGY}there is no reference for {', '.join(missing)} with "
                    "this pseudopotential; run `crystal-gym label references`"
                )
            else:
                value = formation_energy(energy, species, self.references.energies_ry)
        return replace(properties, formation_energy_ev_per_atom=value, provenance=provenance)

    # -- parts -----------------------------------------------------------------------------------

    def _md5(self, element: str) -> str:
        return self.pseudopotentials[element].md5 if element in self.pseudopotentials else ""

    def _find_references(
        self, references: ReferenceEnergies | str | None
    ) -> ReferenceEnergies | None:
        if references is None or isinstance(references, ReferenceEnergies):
            if references is not None and references.settings != self.settings.energy_key:
                raise ValueError(
                    "the reference energies belong to other settings (energy key "
                    f"{references.settings}, not {self.settings.energy_key}): formation energies "
                    "from them would mean nothing; run `crystal-gym label references` with these "
                    "settings, or pass references=None"
                )
            return references
        if references != "auto":
            raise TypeError(
                f"references={references!r} is not understood: expected ReferenceEnergies, 'auto' "
                "or None"
            )
        found = find_references(self.settings.energy_key)
        if found is None:
            raise ValueError(
                f"no reference energies are known for these settings ({self.settings}), so there "
                "can be no formation energies: run `crystal-gym label references` with them first, "
                "or pass references=None for energies and gaps alone"
            )
        return found

    def _evaluate(self, structure: Structure) -> Properties:
        problem = check_structure(structure, self.pseudopotentials)
        if problem is not None:
            return Properties(status=problem[0], provenance=problem[1])
        try:
            electrons = count_electrons(structure, self.pseudopotentials)
        except ValueError as error:  # a damaged pseudopotential
            return Properties(status=Status.CONFIGURATION, provenance=str(error))
        magnetizations: Sequence[int | None] = (None,)
        if electrons % 2 and self.settings.smearing_ry is None:
            magnetizations = [m for m in self.settings.magnetizations if m <= electrons]
        runs = [self._run(structure, electrons, m) for m in magnetizations]
        walls = [run.wall_s for run in runs if run.wall_s is not None]
        best = replace(_best(runs), wall_s=round(sum(walls), 3) if walls else None)
        return self.derive(best, site_symbols(structure))

    def _run(self, structure: Structure, electrons: int, magnetization: int | None) -> Properties:
        lattice = structure.lattice.matrix
        try:
            n_bands = count_bands(self.settings, electrons, magnetization, lattice)
        except ValueError as error:
            return Properties(status=Status.BANDS, provenance=str(error))
        elements = sorted(set(site_symbols(structure)))
        text = pw_input(
            structure,
            self.settings,
            {e: self.pseudopotentials[e].file for e in elements},
            pseudo_dir=str(self.pseudopotentials.folder.absolute()),
            n_bands=n_bands,
            magnetization=magnetization,
            max_seconds=round(0.95 * self.timeout_s, 3),
        )
        running = self.scratch / "running"
        folder = running / f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:12]}"
        try:
            folder.mkdir(parents=True)
            (folder / "pw.in").write_text(text, encoding="utf-8")
            finished = run_session(
                self._command(),
                folder=folder,
                output=folder / "pw.out",
                timeout_s=self.timeout_s,
                memory_bytes=int(self.memory_gb * 2**30),
                environment=pw_environment(folder),
            )
            said = (folder / "pw.out").read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            shutil.rmtree(folder, ignore_errors=True)
            return Properties(
                status=Status.IO_OR_TRUNCATED,
                provenance=f"the calculation could not be run in {folder} ({error})",
            )
        except BaseException:  # such as Ctrl-C
            shutil.rmtree(folder, ignore_errors=True)
            raise
        result = read_output(said, finished.returncode, timed_out=finished.timed_out)
        expected = vars(self).get("version", result.version)  # of whoever stores results under it
        if result.version is not None and result.version != expected:
            shutil.rmtree(folder, ignore_errors=True)
            return Properties(  # such as a worker of a cluster that has another installation
                status=Status.CONFIGURATION,
                provenance=f"{self.pw} on {socket.gethostname()} is version {result.version}, not "
                f"{expected} under which the result would be stored: install the same version "
                "everywhere, or label again with each",
            )
        details = _details(result, electrons, n_bands)
        metal = self.settings.smearing_ry is not None and result.total_energy_ry is not None
        if result.status is Status.OK or metal:
            shutil.rmtree(folder, ignore_errors=True)
        else:
            counts = Counter(site_symbols(structure))  # pymatgen's formula warns of noble gases
            formula = "".join(f"{element}{n}" for element, n in counts.items())
            details["folder"] = str(_keep(folder, self.scratch / "failed", formula))
        program = f"pw.x {result.version}" if result.version else Path(self.pw).name
        summary = f"{program}, {self.settings}"
        return Properties(
            total_energy_ry=result.total_energy_ry,
            band_gap_ev=result.band_gap_ev,
            status=result.status,
            provenance=f"{summary}: {result.reason}" if result.reason else summary,
            wall_s=round(finished.wall_s, 3),
            details=details,
        )

    def _command(self) -> list[str]:
        serial = [self.pw, "-in", "pw.in"]
        return serial if self.ranks == 1 else ["mpirun", "-np", str(self.ranks), *serial]


def _best(runs: Sequence[Properties]) -> Properties:
    """Return the run of lowest energy; a failure where none has one, or one may have it yet."""
    if not runs:
        return Properties(
            status=Status.ODD_ELECTRONS,
            provenance="none of the magnetizations to try is possible with so few electrons",
        )
    for run in runs:
        if not run.status.is_final:  # such as a time limit: a lower energy may be behind it
            return run
    finished = [run for run in runs if run.total_energy_ry is not None]
    return min(finished, key=lambda run: run.total_energy_ry or 0.0) if finished else runs[0]


def _check_limit(name: str, value: Any, least: float) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not (0 < value < math.inf and value >= least):
        expected = f"at least {least:g}" if least else "a number above 0"
        raise ValueError(f"{name}={value!r} is not usable: expected {expected}")


def _details(output: PwOutput, electrons: int, n_bands: int) -> dict[str, Any]:
    found = {
        "n_electrons": electrons,
        "n_bands": n_bands,
        "homo_ev": output.homo_ev,
        "lumo_ev": output.lumo_ev,
        "n_iterations": output.n_iterations,
        "magnetization": output.magnetization,
    }
    return {name: value for name, value in found.items() if value is not None}


def _prepare_scratch(scratch: Path) -> None:
    """Make the folder, and clear it of calculations that a killed process left running."""
    running = scratch / "running"
    try:
        running.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=scratch):
            pass
    except OSError as error:
        raise OSError(
            error.errno, f"{scratch} cannot be written ({error.strerror}): name another scratch"
        ) from error
    host = socket.gethostname()
    for folder in running.iterdir():
        owner, _, rest = folder.name.removeprefix(f"{host}-").partition("-")
        if folder.name.startswith(f"{host}-") and rest and owner.isdigit():
            if not Path("/proc", owner).exists() and Path("/proc").is_dir():
                shutil.rmtree(folder, ignore_errors=True)


def _keep(folder: Path, failed: Path, formula: str) -> Path:
    """Move the folder of a failed calculation to where it stays."""
    target = failed / f"{formula[:100]}-{folder.name.rsplit('-', 1)[1]}"
    try:
        failed.mkdir(parents=True, exist_ok=True)
        return folder.rename(target)
    except OSError:  # a full disk: it stays where it is
        return folder


def find_pw(pw: str = "pw.x") -> str:
    """Return the absolute path of the executable.

    Args:
        pw: Name or path.

    Returns:
        Absolute path.

    Raises:
        FileNotFoundError: If there is none, with how to install it.
    """
    found = shutil.which(pw)
    if found is None:
        raise FileNotFoundError(
            f"the program {pw!r} of Quantum ESPRESSO was not found: install it ({_INSTALL}), or "
            "use oracle='table'"
        )
    return str(Path(found).absolute())


def pw_environment(folder: Path) -> dict[str, str]:
    """Return the environment of a calculation.

    One thread for each process; MPI's own files go with the folder, however the run ends; and a
    bare pw.x must not start a daemon in a session of its own, which no one could end.
    """
    return os.environ | {
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",  # which BLAS libraries heed before OMP_NUM_THREADS
        "MKL_NUM_THREADS": "1",
        "OMPI_MCA_hwloc_base_binding_policy": "none",  # else all workers' ranks share core 0
        "OMPI_MCA_mpi_yield_when_idle": "1",  # ten times faster where cores are shared
        "OMPI_MCA_ess_singleton_isolated": "1",
        "OMPI_MCA_btl_vader_backing_directory": str(folder),
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "TMPDIR": str(folder),
        # pw.x takes and returns large arrays over and over: kept by the allocator instead of given
        # back to the system each time, they cost a third less CPU time (glibc; elsewhere unused).
        "MALLOC_MMAP_THRESHOLD_": str(2**30),
        "MALLOC_TRIM_THRESHOLD_": str(2**31),
    }


def pw_version(pw: str) -> str:
    """Return the version of an executable, such as ``6.7MaX``.

    Args:
        pw: Path of the executable.

    Returns:
        As its banner says it.

    Raises:
        ValueError: If it does not start, or says no version.
    """
    stat = Path(pw).stat()
    return _pw_version(pw, stat.st_mtime_ns)


@lru_cache(maxsize=8)
def _pw_version(pw: str, modified_ns: int) -> str:
    # pw.x knows no --version: it prints its banner before it finds that its input is empty.
    with tempfile.TemporaryDirectory(prefix="crystal-gym-pw-") as name:
        folder = Path(name)
        (folder / "pw.in").touch()
        try:
            run_session(
                [pw, "-in", "pw.in"],
                folder=folder,
                output=folder / "pw.out",
                timeout_s=60.0,
                environment=pw_environment(folder),
            )
        except OSError as error:
            raise ValueError(f"{pw} cannot be started ({error}): {_INSTALL}") from error
        text = (folder / "pw.out").read_text(encoding="utf-8", errors="replace")
    version = read_version(text)
    if version is None:
        first = next((line.strip() for line in text.splitlines() if line.strip()), "nothing")
        raise ValueError(
            f"{pw} is no working pw.x: expected a line 'Program PWSCF v.6.7', it said "
            f"{first[:200]!r}; {_INSTALL}"
        )
    return version
