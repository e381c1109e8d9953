"""The command ``crystal-gym``."""

from __future__ import annotations

import argparse
import dataclasses
import sys
import warnings
from collections.abc import Sequence
from concurrent.futures import BrokenExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import crystal_gym
from crystal_gym.files import read_text

__all__ = ["main"]

_EXAMPLES = """examples:
  crystal-gym quickstart                          train and judge two small policies
  crystal-gym data list                           what is on this machine
  crystal-gym data fetch mp20                     download MP-20 and its DFT labels
  crystal-gym data build mp20 --from DIR          write the Minari datasets from files in DIR
  crystal-gym data show crystal-mp20-v0           numbers about a dataset
  crystal-gym train c-cql -o runs/c-cql           train one policy for all target gaps
  crystal-gym train surrogate -o runs/surrogate   train a predictor of gaps and energies
  crystal-gym design my.cif --target-gap 3        propose compounds on a crystal's skeleton
  crystal-gym evaluate runs/c-cql -o results      every measure of it, beside baselines
  crystal-gym doctor                              is pw.x there, and does it work
  crystal-gym data fetch sssp                     pseudopotentials for live calculations
  crystal-gym label my.cif -o labels.csv          calculate energies and gaps with pw.x
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: Words after ``crystal-gym``; defaults to those of the process.

    Returns:
        Exit status: 0 done, 1 an error that is explained in one sentence on standard error, 2
        wrong usage, 130 interrupted.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    if not hasattr(options, "run"):
        options.parser.print_help()
        return 2
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            options.run(options)
    except KeyboardInterrupt:
        print(
            "\ninterrupted: datasets are as they were, and finished graphs and calculations are "
            "kept; run the same command again to go on",
            file=sys.stderr,
        )
        return 130
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output has left: nothing to explain
        return 0
    except (BrokenProcessPool, MemoryError) as error:
        print(
            f"crystal-gym: out of memory, or a worker process was killed ({error}): close other "
            "programs, or use fewer --workers",
            file=sys.stderr,
        )
        return 1
    except (BrokenExecutor, ValueError, TypeError, ImportError, OSError) as error:
        print(f"crystal-gym: {error}", file=sys.stderr)
        return 1
    return 0


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    """Print a warning as a sentence: where in the code it was given helps no user of a command."""
    print(f"crystal-gym: {message}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="crystal-gym",
        description="Crystal design by reinforcement learning: data, training, evaluation.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--version", action="version", version=f"crystal-gym {crystal_gym.__version__}"
    )
    parser.set_defaults(parser=parser)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    _add_quickstart(commands)
    _add_data(commands)
    _add_train(commands)
    _add_evaluate(commands)
    _add_design(commands)
    _add_report(commands)
    _add_label(commands)
    _add_doctor(commands)
    return parser


def _add_quickstart(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser(
        "quickstart",
        help="train and judge two small policies in about five minutes",
        description="Prepares crystals (MP-20 where its files are, else the bundled set), trains "
        "c-CQL and behavioural cloning, judges both beside two baselines and writes a table and a "
        "picture.",
    )
    command.add_argument(
        "-o", "--output", type=Path, default=Path("quickstart-results"), help="folder (%(default)s)"
    )
    command.add_argument(
        "--minutes", type=float, default=3.0, help="training time in all (%(default)s)"
    )
    command.add_argument(
        "--crystals", type=_count, default=800, help="training crystals of MP-20 (%(default)s)"
    )
    command.add_argument("--seed", type=_seed, default=0, help="of everything random (%(default)s)")
    command.set_defaults(run=_quickstart)


def _add_data(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    data = commands.add_parser("data", help="list, fetch, build and show data")
    data.set_defaults(parser=data)
    actions = data.add_subparsers(title="actions", metavar="ACTION")

    listing = actions.add_parser("list", help="what is on this machine")
    listing.set_defaults(run=_data_list)

    fetching = actions.add_parser("fetch", help="bring source files here")
    fetching.add_argument(
        "what", choices=["mp20", "sssp"], help="crystals and labels, or pseudopotentials"
    )
    fetching.add_argument(
        "--from",
        dest="source",
        type=Path,
        metavar="PATH",
        help="take them from this folder (sssp: or archive)",
    )
    fetching.set_defaults(run=_data_fetch)

    building = actions.add_parser(
        "build",
        help="write Minari datasets",
        description="Writes the Minari datasets of a set, or of structures of your own whose "
        "files give total_energy_ry, formation_energy_ev_per_atom and band_gap_ev: in the comment "
        "line of each frame (extended XYZ) or the key-value pairs of each row (ASE database). "
        "Interrupted, the same command goes on where it stopped.",
        epilog=_BUILD_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    building.add_argument(
        "what", nargs="+", metavar="WHAT", help=f"{', '.join(_BUILT_SETS)}; or files, with --minari"
    )
    building.add_argument(
        "--minari", metavar="ID", help="id of the dataset of files, such as crystal-mine-v0"
    )
    building.add_argument(
        "--from",
        dest="source",
        type=Path,
        metavar="DIR",
        help="folder with mp20/ and qe/ (default: $CRYSTAL_GYM_DATA, or what was fetched)",
    )
    building.add_argument("--limit", type=_count, help="only the first crystals, of each split")
    building.add_argument("--workers", type=_count, help="processes (default: all cores)")
    _add_executor(building)
    building.set_defaults(run=_data_build)

    exporting = actions.add_parser(
        "export", help="write a database of results as a table or a Minari dataset"
    )
    exporting.add_argument("database", help="a .db file or a postgresql:// address")
    exporting.add_argument("--preset", help="where it holds results of several settings: which")
    goal = exporting.add_mutually_exclusive_group(required=True)
    goal.add_argument("--table", type=Path, metavar="DIR", help="folder for a property table")
    goal.add_argument("--minari", metavar="ID", help="id of a dataset such as crystal-mine-v0")
    exporting.set_defaults(run=_data_export)

    showing = actions.add_parser("show", help="numbers about a dataset")
    showing.add_argument("dataset", help="Minari id such as crystal-mp20-v0")
    showing.set_defaults(run=_data_show)


_BUILT_SETS = ("mini", "mp20", "mp20-metals", "tabular")

_BUILD_EXAMPLES = """examples:
  crystal-gym data build mp20 --from DIR
  crystal-gym data build crystals.extxyz more.db --minari crystal-mine-v0
