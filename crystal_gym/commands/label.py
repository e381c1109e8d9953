"""The command ``crystal-gym label``: structures in, a table of results and its settings out."""

from __future__ import annotations

import argparse
import csv
import io
import json
import platform
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from crystal_gym.cdvae import in_brief
from crystal_gym.cluster import executor_at
from crystal_gym.commands.terminal import shows_progress
from crystal_gym.elements import ELEMENTS, symbol_to_token
from crystal_gym.files import DAMAGED_GZIP, atomic_path, first_line, open_file, require_writable
from crystal_gym.labelling import label
from crystal_gym.oracles.base import Properties
from crystal_gym.oracles.cache import CachedOracle
from crystal_gym.oracles.espresso import (
    EspressoOracle,
    Pseudopotentials,
    PwSettings,
    make_settings,
)
from crystal_gym.oracles.espresso.elemental import elemental_settings, elemental_structure
from crystal_gym.oracles.references import (
    ReferenceEnergies,
    find_references,
    published_references,
    references_path,
)
from crystal_gym.sets import load_skeletons
from crystal_gym.structures import read_structures, to_structure

if TYPE_CHECKING:
    from pymatgen.core import Structure

__all__ = [
    "calculation_of",
    "expected_time",
    "label_as_told",
    "label_references",
    "label_structures",
    "read_fillings",
]

_COLUMNS = (
    "name",
    "formula",
    "status",
    "total_energy_ry",
    "band_gap_ev",
    "formation_energy_ev_per_atom",
    "wall_s",
    "provenance",
)


def label_structures(options: argparse.Namespace) -> str:
    """Calculate what the command line names; return what to print at the end."""
    if options.elements:
        raise ValueError("--elements belongs to `crystal-gym label references`")
    oracle = calculation_of(options)
    named = list(_read_all(options))
    structures = [structure for _, structure in named]
    if options.dry_run:
        known = sum(oracle.known(s) is not None for s in structures)
        left = len(structures) - known
        return (
            f"{len(structures):,} structures, {known:,} of them in {oracle.store.name}; "
            f"{left:,} to calculate with {oracle.oracle!r}"
            f"{expected_time(oracle, left, options.workers)}; nothing was done"
        )
    _check_output(options)
    results = label_as_told(options, oracle, structures)
    _write_csv(options.output, named, results)
    record = _write_record(options, oracle, len(named))
    counts = ", ".join(f"{n} {s}" for s, n in Counter(str(r.status) for r in results).items())
    text = f"{len(results):,} structures: {counts}\n{options.output}, {record}; every result is "
    text += f"also in {oracle.store.name}"
    if find_references(oracle.oracle.settings.energy_key) is None:  # type: ignore[attr-defined]
        text += (
            "\nno formation energies: none of the known reference energies belong to these "
            "settings; `crystal-gym label references` calculates them"
        )
    return text


def expected_time(oracle: CachedOracle, count: int, workers: int) -> str:
    """Say how long calculations may take, by those that are stored; nothing where none is.

    Args:
        oracle: Of the calculations.
        count: How many are to be done.
        workers: Processes.

    Returns:
        The rest of a sentence, beginning with a comma, or ``""``.
    """
    seconds = [result.properties.wall_s for result, _ in oracle.store.rows()]
    known = [s for s in seconds if s is not None]
    if not known or not count:
        return ""
    each = float(np.median(known))
    return (
        f", about {count * each / workers:,.0f} s with {workers} workers if they take the "
        f"{each:,.1f} s of the median of {len(known):,} stored ones (time grows steeply with "
        "electrons)"
    )


def calculation_of(options: argparse.Namespace) -> CachedOracle:
    """Return the oracle that a command's options for calculations describe."""
    settings = make_settings(options.preset, **parse_changes(options.changes))
    # Without references energies and gaps are worth having all the same.
    references = "auto" if find_references(settings.energy_key) else None
    return CachedOracle(_oracle(options, settings, references), options.cache)


def label_as_told(
    options: argparse.Namespace, oracle: CachedOracle, structures: Sequence[Structure]
) -> list[Properties]:
    """Return the properties of structures, by the workers that a command's options name."""
    with executor_at(options.executor) as executor:
        return label(
            structures,
            oracle,
            workers=options.workers,
            executor=executor,
            progress=shows_progress(),
        )


