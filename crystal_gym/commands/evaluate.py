"""``crystal-gym evaluate``: every measure of policies and baselines, with intervals.

The folder holds ``results.json`` (settings, seeds, versions, every measure), ``tables.md``, the
page ``report.html`` and ``designs/``: one ``.npz`` for each method and target with its fillings,
what the oracle said of them, and what it was made by. A design that is there and was made by the
same is not made again, so an interrupted command goes on where it stopped.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import json
import platform
import re
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from crystal_gym.charge_masks import ChargeNeutralMask
from crystal_gym.datasets.splits import judging_dataset, load_split
from crystal_gym.datasets.trajectories import Trajectories, in_source_order
from crystal_gym.envs.crystal_fill import make_oracle
from crystal_gym.evaluation.baselines import (
    Designer,
    MajorityPolicy,
    NearestNeighbour,
    RandomBalanced,
    RandomPolicy,
    Substitution,
)
from crystal_gym.evaluation.intervals import estimates
from crystal_gym.evaluation.metrics import top_k_hits
from crystal_gym.evaluation.optimum import tabular_regret
from crystal_gym.evaluation.properties import PropertyColumns, evaluate_designs, oracle_label
from crystal_gym.evaluation.prototypes import PrototypeLibrary
from crystal_gym.evaluation.rollout import Task, rollout
from crystal_gym.evaluation.study import (
    TOP_K,
    Design,
    Judge,
    hit_matrix,
    statistics_at_target,
    statistics_of_design,
    statistics_over_targets,
)
from crystal_gym.evaluation.tables import all_tables, tables
from crystal_gym.files import (
    DAMAGED_NPZ,
    atomic_path,
    first_line,
    open_npz,
    read_json,
    read_text,
    save_npz,
    sha256_of,
)
from crystal_gym.oracles import Oracle, SurrogateOracle, TableOracle
from crystal_gym.targets import check_target_gap

__all__ = ["EvaluationConfig", "evaluate_policies", "planned", "write_report"]

Fill: TypeAlias = Callable[..., NDArray[np.int16]]
"""``rollout`` with or without a progress bar."""

SOURCE = "source crystals"
"""Name of the row that the true crystals have: what can be reached."""


@dataclass(frozen=True)
class EvaluationConfig:
    """Settings of an evaluation.

    Attributes:
        policies: Folders of `crystal-gym train`, or ``bundled``.
        dataset: Minari id of the crystals that policies and baselines have learned from.
        validation: Minari id of those that judge, if not the dataset's own (``load_split``).
        split: ``published`` or ``composition``.
        targets: Gaps to aim at, eV.
        mask: ``charge_neutral`` for policies under that mask, or None.
        search: Judge each policy that takes a target a second time, under a search that the bundled
            surrogate ranks (:func:`crystal_gym.design.best_by_reward`).
        oracle: What :func:`gym.make` takes: ``surrogate``, ``table`` (of the crystals that judge,
            so what a method invents is not in it), a path to a table, ``espresso``.
        crystals: How many skeletons, drawn with the seed; None for all.
        resamples: Of the bootstrap.
        seed: Of everything random.
    """

    policies: tuple[str, ...] = ()
    dataset: str = "crystal-mp20-v0"
    validation: str | None = None
    split: str = "published"
    targets: tuple[float, ...] = (1.12, 2.0, 3.0, 4.0)
    mask: str | None = None
    search: bool = False
    oracle: str = "surrogate"
    crystals: int | None = None
    resamples: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.targets or len(set(self.targets)) != len(self.targets):
            raise ValueError(
                f"targets={list(self.targets)}: expected one or more different gaps in eV"
            )
        for target in self.targets:
            check_target_gap(target)
        if self.mask not in (None, "charge_neutral"):
            raise ValueError(f"mask={self.mask!r} is unknown: expected charge_neutral, or none")


@dataclass(frozen=True)
class _Method:
    """A row of the tables.

    Attributes:
        name: What the tables call it.
        aims: Targets that it is given, eV; ``(None,)`` for a method that takes none.
        design: Fills skeletons.
        made_by: What its designs depend on beside task and target: of another, they are made again.
        valued: Its policy (:class:`Valued`), where it has values.
        family: Equal for runs that differ in their seed alone.
        kind: ``policy``, ``baseline`` or ``ceiling``.
        note: What a reader has to know.
    """

    name: str
    aims: tuple[float | None, ...]
    design: Designer
    made_by: dict[str, Any]
    valued: Any = None
    family: str | None = None
    kind: str = "baseline"
    note: str | None = None


def evaluate_policies(
    config: EvaluationConfig, folder: Path | str, *, progress: bool = True
) -> str:
    """Judge policies and baselines, or go on with an evaluation that was interrupted.

    Args:
        config: Settings.
        folder: Where the results go.
        progress: Show progress bars on standard error.

    Returns:
        The tables, as in ``tables.md``.

    Raises:
        FileNotFoundError: If a policy's folder does not exist.
        ValueError: If a dataset, a policy or the oracle cannot be used.
        ImportError: If there are policies and the extra ``agents`` is not installed.
    """
    folder = Path(folder)
    training, judging = load_split(config.dataset, config.validation, config.split)
    task = _task(judging, config)
    judge = Judge.of(training, task, judging)
    oracle = make_oracle(
        config.oracle, judging_dataset(config.dataset, config.validation, config.split)
    )
    methods = _methods(config, task, training, judging, progress)
    (folder / "designs").mkdir(parents=True, exist_ok=True)  # fail before the work, not after it
    designs: dict[str, dict[float | None, Design]] = {}
    for method in methods:
        designs[method.name] = {
            aim: _made(method, aim, task, oracle, config, folder, progress) for aim in method.aims
        }
    results = _results(config, methods, designs, judge, oracle, progress)
    results["regret"] = _regrets(config, methods)
    results["learning_curves"] = _learning_curves(config)
    _save_crystals(folder / "crystals.npz", judge)
    with atomic_path(folder / "results.json") as path:
        path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    text = tables(results)
    with atomic_path(folder / "tables.md") as path:
        path.write_text(text, encoding="utf-8")
    write_report(folder)
    return text


def planned(config: EvaluationConfig, folder: Path | str) -> str:
    """Say what an evaluation would do; nothing is written.

    Args:
        config: Settings.
        folder: Where the results would go; finished designs there are not made again.

    Returns:
        A line for each method, and the sum.

    Raises:
        FileNotFoundError: If a policy's folder does not exist.
        ValueError: If a dataset or a policy cannot be used.
        ImportError: If there are policies and the extra ``agents`` is not installed.
    """
    training, judging = load_split(config.dataset, config.validation, config.split)
    task = _task(judging, config)
    methods = _methods(config, task, training, judging, progress=False)
    lines, left, searched = [], 0, 0
    for method in methods:
        files = [Path(folder) / "designs" / f"{_slug(method.name, a)}.npz" for a in method.aims]
        here = sum(file.exists() for file in files)
        left += len(files) - here
        if "search" in method.made_by:
            searched += len(files) - here
        targets = "no target" if method.aims == (None,) else f"{len(method.aims)} targets"
        lines.append(f"  {method.name} ({targets}{f', {here} there' if here else ''})")
    total = left * len(task)
    text = f"{left} designs of {len(task):,} skeletons each, asked about with {config.oracle}"
    if config.oracle == "surrogate":
        text += f", about {total / _PREDICTIONS_A_SECOND:.0f} s for its {total:,} predictions"
    text += f", into {folder}"
    if searched:
        text += f"; {searched} of them searches, which take most of the time (none was measured)"
    return "\n".join([*lines, f"{text}; nothing was done"])


_PREDICTIONS_A_SECOND = 400  # on one core, docs/benchmarks.md


def write_report(folder: Path | str) -> Path:
    """Write ``report.html`` of an evaluation from the files in its folder.

    Args:
        folder: Of the evaluation: ``results.json``, ``crystals.npz`` and ``designs/``.

    Returns:
        Path of the report, in the same folder.

    Raises:
        FileNotFoundError: If the folder holds no finished evaluation.
    """
    from crystal_gym.report.evaluation import evaluation_report

    folder = Path(folder)
    results = read_json(folder / "results.json")
    with open_npz(folder / "crystals.npz") as file:
        crystals = {name: file[name] for name in file}
    designs = []
    for row in results["designs"]:
        with open_npz(folder / "designs" / f"{_slug(row['method'], row['target_ev'])}.npz") as file:
            designs.append((row["method"], row["target_ev"], {name: file[name] for name in file}))
    evaluation_report(results, all_tables(results), crystals, designs, folder / "report.html")
    return folder / "report.html"


def _task(judging: Trajectories, config: EvaluationConfig) -> Task:
    task = Task.of_trajectories(judging).first_orders()
    if config.crystals is None or config.crystals >= len(task):
        return task
    drawn = np.random.default_rng(config.seed).permutation(len(task))[: config.crystals]
    return task.rows(np.sort(drawn))


def _source(task: Task, target_gap: float | None) -> NDArray[np.int16]:
    return task.reference


# -- methods ---------------------------------------------------------------------------------------


def _methods(
    config: EvaluationConfig,
    task: Task,
    training: Trajectories,
    judging: Trajectories,
    progress: bool,
) -> list[_Method]:
    fill = partial(rollout, progress=progress)
    return [
        *_policies(config, task, judging, fill, progress),
        *_baselines(config, training, fill),
        _Method(SOURCE, (None,), _source, {}, kind="ceiling"),
    ]


def _policies(
    config: EvaluationConfig, task: Task, judging: Trajectories, fill: Fill, progress: bool
) -> list[_Method]:
    if not config.policies:
        return []
    from crystal_gym.extras import require_agents

    require_agents()
    from crystal_gym.agents.policy import BUNDLED_POLICY, load_policy, policy_folder
    from crystal_gym.agents.training import TrainConfig

    rule = ChargeNeutralMask().rows if config.mask else None
    ranker = SurrogateOracle() if config.search else None
    short = Counter(Path(name).name for name in config.policies)
    methods = []
    for given in dict.fromkeys(config.policies):
        path = BUNDLED_POLICY if given == "bundled" else policy_folder(given)
        policy = load_policy(None if given == "bundled" else given)
        settings = _settings(policy, given, TrainConfig)
        name = Path(given).name if short[Path(given).name] == 1 else given
        conditional = settings.targets is not None
        weights = sha256_of(path / "weights.pt")
        leaks = settings.site_order == "source"
        methods.append(
            _Method(
                name=name + (", charge-neutral mask" if config.mask else ""),
                aims=config.targets if conditional else (None,),
                design=(
                    partial(_in_source_order, partial(fill, policy, action_mask=rule), judging)
                    if leaks
                    else partial(fill, policy, action_mask=rule)
                ),
                made_by={"weights": weights, "mask": config.mask},
                valued=None if leaks or not _has_values(policy, task) else policy,
                family=_family(settings),
                kind="policy",
                note=_note(settings, config),
            )
        )
        if ranker is not None and conditional and not leaks:
            methods.append(_searched(name, policy, weights, ranker, config, progress))
    return methods


def _searched(
    name: str,
    policy: Any,
    weights: str,
    ranker: SurrogateOracle,
    config: EvaluationConfig,
    progress: bool,
) -> _Method:
    from crystal_gym.design import best_by_reward

    same = config.oracle == "surrogate"
    return _Method(
        name=f"{name}, search",
        aims=config.targets,
        design=partial(best_by_reward, policy, ranker, progress=progress),
        made_by={"weights": weights, "search": _content(ranker)},
        kind="policy",
        note="ranked by the bundled surrogate" + (", which judges it as well" if same else ""),
    )


def _settings(policy: Any, given: str, kind: type) -> Any:
    if "settings" not in policy.metadata:
        raise ValueError(
            f"policy {given} does not say how it was trained, and so not whether it takes a "
            "target: expected a run of `crystal-gym train`; or save it again with save_policy(..., "
            'metadata={"settings": {"algorithm": "dqn", "target_gap": ["uniform"]}})'
        )
    return kind.from_dict(policy.metadata["settings"])  # type: ignore[attr-defined]


def _in_source_order(
    design: Designer, judging: Trajectories, task: Task, target_gap: float | None
) -> NDArray[np.int16]:
    """Fill in the order of the source files, as such a policy was trained; undo the numbering."""
    theirs = Task.of_trajectories(in_source_order(judging)).first_orders()
    theirs = theirs.rows(np.flatnonzero(np.isin(theirs.skeleton, task.skeleton)))
    filled = design(theirs, target_gap)
    tokens = np.zeros_like(filled)
    for row, number in enumerate(task.skeleton.tolist()):
        order = np.argsort(task.skeletons[number].source_rank)  # canonical number by place in file
        tokens[row, order] = filled[row, : len(order)]
    return tokens


def _has_values(policy: Any, task: Task) -> bool:
    """Return whether a policy gives a value to each element: not if its actions are continuous."""
    if not hasattr(policy, "values"):
        return False
    from crystal_gym.envs.observations import compact_rows

    rows = compact_rows(
        task.skeletons, task.skeleton[:1], np.zeros_like(task.reference[:1]), 0, None
    )
    try:
        policy.values(rows)
    except TypeError:
        return False
    return True


def _family(settings: Any) -> str:
    values = dataclasses.asdict(settings)
    del values["seed"], values["start_from"]
    return f"{settings.algorithm} {hashlib.sha256(json.dumps(values).encode()).hexdigest()[:8]}"


def _note(settings: Any, config: EvaluationConfig) -> str | None:
    if settings.site_order == "source":
        return "judged in the order of the source files, which leaks the elements"
    if settings.dataset == config.dataset and settings.split != config.split:
        return f"has seen crystals that judge it: it was trained on the {settings.split} split"
    return None


def _baselines(config: EvaluationConfig, training: Trajectories, fill: Fill) -> list[_Method]:
    library = PrototypeLibrary(training)
    neighbour = NearestNeighbour(library)
    majority = MajorityPolicy(training)
    learned = {"training": _digest(Task.of_trajectories(training))}
    drawn = {"seed": config.seed}

    def frequent(task: Task, target_gap: float | None) -> NDArray[np.int16]:
        return fill(majority, task, None)

    def random(task: Task, target_gap: float | None) -> NDArray[np.int16]:
        # A new one each time: a design does not depend on what was drawn for others before it.
        return fill(RandomPolicy(config.seed), task, None)

    none: tuple[None] = (None,)
    return [
        _Method("random", none, random, drawn, RandomPolicy(config.seed)),
        _Method("majority element", none, frequent, learned, majority),
        _Method("random, charge-balanced", none, RandomBalanced(config.seed), drawn),
        _Method("ion substitution", none, Substitution(library), learned),
        _Method("nearest neighbour", none, neighbour, learned),
        _Method("nearest neighbour, by gap", config.targets, neighbour, learned),
    ]


# -- designs ---------------------------------------------------------------------------------------


def _made(
    method: _Method,
    aim: float | None,
    task: Task,
    oracle: Oracle,
    config: EvaluationConfig,
    folder: Path,
    progress: bool,
) -> Design:
    """Return a design with its properties: what is stored, or made now and stored."""
    path = folder / "designs" / f"{_slug(method.name, aim)}.npz"
    made_by = json.dumps(
        {
            **method.made_by,
            "method": method.name,
            "target_ev": aim,
            "task": _digest(task),
            "crystal_gym": version("crystal-gym"),
        }
    )
    columns_asked = [f.name for f in dataclasses.fields(PropertyColumns)]
    asked = json.dumps([config.oracle, oracle_label(oracle), _content(oracle), columns_asked])
    stored = _stored(path, made_by)
    if "tokens" not in stored:
        if progress:
            sys.stderr.write(f"{method.name}{'' if aim is None else f' at {aim:g} eV'}\n")
        stored = {"made_by": np.str_(made_by), "tokens": method.design(task, aim)}
        if method.valued is not None:
            stored["top_k"] = top_k_hits(method.valued, task, aim, TOP_K)
        save_npz(path, **stored)
    tokens = np.asarray(stored["tokens"], dtype=np.int16)
    if str(stored.get("asked")) != asked:
        found = evaluate_designs(oracle, tokens, task, progress=progress)
        stored |= {f.name: getattr(found, f.name) for f in dataclasses.fields(found)}
        save_npz(path, **{**stored, "asked": np.str_(asked)})
    columns = PropertyColumns(*(stored[f.name] for f in dataclasses.fields(PropertyColumns)))
    return Design(tokens, stored.get("top_k"), columns)


def _stored(path: Path, made_by: str) -> dict[str, NDArray[Any]]:
    """Return the arrays of a stored design, none if it was made by something else."""
    if not path.exists():
        return {}
    try:
        with open_npz(path) as file:
            if str(file["made_by"]) == made_by:
                return {name: file[name] for name in file}
    except DAMAGED_NPZ:
        sys.stderr.write(f"{path} is damaged and is made again\n")
    return {}


_LONGEST_SLUG = 200  # file systems end a name at 255 bytes


def _slug(name: str, aim: float | None) -> str:
    words = re.sub(r"[^\w.]+", "-", name)[:_LONGEST_SLUG].strip("-")
    return words if aim is None else f"{words}-at-{aim:g}"


def _digest(task: Task) -> str:
    digest = hashlib.sha256(str(task.skeletons.table_id).encode())
    for part in (task.skeleton, task.traversal):
        digest.update(np.ascontiguousarray(part).tobytes())
    return digest.hexdigest()[:16]


def _content(oracle: Oracle) -> str | None:
    """Return a hash of what an oracle answers from: a table's labels, a surrogate's weights.

    Without it a surrogate that was trained again would leave the old predictions in place. What is
    calculated, and oracles of the user, are taken to answer the same each time.
    """
    if isinstance(oracle, TableOracle):
        digest = hashlib.sha256()
        for column in ("tokens", "status", "band_gap_ev", "formation_energy_ev_per_atom"):
            digest.update(np.ascontiguousarray(getattr(oracle.table, column)).tobytes())
        return digest.hexdigest()
    weights: str | None = getattr(oracle, "metadata", {}).get("weights_sha256")
    return weights


def _save_crystals(path: Path, judge: Judge) -> None:
    """Write what the rows of all designs are: names, source crystals and their DFT labels."""
    save_npz(
        path,
        name=judge.task.skeletons.names[judge.task.skeleton],
        skeleton=judge.task.skeleton,
        n_sites=judge.task.n_sites,
        reference=judge.task.reference,
        lattice=judge.task.skeletons.lattice[judge.task.skeleton].astype(np.float32),
        frac_coords=_padded_coordinates(judge.task),
        new_formula=judge.new_formula,
        band_gap_ev=judge.band_gap_ev,
        formation_energy_ev_per_atom=judge.formation_energy_ev_per_atom,
    )


def _padded_coordinates(task: Task) -> NDArray[np.float32]:
    places = np.zeros((len(task), task.skeletons.max_sites, 3), np.float32)
    for row, number in enumerate(task.skeleton.tolist()):
        skeleton = task.skeletons[number]
        places[row, : skeleton.n_sites] = skeleton.frac_coords
    return places


# -- results ---------------------------------------------------------------------------------------


def _results(
    config: EvaluationConfig,
    methods: Sequence[_Method],
    designs: dict[str, dict[float | None, Design]],
    judge: Judge,
    oracle: Oracle,
    progress: bool,
) -> dict[str, Any]:
    """Return everything that ``results.json`` holds."""

    def measured(statistics: dict[str, Any]) -> dict[str, list[float | None]]:
        found = estimates(statistics, len(judge), resamples=config.resamples, seed=config.seed)
        return {name: _numbers(e.value, e.low, e.high) for name, e in found.items()}

    alone, at_target, over_targets = [], [], []
    for method in methods:
        made = designs[method.name]
        name = {"method": method.name, "kind": method.kind}
        for aim, design in made.items():
            row = {**name, "target_ev": aim, "family": method.family}
            alone.append({**row, "measures": measured(statistics_of_design(design, judge))})
            for target in config.targets if aim is None else (aim,):
                measures = measured(statistics_at_target(design, judge, target))
                at = {**name, "target_ev": target, "aimed": aim is not None}
                at_target.append({**at, "measures": measures})
        aimed = {t: d for t, d in made.items() if t is not None}
        if len(aimed) > 1:
            over_targets.append(
                {
                    **name,
                    "targets_ev": list(aimed),
                    "measures": measured(statistics_over_targets(aimed, judge)),
                    "hit_matrix": hit_matrix(aimed, list(aimed)).tolist(),
                }
            )
    return {
        "settings": dataclasses.asdict(config),
        "oracle": oracle_label(oracle),
        "crystals": len(judge),
        "crystals_of_new_formula": int(judge.new_formula.sum()),
        "rare_gap_ev": judge.rare_gap_ev,
        "training_formulas": len(judge.known),
        "skeleton_table_id": judge.task.skeletons.table_id,
        "intervals": "95% percentile, bootstrap over crystals",
        "python": platform.python_version(),
        "versions": _versions(),
        "designs": alone,
        "at_target": at_target,
        "over_targets": over_targets,
        "notes": {m.name: m.note for m in methods if m.note is not None},
    }


def _regrets(config: EvaluationConfig, methods: Sequence[_Method]) -> list[dict[str, Any]]:
    """Return mean regrets on the tabular set of policies and of random choices, by target."""
    chosen = {m.name: m.valued for m in methods if m.kind == "policy"}
    chosen["random"] = RandomPolicy(config.seed)
    return [
        {
            "method": name,
            "targets_ev": list(config.targets),
            "mean_regret": [
                float(f"{tabular_regret(policy, t, seed=config.seed).mean():.6g}")
                for t in config.targets
            ],
        }
        for name, policy in chosen.items()
        if policy is not None
    ]


_LONGEST_LOG = 500_000_000


def _learning_curves(config: EvaluationConfig) -> list[dict[str, Any]]:
    """Return accuracies in the course of the policies' trainings, where their logs are there."""
    curves = []
    for given in dict.fromkeys(config.policies):
        path = Path(given) / "log.csv"
        if not path.exists():
            continue
        try:
            text = io.StringIO(read_text(path, _LONGEST_LOG))
            rows = [row for row in csv.DictReader(text) if row.get("val_accuracy")]
            curves.append(
                {
                    "method": Path(given).name,
                    "steps": [int(row["step"]) for row in rows],
                    "seconds": [float(row["seconds"]) for row in rows],
                    "accuracy": [float(row["val_accuracy"]) for row in rows],
                }
            )
        except (csv.Error, LookupError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path} is no log of a training ({first_line(error)}): "
                "expected the columns step, seconds and "
                "val_accuracy; move it away to go on without a curve"
            ) from error
    return curves


def _numbers(*values: float) -> list[float | None]:
    """Return numbers as JSON can hold them: null for none."""
    return [float(f"{v:.6g}") if np.isfinite(v) else None for v in values]


def _versions() -> dict[str, str]:
    found = {}
    for name in ("crystal-gym", "numpy", "scipy", "pymatgen", "smact", "minari", "torch", "d3rlpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # torch and d3rlpy are not needed for baselines
            continue
    return found
