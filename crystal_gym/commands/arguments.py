"""What can be typed after ``crystal-gym``: commands, their options, help and examples.

Importing this takes neither torch nor pymatgen, so that help and tab completion answer at
once. What a command does lives in the module of its name beside this one.
"""

from __future__ import annotations

import argparse
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import shtab

import crystal_gym
from crystal_gym.suggestions import did_you_mean

__all__ = ["BUILT_SETS", "SHELLS", "TRAIN_SETTINGS", "build_parser"]

SHELLS = ("bash", "zsh", "fish")
"""What ``crystal-gym completion`` writes for."""

BUILT_SETS = ("mini", "mp20", "mp20-metals", "tabular")
"""What ``crystal-gym data build`` knows by name."""

# Types of TrainConfig's and SurrogateConfig's fields; importing these for --help loads torch.
TRAIN_SETTINGS: dict[str, tuple[type, str]] = {
    "dataset": (str, "Minari id of the crystals to learn from (crystal-mp20-v0)"),
    "validation": (str, "Minari id of those that judge"),
    "split": (str, "published or composition"),
    "crystals": (str, "all or valid: learn only from crystals that pass SMACT"),
    "preset": (str, "network: default or paper"),
    "focus": (str, "how it is told the next site: node or index"),
    "site_order": (str, "canonical or source, which leaks the elements"),
    "steps": (int, "gradient steps (4000; surrogate 1500)"),
    "batch_size": (int, "transitions a step (256; surrogate 128)"),
    "learning_rate": (float, "at its highest (0.005)"),
    "warmup": (int, "steps in which it rises (200; surrogate 100)"),
    "weight_decay": (float, "of the optimizer (0.1)"),
    "evaluate_every": (int, "steps between evaluations and checkpoints (500; surrogate 250)"),
    "validation_crystals": (int, "how many an evaluation fills (500)"),
    "patience": (int, "evaluations without progress that end training (0: never)"),
    "n_steps": (int, "steps that a transition leads on (1)"),
    "conservative_weight": (float, "of CQL's conservative term (5)"),
    "gamma": (float, "discount factor (0.99)"),
    "averaging": (float, "of the weights that act (0.999; surrogate 0.99)"),
    "balance": (float, "1 draws all ranges of gaps alike (0)"),
    "reorder": (float, "share of samples in a drawn order (0.5)"),
    "start_from": (str, "folder of a saved policy to go on from"),
    "seed": (int, "of everything random (0)"),
    "device": (str, "auto, cpu or cuda:0"),
    "precision": (str, "auto, float32 or bfloat16"),
    "compile": (str, "auto, on or off"),
    "tables": (tuple, "surrogate: property tables to learn from as well"),
    "members": (int, "surrogate: networks of the ensemble (4)"),
    "width": (int, "surrogate: features of a site (96)"),
    "layers": (int, "surrogate: rounds of attention (4)"),
    "heads": (int, "surrogate: of attention (6)"),
    "held_out": (float, "surrogate: share for calibration alone (0.08)"),
    "dropout": (float, "surrogate: of every layer's change (0.1)"),
}
"""Type and help of every setting that ``crystal-gym train`` takes as an option."""

# Of pw.x; they live in crystal_gym.oracles.espresso, which takes a second to import.
_PRESETS = ("labels", "fast", "paper")

_EXAMPLES = """examples:
  crystal-gym quickstart                          train and judge two small policies
  crystal-gym data list                           what is on this machine
  crystal-gym data fetch mp20                     download MP-20 and its DFT labels
  crystal-gym data build mp20                     write the Minari datasets
  crystal-gym data show crystal-mp20-v0           numbers about a dataset
  crystal-gym train c-cql                         train one policy for all target gaps
  crystal-gym train surrogate                     train a predictor of gaps and energies
  crystal-gym design my.cif --target-gap 3        propose compounds on a skeleton
  crystal-gym evaluate runs/c-cql                 every measure of it, beside baselines
  crystal-gym doctor                              what is installed, and does pw.x work
  crystal-gym data fetch sssp                     pseudopotentials for pw.x
  crystal-gym label my.cif                        calculate energies and gaps with pw.x
  crystal-gym completion bash                     let the Tab key complete all this

exit codes:
  0    done; also where the reader of a pipe has left
  1    it cannot be done, for the reason that one sentence on standard error gives
  2    wrong usage
  130  interrupted; the same command goes on where it stopped

Progress bars and colours are for terminals: pipes and files get neither, and
NO_COLOR=1 switches colours off. `crystal-gym COMMAND --help` has examples.
"""