def parse_changes(changes: Sequence[str]) -> dict[str, Any]:
    """Return the settings in ``NAME=VALUE`` words.

    Args:
        changes: Of ``--set``; a value is a number, or several with commas between.

    Returns:
        Values by name: an int or float; a tuple of them where there are several, and always for
        ``magnetizations``, ``k_mesh`` and ``k_offset``.

    Raises:
        ValueError: If a word is not of that form, or its value is no number.
    """
    found: dict[str, Any] = {}
    for change in changes:
        name, separator, text = change.partition("=")
        if not separator or not name:
            raise ValueError(f"--set {change!r} is not understood: expected NAME=VALUE")
        try:
            numbers = [
                int(t) if t.strip().lstrip("+-").isdigit() else float(t) for t in text.split(",")
            ]
        except ValueError:
            raise ValueError(
                f"--set {change!r} is not understood: expected a number, or several with commas"
            ) from None
        many = len(numbers) > 1 or name in ("magnetizations", "k_mesh", "k_offset")
        found[name] = tuple(numbers) if many else numbers[0]
    return found


def _oracle(options: argparse.Namespace, settings: Any, references: Any) -> EspressoOracle:
    return EspressoOracle(
        settings,
        pseudopotentials=options.pseudo,
        references=references,
        pw=options.pw,
        ranks=options.ranks,
        timeout_s=options.timeout,
        memory_gb=options.memory_gb,
        scratch=options.scratch,
    )


def _read_all(options: argparse.Namespace) -> Iterator[tuple[str, Structure]]:
    if (options.skeletons is None) != (options.fillings is None):
        raise ValueError("--skeletons and --fillings belong together: give both or neither")
    if not options.structures and options.fillings is None:
        raise ValueError(
            "nothing to calculate: name structure files, or --skeletons with --fillings; "
            "`crystal-gym label --help` has examples"
        )
    for path in options.structures:
        for name, structure in read_structures(path):
            yield name, to_structure(structure)
    if options.fillings is not None:
        yield from read_fillings(options.skeletons, options.fillings)


def read_fillings(skeletons: Any, path: Path | str) -> Iterator[tuple[str, Structure]]:
    """Yield the structures that a list of fillings names.

    Args:
        skeletons: As for ``gym.make(skeletons=...)``.
        path: CSV with the columns ``skeleton`` (name or number) and ``elements`` (symbols
            separated by blanks, one for each site in the skeleton's numbering).

    Yields:
        Name (``skeleton:Na-Cl``) and structure, in the order of the rows.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a row is not understood, naming it.
    """
    try:
        yield from _fillings_in(Path(path), skeletons)
    except (csv.Error, UnicodeDecodeError, *DAMAGED_GZIP) as error:
        raise ValueError(
            f"{path} is no CSV ({first_line(error)}): "
            "expected columns skeleton and elements in UTF-8"
        ) from error


_LARGEST_FILLINGS = 1_000_000_000


def _fillings_in(path: Path, skeletons: Any) -> Iterator[tuple[str, Structure]]:
    known = load_skeletons(skeletons)
    names = {str(name): number for number, name in enumerate(known.names)}
    with (
        open_file(path, _LARGEST_FILLINGS) as raw,
        io.TextIOWrapper(raw, encoding="utf-8", newline="") as file,
    ):
        rows = csv.DictReader(file)
        if not {"skeleton", "elements"} <= set(rows.fieldnames or ()):
            raise ValueError(
                f"{path} has the columns {in_brief(rows.fieldnames or ()) or '(none)'}: expected "
                "skeleton and elements"
            )
        for line, row in enumerate(rows, start=2):
            which, symbols = str(row["skeleton"]), str(row["elements"]).split()
            counted = which.isdecimal() and len(which) < 10
            number = names.get(which, int(which) if counted else -1)
            if not 0 <= number < len(known):
                raise ValueError(
                    f"{path}, line {line}: skeleton {which[:50]!r} is not in this set of "
                    f"{len(known)}"
                )
            skeleton = known[number]
            if len(symbols) != skeleton.n_sites:
                raise ValueError(
                    f"{path}, line {line}: {len(symbols)} elements for {skeleton.name}, which has "
                    f"{skeleton.n_sites} sites"
                )
            try:
                tokens = np.array([symbol_to_token(s) for s in symbols])
            except ValueError as error:
                raise ValueError(f"{path}, line {line}: {error}") from None
            yield f"{skeleton.name}:{'-'.join(symbols)}", skeleton.structure(tokens)


def _check_output(options: argparse.Namespace) -> None:
    """Fail before the calculations, not after them, and never write over what is read."""
    output = Path(options.output)
    record = _record_path(output)
    if record == output:
        raise ValueError(
            f"{output} is where the settings go: expected another ending for the results, such as "
            f"{output.with_suffix('.csv')}"
        )
    sources = [Path(p) for p in (*options.structures, options.fillings) if p is not None]
    for path in (output, record):
        if path.exists() and any(path.samefile(source) for source in sources):
            raise ValueError(
                f"{path} is one of the files to read, and results would replace it: choose another "
                "name with -o"
            )
        require_writable(path)
    if any(source.is_dir() and source.samefile(output.parent) for source in sources):
        raise ValueError(
            f"{output} is in a folder of structures, where the next run would read it as one: "
            "choose another place with -o"
        )