"""


def _add_train(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser(
        "train",
        help="train a policy on a dataset",
        description="Trains a policy and writes a run folder: settings, log.csv, TensorBoard "
        "events, a checkpoint and the best policy so far. Interrupted, the same command goes on "
        "where it stopped. Settings come from --config and from the command line, which wins; "
        "`python -c 'import crystal_gym.agents as a; help(a.TrainConfig)'` explains each (of a "
        "surrogate: SurrogateConfig).",
        epilog=_TRAIN_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument(
        "algorithm",
        nargs="?",
        help="bc, goal-bc, u-cql, c-cql, d3rlpy's name of a discrete algorithm, or surrogate: "
        "an ensemble that predicts gap and formation energy",
    )
    command.add_argument("-o", "--output", type=Path, required=True, help="the run's folder")
    command.add_argument("--config", type=Path, metavar="TOML", help="file of settings")
    command.add_argument(
        "--target-gap", nargs="+", metavar="T", help="eV, uniform or hindsight; one drawn a sample"
    )
    for name, kind in _TRAIN_SETTINGS.items():
        command.add_argument(
            "--" + name.replace("_", "-"), type=kind, metavar=kind.__name__.upper()
        )
    command.add_argument("--threads", type=_count, help="of torch (default: all cores)")
    command.set_defaults(run=_train)


# Types of TrainConfig's and SurrogateConfig's fields; importing these for --help loads torch.
_TRAIN_SETTINGS: dict[str, type] = {
    **dict.fromkeys(
        ("dataset", "validation", "split", "crystals", "preset", "focus", "site_order"), str
    ),
    **dict.fromkeys(("steps", "batch_size", "warmup", "evaluate_every", "n_steps"), int),
    **dict.fromkeys(("validation_crystals", "patience", "seed"), int),
    **dict.fromkeys(("learning_rate", "weight_decay", "conservative_weight"), float),
    **dict.fromkeys(("gamma", "averaging", "balance", "reorder"), float),
    **dict.fromkeys(("start_from", "device", "precision", "compile"), str),
    # of the surrogate alone
    "table": str,
    **dict.fromkeys(("members", "width", "layers", "heads"), int),
    **dict.fromkeys(("held_out", "dropout"), float),
}

_TRAIN_EXAMPLES = """examples:
  crystal-gym train bc --dataset crystal-mini-v0 --steps 1000 -o runs/mini
  crystal-gym train c-cql --steps 20000 --seed 1 -o runs/c-cql-1
  crystal-gym train surrogate -o runs/surrogate
  crystal-gym train discrete_bcq --preset paper -o runs/bcq
  crystal-gym train --config settings.toml -o runs/mine