class _Parser(argparse.ArgumentParser):
    """A parser that says what was meant, in one sentence, instead of listing every option."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        settings.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(*arguments, **settings)
        self.set_defaults(parser=self)

    def parse_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> argparse.Namespace:
        options, rest = self.parse_known_args(args, namespace)
        if rest:  # said by the command that was meant, which knows its own options
            options.parser.error(f"{rest[0]} is no option of this command")
        return options

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {self._plain(message)}; `{self.prog} --help` has examples\n")

    def _plain(self, message: str) -> str:
        """Return what argparse complains about with what may have been meant."""
        choice = re.match(
            r"argument (.*): invalid choice: '(.*)' \(choose from (.*)\)", message, re.DOTALL
        )
        if choice:
            name, word, known = choice.groups()
            words = [w.strip("' ") for w in known.split(",")]
            return (
                f"{name} {word!r} is unknown{did_you_mean(word, words)}: expected one of "
                f"{', '.join(words)}"
            )
        option = re.match(r"(--?[^ =]+).* is no option", message)
        if option:
            options = re.findall(r"--[a-z][-a-z0-9]*", self.format_help())
            return message + did_you_mean(option[1], options)
        return message


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line; ``options.run`` names what to do."""
    parser = _Parser(
        prog="crystal-gym",
        description="Crystal design by reinforcement learning: data, training, evaluation.",
        epilog=_EXAMPLES,
    )
    parser.add_argument(
        "--version", action="version", version=f"crystal-gym {crystal_gym.__version__}"
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    _add_quickstart(commands)
    _add_data(commands)
    _add_train(commands)
    _add_evaluate(commands)
    _add_design(commands)
    _add_report(commands)
    _add_label(commands)
    _add_doctor(commands)
    _add_completion(commands)
    return parser


def _add(
    commands: Any, name: str, summary: str, text: str, examples: str = "", usage: str | None = None
) -> Any:
    """Add a command; its examples stand at the end of its help.

    Args:
        commands: Of argparse.
        name: The word.
        summary: For the list of commands.
        text: For its own help.
        examples: Lines without ``crystal-gym``.
        usage: What follows the word, where argparse's list of every option would be long.
    """
    lines = "\n".join(f"  crystal-gym {line}" for line in examples.strip().splitlines())
    command = commands.add_parser(
        name,
        help=summary,
        description=_filled(text),
        epilog=f"examples:\n{lines}" if lines else None,
        usage=None if usage is None else f"%(prog)s {usage}",
    )
    command.set_defaults(run="_".join(command.prog.split()[1:]))
    return command


def _filled(text: str) -> str:
    """Break a description into lines of 78 characters, as argparse does without examples."""
    return textwrap.fill(" ".join(text.split()), 78, break_on_hyphens=False)


def _path(command: Any, *names: str, folder: bool = False, **settings: Any) -> None:
    """Add an option or argument that is a path, which a shell completes."""
    action = command.add_argument(*names, **{"type": Path, **settings})
    action.complete = shtab.DIRECTORY if folder else shtab.FILE


def _add_dry_run(command: Any) -> None:
    command.add_argument(
        "--dry-run", action="store_true", help="say what would be done, how much and for how long"
    )


def _add_json(command: Any) -> None:
    command.add_argument("--json", action="store_true", help="for programs: one JSON document")


def _add_quickstart(commands: Any) -> None:
    command = _add(
        commands,
        "quickstart",
        "train and judge two small policies in about five minutes",
        "Prepares crystals (MP-20 where its files are, else the bundled set), trains c-CQL and "
        "behavioural cloning, judges both beside two baselines and writes a table and a picture.",
        "quickstart\nquickstart --minutes 10 --crystals 2000 -o longer",
    )
    _path(
        command,
        "-o",
        "--output",
        folder=True,
        default=Path("quickstart-results"),
        metavar="DIR",
        help="folder (%(default)s)",
    )
    command.add_argument(
        "--minutes", type=float, default=3.0, help="training time in all (%(default)s)"
    )
    command.add_argument(
        "--crystals", type=_count, default=800, help="training crystals of MP-20 (%(default)s)"
    )
    command.add_argument("--seed", type=_seed, default=0, help="of everything random (%(default)s)")


def _add_data(commands: Any) -> None:
    data = commands.add_parser(
        "data",
        help="list, fetch, build, show, export and publish data",
        description="Data of this machine. `crystal-gym data ACTION --help` has examples.",
    )
    actions = data.add_subparsers(title="actions", metavar="ACTION")
    listing = _add(
        actions,
        "list",
        "what is on this machine",
        "Bundled sets, Minari datasets, property tables and source files.",
        "data list\ndata list --json",
    )
    _add_json(listing)
    _add_data_fetch(actions)
    _add_data_build(actions)
    showing = _add(
        actions,
        "show",
        "numbers about a dataset",
        "Crystals, episodes and the spread of their sizes, gaps and energies.",
        "data show crystal-mini-v0",
    )
    showing.add_argument("dataset", metavar="ID", help="Minari id such as crystal-mp20-v0")
    _add_json(showing)
    _add_data_export(actions)
    _add_data_publish(actions)


def _add_data_fetch(actions: Any) -> None:
    fetching = _add(
        actions,
        "fetch",
        "bring source files here",
        "Downloads MP-20 with its DFT labels, or pseudopotentials, and checks them.",
        "data fetch mp20\ndata fetch mp20 --from my-copy/\ndata fetch sssp --from SSSP.tar.gz",
    )
    fetching.add_argument(
        "what", choices=["mp20", "sssp"], help="crystals and labels, or pseudopotentials"
    )
    _path(
        fetching,
        "--from",
        dest="source",
        metavar="PATH",
        help="take them from this folder (sssp: or archive)",
    )


def _add_data_build(actions: Any) -> None:
    building = _add(
        actions,
        "build",
        "write Minari datasets",
        "Writes the Minari datasets of a set, or of structures of your own whose files give "
        "total_energy_ry, formation_energy_ev_per_atom and band_gap_ev: in the comment line of "
        "each frame (extended XYZ) or the key-value pairs of each row (ASE database). "
        "Interrupted, the same command goes on where it stopped.",
        "data build mini\ndata build mp20 --from DIR\ndata build mp20 --dry-run\n"
        "data build crystals.extxyz more.db --minari crystal-mine-v0",
    )
    _path(
        building,
        "what",
        type=str,
        nargs="+",
        metavar="WHAT",
        help=f"{', '.join(BUILT_SETS)}; or files, with --minari",
    )
    building.add_argument(
        "--minari", metavar="ID", help="id of the dataset of files, such as crystal-mine-v0"
    )
    _path(
        building,
        "--from",
        folder=True,
        dest="source",
        metavar="DIR",
        help="folder with mp20/ and qe/ (default: $CRYSTAL_GYM_DATA, or what was fetched)",
    )
    building.add_argument("--limit", type=_count, help="only the first crystals, of each split")
    building.add_argument("--workers", type=_count, help="processes (default: all cores)")
    _add_executor(building)
    _add_dry_run(building)


def _add_data_export(actions: Any) -> None:
    exporting = _add(
        actions,
        "export",
        "write a database of results as a table or a Minari dataset",
        "Makes a property table or a Minari dataset of what `crystal-gym label` calculated.",
        "data export results.db --minari crystal-mine-v0\ndata export results.db --table my-table/",
    )
    exporting.add_argument("database", help="a .db file or a postgresql:// address")
    exporting.add_argument("--preset", help="where it holds results of several settings: which")
    goal = exporting.add_mutually_exclusive_group(required=True)
    _path(goal, "--table", folder=True, metavar="DIR", help="folder for a property table")
    goal.add_argument("--minari", metavar="ID", help="id of a dataset such as crystal-mine-v0")


def _add_data_publish(actions: Any) -> None:
    publishing = _add(
        actions,
        "publish",
        "upload a dataset with its card to the Hugging Face hub",
        "Uploads a dataset of this machine through Minari's hf:// remote. Minari finds a dataset "
        "there only under a group of its own, so crystal-mine-v0 becomes crystal/mine-v0 in the "
        "repository NAMESPACE/crystal. Needs the extra `hub` and a token (HF_TOKEN, or `hf auth "
        "login`). Nothing is sent with --dry-run.",
        "data publish crystal-mine-v0 --to hf://my-group --dry-run\n"
        "data publish crystal-mine-v0 --to hf://my-group\n"
        "data publish crystal-mine-v0 --to hf://my-group --as oxides/mine-v0",
    )
    publishing.add_argument("dataset", metavar="ID", help="Minari id on this machine")
    publishing.add_argument(
        "--to", required=True, metavar="hf://NAMESPACE", help="your user or organisation there"
    )
    publishing.add_argument(
        "--as",
        dest="published_id",
        metavar="GROUP/NAME-vN",
        help="id there (default: crystal/ and what follows in crystal-...)",
    )
    publishing.add_argument(
        "--dry-run", action="store_true", help="say what would be uploaded, and check the card"
    )


def _add_train(commands: Any) -> None:
    command = _add(
        commands,
        "train",
        "train a policy, or a surrogate, on a dataset",
        "Trains a policy and writes a run folder: settings, log.csv, TensorBoard events, a "
        "checkpoint and the best policy so far. Interrupted, the same command goes on where it "
        "stopped. Settings come from --config and from the command line, which wins; `python -c "
        "'import crystal_gym.agents as a; help(a.TrainConfig)'` explains each (of a surrogate: "
        "SurrogateConfig).",
        "train bc --dataset crystal-mini-v0 --steps 1000\n"
        "train c-cql --steps 20000 --seed 1 -o runs/c-cql-1\n"
        "train c-cql --dry-run\n"
        "train surrogate\n"
        "train discrete_bcq --preset paper -o runs/bcq\n"
        "train --config settings.toml -o runs/mine",
        usage="[ALGORITHM] [-o DIR] [--config TOML] [--dry-run] [SETTINGS]",
    )
    command.add_argument(
        "algorithm",
        metavar="ALGORITHM",
        nargs="?",
        help="bc, goal-bc, u-cql, c-cql, d3rlpy's name of a discrete algorithm, or surrogate: "
        "an ensemble that predicts gap and formation energy",
    )
    _path(
        command,
        "-o",
        "--output",
        folder=True,
        metavar="DIR",
        help="the run's folder (runs/ALGORITHM)",
    )
    _path(command, "--config", metavar="TOML", help="file of settings")
    _add_dry_run(command)
    settings = command.add_argument_group("settings")
    settings.add_argument(
        "--target-gap", nargs="+", metavar="T", help="eV, uniform or hindsight; one drawn a sample"
    )
    for name, (kind, text) in TRAIN_SETTINGS.items():
        option = "--" + name.replace("_", "-")
        if kind is tuple:
            settings.add_argument(option, nargs="+", metavar="NAME", help=text)
        else:
            settings.add_argument(option, type=kind, metavar=kind.__name__.upper(), help=text)
    command.add_argument("--threads", type=_count, help="of torch (default: all cores)")


def _add_evaluate(commands: Any) -> None:
    command = _add(
        commands,
        "evaluate",
        "every measure of policies, beside baselines, with intervals",
        "Fills the skeletons that were held out with each policy and each baseline, asks an oracle "
        "about the designs, and writes results.json, tables.md and the designs. Interrupted, the "
        "same command goes on where it stopped. docs/evaluation.md defines the measures.",
        "evaluate bundled runs/bc-0 runs/bc-1 -o results\n"
        "evaluate bundled --mask charge_neutral --targets 1.12 3 -o masked\n"
        "evaluate bundled --dry-run\n"
        "evaluate --dataset crystal-mini-v0 --split composition -o baselines",
        usage="[POLICY ...] [-o DIR] [--dry-run] [OPTIONS]",
    )
    _path(
        command,
        "policies",
        folder=True,
        type=str,
        nargs="*",
        metavar="POLICY",
        help="a run's folder, or `bundled`; baselines are always judged",
    )
    _path(
        command,
        "-o",
        "--output",
        folder=True,
        default=Path("evaluation-results"),
        metavar="DIR",
        help="folder of the results (%(default)s)",
    )
    _add_dry_run(command)
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
    _path(
        command,
        "--oracle",
        type=str,
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


def _add_report(commands: Any) -> None:
    command = _add(
        commands,
        "report",
        "write the page of a finished evaluation or design again",
        "Writes report.html from the files of `crystal-gym evaluate` or `design`.",
        "report evaluation-results",
    )
    _path(command, "folder", folder=True, metavar="DIR", help="what -o named there")


def _add_label(commands: Any) -> None:
    command = _add(
        commands,
        "label",
        "calculate energies and gaps of structures with pw.x",
        "Calculates structures with Quantum ESPRESSO. Every result is stored at once in a "
        "database; interrupted, the same command goes on where it stopped. `crystal-gym label "
        "references` calculates the reference energies that formation energies need.",
        "label my.cif more/ -o labels.csv\n"
        "label big.db --preset fast --workers 8 --cache postgresql://me@host/results\n"
        "label big.db --dry-run\n"
        "label --skeletons mini --fillings fillings.csv\n"
        "label big.db --executor dask://head-node:8786\n"
        "label references --preset paper",
        usage="PATH ... [-o CSV] [--dry-run] [OPTIONS]",
    )
    _path(
        command,
        "structures",
        type=str,
        nargs="*",
        metavar="PATH",
        help="CIF, POSCAR, extended XYZ, ASE database, CSV, or a folder of these; or the word "
        "`references`, alone or followed by structures of pure elements",
    )
    command.add_argument("--skeletons", metavar="SET", help="a skeleton set, with --fillings")
    _path(
        command,
        "--fillings",
        metavar="CSV",
        help="columns skeleton (name or number) and elements (one for each site, in its numbering)",
    )
    _path(
        command,
        "-o",
        "--output",
        default=Path("labels.csv"),
        metavar="CSV",
        help="table of results (%(default)s); settings go beside it",
    )
    command.add_argument("--elements", nargs="+", metavar="EL", help="of `references`: only these")
    _add_calculation(command)
    _add_dry_run(command)


def _add_calculation(command: Any) -> None:
    """Add the options that say how pw.x calculates."""
    command.add_argument(
        "--cache",
        metavar="DATABASE",
        help="a .db file or postgresql:// address (default: calculations.db in the user's cache)",
    )
    command.add_argument("--preset", default="labels", help=f"one of {', '.join(_PRESETS)}")
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
    _path(command, "--pseudo", folder=True, metavar="DIR", help="folder of UPF files")
    command.add_argument("--pw", default="pw.x", help="the executable (%(default)s)")
    _path(command, "--scratch", folder=True, metavar="DIR", help="where calculations run")


def _add_executor(command: Any) -> None:
    command.add_argument(
        "--executor",
        metavar="ADDRESS",
        help="dask://host:port: the workers of that Dask scheduler, instead of processes",
    )


def _add_design(commands: Any) -> None:
    command = _add(
        commands,
        "design",
        "propose compounds with a given band gap on the skeleton of a crystal",
        "Empties a crystal of its elements and proposes others, ranked by what a surrogate "
        "predicts. Writes CIF files, design.json and report.html. Nothing is calculated with DFT "
        "unless --verify dft asks for it.",
        "design my.cif --target-gap 3\n"
        "design my.cif --target-gap 1.1 1.7 --exclude Pb Cd -n 50\n"
        "design my.cif --target-gap 2 --keep O --include Ti\n"
        "design my.cif --target-gap 3 --verify dft --top 5 --preset fast\n"
        "design my.cif --target-gap 3 --verify dft --dry-run",
        usage="STRUCTURE --target-gap EV [EV] [-o DIR] [--dry-run] [OPTIONS]",
    )
    _path(command, "structure", help="CIF, POSCAR or extended XYZ of one crystal, up to 60 sites")
    command.add_argument(
        "--target-gap",
        type=float,
        nargs="+",
        required=True,
        metavar="EV",
        help="band gap in eV; two numbers are a range",
    )
    command.add_argument("-n", "--count", type=_count, default=20, help="candidates (%(default)s)")
    _path(
        command,
        "-o",
        "--output",
        folder=True,
        metavar="DIR",
        help="folder (design-NAME-3eV in this one, for a target of 3 eV)",
    )
    _add_dry_run(command)
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
    _path(search, "--policy", folder=True, metavar="RUN", help="your own (default: bundled)")
    _path(search, "--surrogate", folder=True, metavar="RUN", help="your own")
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
    _path(
        check,
        "--references",
        metavar="JSON",
        help="pymatgen ComputedEntry objects for energies above the hull, with --relax",
    )
    check.add_argument(
        "--verify", choices=["dft"], help="calculate them with pw.x, through the cache"
    )
    _add_calculation(command)


def _add_doctor(commands: Any) -> None:
    command = _add(
        commands,
        "doctor",
        "say what is installed and whether pw.x works",
        "Looks at the packages, pw.x and the pseudopotentials, and calculates silicon (a second) "
        "against its known energy and gap. Exit code 1 where live calculations cannot work.",
        "doctor\ndoctor --json\ndoctor --pw /opt/qe/bin/pw.x --pseudo sssp/",
    )
    _path(command, "--pseudo", folder=True, metavar="DIR", help="folder of UPF files")
    command.add_argument("--pw", default="pw.x", help="the executable (%(default)s)")
    _add_json(command)


def _add_completion(commands: Any) -> None:
    command = _add(
        commands,
        "completion",
        "write what lets the Tab key complete commands and options",
        "Prints a script for your shell.",
        "completion bash > ~/.local/share/bash-completion/completions/crystal-gym\n"
        "completion zsh > ~/.zfunc/_crystal-gym      # a folder of $fpath\n"
        "completion fish > ~/.config/fish/completions/crystal-gym.fish",
    )
    command.add_argument("shell", choices=SHELLS)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number above 0")
    return int(text)


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number from 0 to 2^32 - 1")
    return int(text)
