"""What EspressoOracle and its cache cost beside pw.x.

python benchmarks/oracle.py --pseudo FOLDER        (UPF files, Si and C among them; pw.x installed)

The overhead of a calculation is the wall time of `EspressoOracle.evaluate` minus that of the bare
`pw.x -in pw.in` on the input that it writes, each as the median of several runs in turn.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"  # before numpy is imported, or it has no effect

import numpy as np  # noqa: E402
from pymatgen.core import DummySpecies, Lattice, Structure  # noqa: E402

from crystal_gym.crystal_key import cell_key  # noqa: E402
from crystal_gym.oracles import CachedOracle, EspressoOracle, Filling, Properties  # noqa: E402
from crystal_gym.oracles.cache import ResultStore  # noqa: E402
from crystal_gym.oracles.espresso.oracle import find_pw, pw_environment  # noqa: E402
from crystal_gym.skeletons import Skeleton, build_skeletons  # noqa: E402
from crystal_gym.structures import cell_from_structure  # noqa: E402

SI = Structure(
    Lattice([[0, 2.7155, 2.7155], [2.7155, 0, 2.7155], [2.7155, 2.7155, 0]]),
    ["Si", "Si"],
    [[0, 0, 0], [0.25, 0.25, 0.25]],
)
SHORT = {"ecutwfc_ry": 12, "ecutrho_ry": 60, "k_mesh": (2, 2, 2), "n_bands": 8}
LONG = {"ecutwfc_ry": 30, "ecutrho_ry": 240, "k_mesh": (4, 4, 4), "n_bands": 48}


def overhead(name: str, settings: dict, pseudo: Path, folder: Path, repeats: int) -> None:
    """Time the oracle and the bare program in turn."""
    oracle = EspressoOracle(
        "fast", pseudopotentials=pseudo, references=None, scratch=folder / "scratch", **settings
    )
    cached = CachedOracle(oracle, folder / "overhead.db")
    oracle.fingerprint(["Si"])  # asks pw.x for its version, once in a process
    bare_folder = folder / "bare"
    _write_input(oracle, bare_folder)
    bare, own, around, stored, cpu = [], [], [], [], []
    for number in range(repeats):
        with open(bare_folder / "pw.out", "wb") as output:
            start = time.monotonic()
            subprocess.run(
                [find_pw(), "-in", "pw.in"],
                cwd=bare_folder,
                env=pw_environment(bare_folder),
                stdout=output,
                check=True,
            )
            bare.append(time.monotonic() - start)
        start, started = time.monotonic(), time.process_time()
        (result,) = oracle.evaluate([SI])
        own.append(time.monotonic() - start)
        cpu.append(time.process_time() - started)
        around.append(own[-1] - result.wall_s)
        start = time.monotonic()
        cached.store.put(SI, f"{name}{number}", "benchmark", result)
        stored.append(time.monotonic() - start)
    print(
        f"{name}: bare pw.x {statistics.median(bare):.3f} s ({min(bare):.3f} to {max(bare):.3f}), "
        f"evaluate {statistics.median(own):.3f} s; overhead "
        f"{statistics.median(o - b for o, b in zip(own, bare, strict=True)):.3f} s "
        f"(of the fastest runs {min(own) - min(bare):.3f} s); before and after pw.x "
        f"{1e3 * statistics.median(around):.0f} ms, {1e3 * statistics.median(cpu):.0f} ms CPU of "
        f"ours in all; storing {1e3 * statistics.median(stored):.0f} ms"
    )


def _write_input(oracle: EspressoOracle, folder: Path) -> None:
    """Let the oracle itself write its input: its program is replaced by one that copies it."""
    folder.mkdir(exist_ok=True)
    copier = folder / "copier"
    copier.write_text(f"#!/bin/sh\ncp pw.in {folder}/pw.in\n")
    copier.chmod(0o755)
    pw, oracle.pw = oracle.pw, str(copier)
    oracle.version  # noqa: B018 (asked before the program is another)
    oracle.evaluate([SI])
    oracle.pw = pw


def wurtzite_skeletons(count: int) -> list[Skeleton]:
    """Return skeletons with four sites and few symmetries."""
    sites = [[1 / 3, 2 / 3, 0], [2 / 3, 1 / 3, 0.5], [1 / 3, 2 / 3, 0.375], [2 / 3, 1 / 3, 0.875]]
    cells = [
        cell_from_structure(
            Structure(Lattice.hexagonal(3.5 + 0.1 * i, 6.1), [DummySpecies("X")] * 4, sites), str(i)
        )
        for i in range(count)
    ]
    skeletons, _ = build_skeletons(cells, workers=1)
    return list(skeletons)


def different_fillings(pseudo: Path, count: int) -> list[Filling]:
    """Return fillings of which no two are the same crystal."""
    from crystal_gym.elements import symbol_to_token
    from crystal_gym.oracles.espresso import Pseudopotentials

    available = np.array([symbol_to_token(e) for e in Pseudopotentials(pseudo)])
    skeletons = wurtzite_skeletons(5)
    generator, found = np.random.default_rng(0), {}
    while len(found) < count:
        skeleton = skeletons[generator.integers(len(skeletons))]
        tokens = generator.choice(available, 4).astype(np.int16)
        found[skeleton.key, skeleton.canonical_tokens(tokens)] = Filling(skeleton, tokens)
    return list(found.values())


def lookups(pseudo: Path, folder: Path, count: int) -> None:
    """Time insertion, opening, and answers from a database of many results."""
    oracle = EspressoOracle("fast", pseudopotentials=pseudo, scratch=folder / "scratch")
    path = folder / "many.db"
    fillings = different_fillings(pseudo, count)
    store = ResultStore(path)
    rows = []
    for number, (skeleton, tokens) in enumerate(fillings):
        structure = skeleton.structure(tokens)
        crystal = cell_key(skeleton.lattice, skeleton.frac_coords, tokens)
        fingerprint = oracle.fingerprint({s.specie.symbol for s in structure})
        result = Properties(-100.0 - number, None, 1.0, provenance="made", wall_s=1.0)
        rows.append((structure, crystal, fingerprint, result))
    start, started = time.monotonic(), time.process_time()
    for row in rows:
        store.put(*row)
    took, cpu = time.monotonic() - start, time.process_time() - started
    print(
        f"storing: {count / took:,.0f} results/s, {1e3 * took / count:.2f} ms each, of which "
        f"{1e3 * cpu / count:.2f} ms CPU"
    )

    start, started = time.monotonic(), time.process_time()
    cached = CachedOracle(oracle, path)
    print(
        f"opening a database of {len(cached.store):,} results: {time.monotonic() - start:.2f} s "
        f"({time.process_time() - started:.2f} CPU s)"
    )
    for name in ("first", "second"):
        start, started = time.monotonic(), time.process_time()
        answers = cached.evaluate_fillings(fillings)
        rate, per_cpu = count / (time.monotonic() - start), count / (time.process_time() - started)
        print(
            f"{name} look-up of {count:,} different fillings: {rate:,.0f}/s "
            f"({per_cpu:,.0f} per CPU second)"
        )
    if any(not answer.provenance.endswith("(stored)") for answer in answers):
        raise SystemExit("error: an answer is not from the database")

    structures = [row[0] for row in rows[:500]]
    fresh = CachedOracle(oracle, cached.store)
    for name, ask in (
        ("filling", lambda i: fresh.evaluate_fillings([fillings[i]])),
        ("Structure", lambda i: fresh.evaluate([structures[i]])),
    ):
        for time_asked in ("first", "again"):
            took = []
            for i in range(len(structures)):
                start = time.perf_counter()
                ask(i)
                took.append(time.perf_counter() - start)
            print(
                f"one {name}, asked {'for the first time' if time_asked == 'first' else 'again'}: "
                f"{1e3 * statistics.median(took):.3f} ms (99% below "
                f"{1e3 * np.quantile(took, 0.99):.3f} ms)"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pseudo", type=Path, required=True, help="folder of UPF files")
    parser.add_argument("--repeats", type=int, default=7, help="short runs (%(default)s)")
    parser.add_argument("--long-repeats", type=int, default=3, help="long runs (%(default)s)")
    parser.add_argument("--count", type=int, default=5000, help="stored results (%(default)s)")
    options = parser.parse_args()
    load = " ".join(f"{value:.2f}" for value in os.getloadavg())
    print(f"{os.cpu_count()} cores, load {load}")
    folder = Path(tempfile.mkdtemp(prefix="crystal-gym-benchmark-"))
    try:
        lookups(options.pseudo, folder, options.count)
        overhead("short", SHORT, options.pseudo, folder, options.repeats)
        overhead("long", LONG, options.pseudo, folder, options.long_repeats)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