"""


def _add_evaluate(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser(
        "evaluate",
        help="every measure of policies, beside baselines, with intervals",
        description="Fills the skeletons that were held out with each policy and each baseline, "
        "asks an oracle about the designs, and writes results.json, tables.md and the designs. "
        "Interrupted, the same command goes on where it stopped. docs/evaluation.md defines the "
        "measures.",
        epilog=_EVALUATE_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument(
        "policies",
        nargs="*",
        metavar="POLICY",
        help="a run's folder, or `bundled`; baselines are always judged",
    )
    command.add_argument("-o", "--output", type=Path, required=True, help="folder of the results")
    command.add_argument(
        "--dataset",
        default="crystal-mp20-v0",
        metavar="ID",
        help="what was learned from (%(default)s); its -val dataset judges, or its every tenth "
        "skeleton",
    )
    command.add_argument("--validation", metavar="ID", help="another dataset that judges")
    command.add_argument(
        "--split",
        default="published",
        choices=["published", "composition"],
        help="(%(default)s), or no chemical system on both sides",
    )
    command.add_argument(
        "--targets",
        nargs="+",
        type=float,
        default=[1.12, 2.0, 3.0, 4.0],
        metavar="EV",
        help="gaps to aim at and to judge by (1.12 2 3 4)",
    )
    command.add_argument("--mask", choices=["charge_neutral"], help="for the policies")
    command.add_argument(
        "--search",
        action="store_true",
        help="also each policy under a search that the bundled surrogate ranks: slow",
    )
    command.add_argument(
        "--oracle",
        default="surrogate",
        help="surrogate (not DFT), table, espresso, or the path of a table or of a surrogate's run "
        "(%(default)s)",
    )
    command.add_argument("--crystals", type=_count, metavar="N", help="only so many, drawn")
    command.add_argument(
        "--resamples", type=_count, default=1000, help="of the bootstrap (%(default)s)"
    )
    command.add_argument("--seed", type=_seed, default=0, help="of everything random (%(default)s)")
    command.add_argument("--threads", type=_count, help="of torch (default: all cores)")
    command.set_defaults(run=_evaluate)


_EVALUATE_EXAMPLES = """examples:
  crystal-gym evaluate bundled runs/bc-0 runs/bc-1 -o results
  crystal-gym evaluate bundled --mask charge_neutral --targets 1.12 3 -o masked
  crystal-gym evaluate --dataset crystal-mini-v0 --split composition -o baselines