def _record_path(output: Path) -> Path:
    return output.with_suffix(".json")


def _write_csv(
    path: Path, named: Sequence[tuple[str, Structure]], results: Sequence[Properties]
) -> None:
    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, _COLUMNS, extrasaction="ignore")
        writer.writeheader()
        for (name, structure), result in zip(named, results, strict=True):
            row = {"name": name, "formula": structure.composition.reduced_formula}
            writer.writerow({**asdict(result), **row})


def _write_record(options: argparse.Namespace, oracle: CachedOracle, count: int) -> Path:
    """Write what was done next to the results."""
    espresso = oracle.oracle
    record = {
        "structures": [str(path) for path in options.structures],
        "count": count,
        "skeletons": options.skeletons,
        "fillings": None if options.fillings is None else str(options.fillings),
        "settings": asdict(espresso.settings),  # type: ignore[attr-defined]
        "pw.x": espresso.version,  # type: ignore[attr-defined]
        "cache": oracle.store.name,
        "python": platform.python_version(),
        "versions": {p: version(p) for p in ("crystal-gym", "ase", "numpy", "pymatgen")},
    }
    path = _record_path(Path(options.output))
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return path


def label_references(options: argparse.Namespace) -> str:
    """Calculate the reference energies of some settings; return what to print at the end."""
    if options.skeletons or options.fillings:
        raise ValueError("`label references` takes structures of pure elements, not fillings")
    settings = make_settings(options.preset, **parse_changes(options.changes))
    _refuse_published(settings)
    library = Pseudopotentials(options.pseudo)
    given = _given_elements(options.structures[1:])
    wanted = options.elements or sorted(given) or [e for e in ELEMENTS if e in library]
    structures, problems = _structures_of(wanted, given, library)
    if not structures:
        raise ValueError(f"nothing to calculate; {next(iter(problems.values()), 'no elements')}")
    energies: dict[str, float] = {}
    groups: dict[PwSettings, list[str]] = {}
    for element, structure in structures.items():
        groups.setdefault(elemental_settings(settings, structure), []).append(element)
    for number, (own, elements) in enumerate(groups.items(), start=1):
        oracle = CachedOracle(_oracle(options, own, None), options.cache)
        if len(groups) > 1:
            sys.stderr.write(f"mesh {number} of {len(groups)}: {', '.join(elements)}\n")
        some = [structures[element] for element in elements]
        results = label_as_told(options, oracle, some)
        for element, structure, result in zip(elements, some, results, strict=True):
            if result.total_energy_ry is None:
                problems[element] = f"{result.status}: {result.provenance}"
            else:
                energies[element] = result.total_energy_ry / len(structure)
    path = references_path(settings.energy_key)
    _add_references(path, settings, energies, library)
    text = f"{len(energies)} reference energies for {settings} in {path}"
    for element, reason in problems.items():
        text += f"\n  none for {element}: {reason}"
    return text


def _refuse_published(settings: PwSettings) -> None:
    if published_references().settings == settings.energy_key:
        raise ValueError(
            "the published reference energies belong to these settings already: others beside "
            "them would make formation energies that cannot be compared; use other settings"
        )


def _given_elements(paths: Sequence[str]) -> dict[str, Structure]:
    found: dict[str, Structure] = {}
    for path in paths:
        for name, raw in read_structures(path):
            structure = to_structure(raw)
            if len(structure.composition) != 1:
                raise ValueError(
                    f"{name} is {structure.composition.reduced_formula}: expected one pure element"
                )
            found[structure.composition.elements[0].symbol] = structure
    return found


def _structures_of(
    wanted: Sequence[str], given: Mapping[str, Structure], library: Pseudopotentials
) -> tuple[dict[str, Structure], dict[str, str]]:
    structures: dict[str, Structure] = {}
    problems: dict[str, str] = {}
    for element in wanted:
        symbol_to_token(element)  # refuses what is no element, with the closest ones
        if element not in library:
            problems[element] = f"there is no pseudopotential in {library.folder}"
            continue
        try:
            structures[element] = given.get(element) or elemental_structure(element)
        except ValueError as error:
            problems[element] = str(error)
    return structures, problems


def _add_references(
    path: Path, settings: PwSettings, energies: Mapping[str, float], library: Pseudopotentials
) -> None:
    """Write references beside those calculated before."""
    old = find_references(settings.energy_key) or ReferenceEnergies(settings.energy_key, {}, {})
    ReferenceEnergies(
        settings=settings.energy_key,
        energies_ry={**old.energies_ry, **energies},
        pseudopotentials={**old.pseudopotentials, **{e: library[e].md5 for e in energies}},
        source=f"pure elements, `crystal-gym label references`, {settings}",
    ).save(path)