"""


def _add_report(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser(
        "report",
        help="write the page of a finished evaluation or design again",
        description="Writes report.html from the files of `crystal-gym evaluate` or `design`.",
    )
    command.add_argument("folder", type=Path, metavar="DIR", help="what -o named there")
    command.set_defaults(run=_report)


def _add_label(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser(
        "label",
        help="calculate energies and gaps of structures with pw.x",
        description="Calculates structures with Quantum ESPRESSO. Every result is stored at once "
        "in a database; interrupted, the same command goes on where it stopped. `crystal-gym "
        "label references` calculates the reference energies that formation energies need.",
        epilog=_LABEL_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument(
        "structures",
        nargs="*",
        metavar="PATH",
        help="CIF, POSCAR, extended XYZ, ASE database, CSV, or a folder of these; or the word "
        "`references`, alone or followed by structures of pure elements",
    )
    command.add_argument("--skeletons", metavar="SET", help="a skeleton set, with --fillings")
    command.add_argument(
        "--fillings",
        type=Path,
        metavar="CSV",
        help="columns skeleton (name or number) and elements (one for each site, in its numbering)",
    )
    command.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("labels.csv"),
        metavar="CSV",
        help="table of results (%(default)s); settings go beside it",
    )
    command.add_argument("--elements", nargs="+", metavar="EL", help="of `references`: only these")
    _add_calculation(command)
    command.add_argument("--dry-run", action="store_true", help="say what would be calculated")
    command.set_defaults(run=_label)


def _add_calculation(command: argparse.ArgumentParser) -> None:
    """Add the options that say how pw.x calculates."""
    from crystal_gym.oracles.espresso.settings import PRESETS

    command.add_argument(
        "--cache",
        metavar="DATABASE",
        help="a .db file or postgresql:// address (default: calculations.db in the user's cache)",
    )
    command.add_argument("--preset", default="labels", help=f"one of {', '.join(PRESETS)}")
    command.add_argument(
        "--set",
        dest="changes",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a setting that differs from the preset's, such as k_mesh=4,4,4 or "
        "magnetizations=1,3,5",
    )
    command.add_argument("--workers", type=_count, default=2, help="processes (%(default)s)")
    _add_executor(command)
    command.add_argument("--ranks", type=_count, default=1, help="MPI processes each (%(default)s)")
    command.add_argument(
        "--timeout", type=float, default=3600.0, metavar="S", help="for one run (%(default)s)"
    )
    command.add_argument(
        "--memory-gb", type=float, default=8.0, metavar="GB", help="for one run (%(default)s)"
    )
    command.add_argument("--pseudo", type=Path, metavar="DIR", help="folder of UPF files")
    command.add_argument("--pw", default="pw.x", help="the executable (%(default)s)")
    command.add_argument("--scratch", type=Path, metavar="DIR", help="where calculations run")


def _add_executor(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--executor",
        metavar="ADDRESS",
        help="dask://host:port: the workers of that Dask scheduler, instead of processes",
    )


_LABEL_EXAMPLES = """examples:
  crystal-gym label my.cif more/ -o labels.csv
  crystal-gym label big.db --preset fast --workers 8 --cache postgresql://me@host/results
  crystal-gym label --skeletons mini --fillings fillings.csv
  crystal-gym label big.db --executor dask://head-node:8786
  crystal-gym label references --preset paper
"""


def _add_design(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser(
        "design",
        help="propose compounds with a given band gap on the skeleton of a crystal",
        description="Empties a crystal of its elements and proposes others, ranked by what a "
        "surrogate predicts. Writes CIF files, design.json and report.html. Nothing is calculated "
        "with DFT unless --verify dft asks for it.",
        epilog=_DESIGN_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument(
        "structure", type=Path, help="CIF, POSCAR or extended XYZ of one crystal, up to 60 sites"
    )
    command.add_argument(
        "--target-gap",
        type=float,
        nargs="+",
        required=True,
        metavar="EV",
        help="band gap in eV; two numbers are a range",
    )
    command.add_argument("-n", "--count", type=_count, default=20, help="candidates (%(default)s)")
    command.add_argument(
        "-o", "--output", type=Path, metavar="DIR", help="folder (design-NAME in this one)"
    )
    choice = command.add_argument_group("which elements go where")
    for name, text in (
        ("--include", "elements that have to occur"),
        ("--exclude", "elements that must not be chosen"),
        ("--only", "elements that may be chosen (default: all 88)"),
    ):
        choice.add_argument(name, nargs="+", default=[], metavar="EL", help=text)
    choice.add_argument(
        "--keep",
        nargs="+",
        default=[],
        metavar="EL|N",
        help="elements, or numbers of sites (from 1, as in the file), that stay as they are",
    )
    choice.add_argument(
        "--sites",
        choices=["equivalent", "free"],
        default="equivalent",
        help="one element on all sites that symmetry makes equivalent in the crystal, or each site "
        "by itself (%(default)s)",
    )
    choice.add_argument(
        "--mask",
        choices=["charge_neutral", "elements"],
        default="charge_neutral",
        help="only compositions that pass SMACT, or any (%(default)s)",
    )
    search = command.add_argument_group("search")
    search.add_argument(
        "--rank",
        choices=["reward", "likelihood"],
        default="reward",
        help="by the reward that predictions lead to expect, or the policy's own likelihood",
    )
    search.add_argument("--policy", type=Path, metavar="RUN", help="your own (default: bundled)")
    search.add_argument("--surrogate", type=Path, metavar="RUN", help="your own")
    search.add_argument("--width", type=_count, default=128, help="of the beam (%(default)s)")
    search.add_argument(
        "--samples", type=_count, default=256, help="fillings drawn beside it (%(default)s)"
    )
    search.add_argument("--seed", type=_seed, default=0, help="of the draws (%(default)s)")
    check = command.add_argument_group("checks of the best candidates")
    check.add_argument("--top", type=_count, default=3, help="how many (%(default)s)")
    check.add_argument(
        "--relax", action="store_true", help="relax them with CHGNet (a machine-learned potential)"
    )
    check.add_argument(
        "--references",
        type=Path,
        metavar="JSON",
        help="pymatgen ComputedEntry objects for energies above the hull, with --relax",
    )
    check.add_argument(
        "--verify", choices=["dft"], help="calculate them with pw.x, through the cache"
    )
    _add_calculation(command)
    command.set_defaults(run=_design)


_DESIGN_EXAMPLES = """examples:
  crystal-gym design my.cif --target-gap 3
  crystal-gym design my.cif --target-gap 1.1 1.7 --exclude Pb Cd -n 50
  crystal-gym design my.cif --target-gap 2 --keep O --include Ti
  crystal-gym design my.cif --target-gap 3 --verify dft --top 5 --preset fast
"""


def _add_doctor(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser(
        "doctor",
        help="say what is installed and whether pw.x works",
        description="Looks at the packages, pw.x and the pseudopotentials, and calculates silicon "
        "(a second) against its known energy and gap. Exit status 1 where something is missing.",
    )
    command.add_argument("--pseudo", type=Path, metavar="DIR", help="folder of UPF files")
    command.add_argument("--pw", default="pw.x", help="the executable (%(default)s)")
    command.set_defaults(run=_doctor)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number above 0")
    return int(text)


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number from 0 to 2^32 - 1")
    return int(text)


def _quickstart(options: argparse.Namespace) -> None:
    from crystal_gym.quickstart import quickstart

    text = quickstart(
        options.output, minutes=options.minutes, crystals=options.crystals, seed=options.seed
    )
    print(f"\n{text}\nwritten to {options.output}: table.md, picture.png, settings.json")


def _data_list(options: argparse.Namespace) -> None:
    import minari

    from crystal_gym.evaluation.report import markdown_table
    from crystal_gym.files import raw_data_dir
    from crystal_gym.sets import BUNDLED, TABLES, load_skeletons, table_dir

    rows = [["what", "skeletons", "episodes", "size", "where"]]
    for name in BUNDLED:
        rows.append([name, f"{len(load_skeletons(name)):,}", "", "", "bundled"])
    for name in TABLES:
        if (table_dir(name) / "table.npz").exists():
            size = _size(table_dir(name) / "table.npz")
            rows.append([name, f"{len(load_skeletons(name)):,}", "", size, "property table"])
    for dataset_id, metadata in minari.list_local_datasets().items():
        if dataset_id.startswith("crystal-"):
            rows.append(_dataset_row(dataset_id, metadata))
    raw = raw_data_dir()
    for path in sorted(
        [*raw.glob("mp20/*.csv*"), *raw.glob("qe/labels*"), *raw.glob("qe/*/*.pkl")]
    ):
        if not path.name.startswith("."):
            rows.append([str(path.relative_to(raw)), "", "", _size(path), "source file"])
    print(markdown_table(rows))
    print(f"\nsource files: {raw}")


def _dataset_row(dataset_id: str, metadata: dict[str, object]) -> list[str]:
    from crystal_gym.files import DAMAGED_NPZ, open_npz
    from crystal_gym.sets import dataset_dir

    folder = dataset_dir(dataset_id)
    crystals = ""
    if (folder / "skeletons.npz").exists():
        try:
            with open_npz(folder / "skeletons.npz") as arrays:
                crystals = f"{len(arrays['space_group_number']):,}"
        except DAMAGED_NPZ:
            crystals = "damaged"
    episodes = f"{metadata.get('total_episodes', 0):,}"
    return [dataset_id, crystals, episodes, _size(folder / "main_data.hdf5"), "Minari dataset"]


def _size(path: Path) -> str:
    return f"{path.stat().st_size / 1e6:.1f} MB" if path.exists() else ""


def _data_fetch(options: argparse.Namespace) -> None:
    from crystal_gym.datasets.fetch import fetch, fetch_pseudopotentials

    if options.what == "sssp":
        lines = fetch_pseudopotentials(source=options.source, progress=True)
    else:
        lines = fetch(source=options.source, progress=True)
    for line in lines:
        print(line)


def _data_build(options: argparse.Namespace) -> None:
    what = options.what[0]
    if what not in _BUILT_SETS or len(options.what) > 1:
        _build_structures(options)
        return
    if options.minari is not None:
        raise ValueError(
            f"--minari {options.minari} does not go with the set {what}, which has its own ids: "
            f"leave it out, or write ./{what} if a file is meant"
        )
    from crystal_gym.cluster import executor_at
    from crystal_gym.datasets.build import build_metals, build_mini, build_mp20, build_tabular

    if what in ("mini", "tabular"):
        build = build_mini if what == "mini" else build_tabular
        print(build(progress=True))
        return
    with executor_at(options.executor) as executor:
        settings = {"limit": options.limit, "workers": options.workers, "executor": executor}
        if what == "mp20-metals":
            print(build_metals(options.source, **settings, progress=True))
            return
        for report in build_mp20(options.source, **settings, progress=True):
            print(report)


def _build_structures(options: argparse.Namespace) -> None:
    from crystal_gym.cluster import executor_at
    from crystal_gym.datasets.parts import build_structures

    missing = [name for name in options.what if not Path(name).exists()]
    if missing:
        raise ValueError(
            f"{missing[0]!r} is neither a set nor an existing file: expected one of "
            f"{', '.join(_BUILT_SETS)}, or files of structures with their properties"
        )
    if options.minari is None:
        raise ValueError(
            f"{options.what[0]} needs the id of its dataset: add --minari crystal-mine-v0, or "
            "another name with a version"
        )
    with executor_at(options.executor) as executor:
        settings = {"limit": options.limit, "workers": options.workers, "executor": executor}
        print(build_structures(options.what, options.minari, **settings, progress=True))


def _data_show(options: argparse.Namespace) -> None:
    import minari
    import numpy as np

    from crystal_gym.datasets.minari_io import open_dataset, read_trajectories
    from crystal_gym.evaluation.report import markdown_table

    if options.dataset not in minari.list_local_datasets():
        raise ValueError(
            f"dataset {options.dataset!r} is not on this machine: `crystal-gym data list` shows "
            "what is, `crystal-gym data build mp20` builds"
        )
    dataset = open_dataset(options.dataset)
    data = read_trajectories(dataset, progress=True)
    filled = np.column_stack([data.skeleton, data.total_energy_ry])
    one_each = np.unique(filled, axis=0, return_index=True)[1]
    skeletons = data.skeleton[one_each]
    rows = [["per crystal", "mean", "median", "min", "max"]]
    for name, values in (
        ("sites", data.skeletons.n_sites[skeletons]),
        ("directed edges", data.skeletons.n_edges[skeletons]),
        ("band gap (eV, DFT)", data.band_gap_ev[one_each]),
        ("formation energy (eV/atom, DFT)", data.formation_energy_ev_per_atom[one_each]),
    ):
        numbers = (values.mean(), np.median(values), values.min(), values.max())
        rows.append([name, *(f"{n:.2f}" for n in numbers)])
    print(
        f"{options.dataset}: {len(one_each):,} crystals on {len(np.unique(skeletons)):,} "
        f"skeletons, {len(data):,} episodes, "
        f"{len(data.actions):,} transitions\n"
    )
    print(markdown_table(rows))
    print(f"\n{dataset.storage.metadata.get('description', '')}")


def _data_export(options: argparse.Namespace) -> None:
    from crystal_gym.datasets.export import export_dataset, export_table
    from crystal_gym.oracles import ResultStore

    store = ResultStore.existing(options.database)
    if options.table is not None:
        print(export_table(store, options.table, options.preset))
    else:
        print(export_dataset(store, options.minari, options.preset, progress=True))


def _train(options: argparse.Namespace) -> None:
    from crystal_gym.quickstart import require_agents

    require_agents()
    import torch

    from crystal_gym.agents.processes import is_first
    from crystal_gym.agents.training import TrainConfig, train
    from crystal_gym.evaluation import text_table

    if options.threads is not None:
        torch.set_num_threads(options.threads)
    settings = _read_toml(options.config) if options.config is not None else {}
    names = ("algorithm", *_TRAIN_SETTINGS)
    settings |= {n: getattr(options, n) for n in names if getattr(options, n) is not None}
    if options.target_gap is not None:
        settings["target_gap"] = [_number_or_word(t) for t in options.target_gap]
    if settings.get("algorithm") == "surrogate":
        text = _train_surrogate(settings, options.output)
    else:
        config = TrainConfig.from_dict(settings)
        scores = train(config, options.output)
        text = (
            f"best policy in {options.output / 'policy'}; on validation crystals, per cent, filled "
            f"greedily without a mask:\n\n{text_table({config.algorithm: scores})}"
        )
    if is_first():
        print(text)


def _train_surrogate(settings: dict[str, object], folder: Path) -> str:
    from crystal_gym.agents.surrogate_training import SurrogateConfig, train_surrogate

    del settings["algorithm"]
    scores = train_surrogate(SurrogateConfig.from_dict(settings), folder)
    return (
        f"surrogate in {folder / 'surrogate'}; on crystals of the training data that it did not "
        f"learn from: mean absolute error of the gap {scores.gap_mae_ev:.3f} eV, of the formation "
        f"energy {scores.energy_mae_ev_per_atom:.3f} eV/atom, {100 * scores.metal_accuracy:.1f}% "
        "rightly said to have a gap or none"
    )


def _evaluate(options: argparse.Namespace) -> None:
    from crystal_gym.evaluate_command import EvaluationConfig, evaluate_policies

    if options.threads is not None and options.policies:
        from crystal_gym.quickstart import require_agents

        require_agents()
        import torch

        torch.set_num_threads(options.threads)
    names = [f.name for f in dataclasses.fields(EvaluationConfig)]
    settings = {name: getattr(options, name) for name in names}
    settings |= {name: tuple(settings[name]) for name in ("policies", "targets")}
    text = evaluate_policies(EvaluationConfig(**settings), options.output)
    print(f"\n{text}\nwritten to {options.output}: results.json, tables.md, crystals.npz, designs/")


_LONGEST_SETTINGS = 1_000_000


def _read_toml(path: Path) -> dict[str, object]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        return tomllib.loads(read_text(path, _LONGEST_SETTINGS))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not TOML ({error}): expected lines of name = value") from error


def _number_or_word(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _design(options: argparse.Namespace) -> None:
    from crystal_gym.design_command import design_compounds
    from crystal_gym.quickstart import require_agents

    require_agents()
    print(design_compounds(options))


def _report(options: argparse.Namespace) -> None:
    folder: Path = options.folder
    if (folder / "design.json").exists():
        from crystal_gym.design_command import write_report
    elif (folder / "results.json").exists():
        from crystal_gym.evaluate_command import write_report
    else:
        raise ValueError(
            f"{folder} holds neither design.json nor results.json: expected the folder of a "
            "finished `crystal-gym design` or `crystal-gym evaluate`"
        )
    try:
        print(write_report(folder))
    except _NO_RESULTS as error:
        raise ValueError(
            f"{folder} cannot be shown ({type(error).__name__}: {error}): expected the folder of a "
            "finished `crystal-gym design` or `crystal-gym evaluate`, as it was written"
        ) from error


# What a page raises on results that no command wrote.
_NO_RESULTS = (
    ArithmeticError,
    AttributeError,
    FileNotFoundError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)


def _label(options: argparse.Namespace) -> None:
    from crystal_gym.label_command import label_references, label_structures

    if options.structures[:1] == ["references"]:
        print(label_references(options))
    else:
        print(label_structures(options))


def _doctor(options: argparse.Namespace) -> None:
    from crystal_gym.doctor import examine

    ill = False
    for subject, well, text in examine(options.pseudo, options.pw):
        print(f"{'ok ' if well else 'BAD'} {subject:<17} {text}", flush=True)
        ill |= not well
    if ill:
        raise ValueError("something that live calculations need is missing; see above")


if __name__ == "__main__":
    sys.exit(main())
