"""What is fuzzed: one target for every kind of thing that a user may have been given."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import shutil
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from fuzz.guard import Failure

__all__ = ["CORPUS", "TARGETS", "Dice", "Target", "seeds_of"]

CORPUS = Path(__file__).parent / "corpus"

Feed = Callable[[bytes], object]


@dataclass(frozen=True)
class Target:
    """One kind of input.

    Attributes:
        name: Of the target and of the folder of its seeds.
        prepare: Called once with the folder that may be written to; returns what takes an input.
        inputs: Strategy of inputs.
        modules: Where atheris looks for new code that an input reaches.
    """

    name: str
    prepare: Callable[[Path], Feed]
    inputs: st.SearchStrategy[bytes]
    modules: tuple[str, ...]


class Dice:
    """Choices read off bytes, so that both engines can steer them; zeros after the last one."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def byte(self) -> int:
        """Return 0 to 255."""
        self._at += 1
        return self._data[self._at - 1] if self._at <= len(self._data) else 0

    def number(self, below: int) -> int:
        """Return a whole number from 0 to ``below - 1``."""
        value = int.from_bytes(bytes(self.byte() for _ in range(4)), "big")
        return value % max(1, below)

    def pick(self, choices: Any) -> Any:
        """Return one of a sequence."""
        return choices[self.byte() % len(choices)]

    def damaged(self, content: bytes) -> bytes:
        """Return bytes with some replaced, cut out, doubled or put in."""
        out = bytearray(content)
        for _ in range(1 + self.byte() % 4):
            place, how = self.number(len(out) + 1), self.byte() % 5
            if how == 0:
                out[place : place + 1] = bytes([self.byte()])
            elif how == 1:
                del out[place : place + self.number(64)]
            elif how == 2:
                out[place:place] = out[place : place + self.number(64)]
            elif how == 3:
                out[place:place] = bytes(self.byte() for _ in range(8))
            else:
                del out[place:]
        return bytes(out)


WORDS = (
    *"0 -0 1 -1 2 89 119 1e308 -1e308 1e-320 nan inf -inf 99999999999 -99999999999 0x10".split(),
    *"1_0 -0.5 T F".split(),
    *"٣ ? . ' \" '' ; # : @ , \\ \x00 \x1a \ufeff é X Na D Xx H1+ _ {} [] {{{ ((( )))".split(),
    *"data_ loop_ data_x _cell_length_a _atom_site_label _symmetry_equiv_pos_as_xyz".split(),
    *"x,y,z x/0,y,z -x+1/2,y,z 1(2) Lattice= Properties= pbc= species:S:1:pos:R:3".split(),
    *"pos:R:0 direct Selective cif material_id skeleton elements".split(),
    "",
)


@st.composite
def _mutated(draw: st.DrawFn, seeds: tuple[bytes, ...]) -> bytes:
    """Draw a seed with words in the place of some of its own, and lines cut, doubled or swapped."""
    text = draw(st.sampled_from(seeds)).decode("utf-8", "surrogateescape")
    for _ in range(draw(st.integers(0, 5))):
        lines = text.split("\n")
        line = draw(st.integers(0, len(lines) - 1))
        words = lines[line].split(" ")
        kind = draw(st.sampled_from(["word", "word", "word", "cut", "double", "swap", "repeat"]))
        if kind == "word":
            word = draw(st.sampled_from(WORDS) | st.text(max_size=6))
            words[draw(st.integers(0, len(words) - 1))] = word
            lines[line] = " ".join(words)
        elif kind == "cut":
            del lines[line : line + draw(st.integers(1, 4))]
        elif kind == "double":
            lines[line:line] = lines[line : line + draw(st.integers(1, 4))]
        elif kind == "swap":
            other = draw(st.integers(0, len(lines) - 1))
            lines[line], lines[other] = lines[other], lines[line]
        elif len(lines[line]) < 1000:
            lines[line] = lines[line] * draw(st.sampled_from([2, 10, 1000]))
        text = "\n".join(lines)
    return text.encode("utf-8", "surrogateescape" if draw(st.booleans()) else "replace")


def seeds_of(name: str) -> tuple[bytes, ...]:
    """Return the saved inputs of a target."""
    return tuple(path.read_bytes() for path in sorted((CORPUS / name).iterdir()))


def _text_inputs(name: str) -> st.SearchStrategy[bytes]:
    return _mutated(seeds_of(name)) | st.binary(max_size=200)


# -- structures ------------------------------------------------------------------------------------


def _structures(file_name: str) -> Callable[[Path], Feed]:
    """Return a target that reads a file of this name as ``gym.make(skeletons=...)`` does."""

    def prepare(folder: Path) -> Feed:
        from crystal_gym.sets import load_skeletons

        def feed(data: bytes) -> None:
            (folder / file_name).write_bytes(data)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                load_skeletons(folder / file_name)

        load_skeletons("mini")  # what is imported late is no write of the input's
        with contextlib.suppress(ValueError):
            feed(b"")
        return feed

    return prepare


def _csv(folder: Path) -> Feed:
    """Read one half of the inputs as CDVAE's CSV, the other as fillings."""
    from crystal_gym.commands.label import read_fillings

    crystals = _structures("a.csv")(folder)

    def feed(data: bytes) -> None:
        if b"skeleton" in data:
            (folder / "fillings.csv").write_bytes(data)
            list(read_fillings("mini", folder / "fillings.csv"))
        else:
            crystals(data)

    return feed


# -- rows ------------------------------------------------------------------------------------------


_NUMBERS = (0.0, 1.0, -1.0, 0.5, 88.0, 89.0, 1e4, 2.0**24, 1e30, -1e30, float("nan"), float("inf"))


def _rows(folder: Path) -> Feed:
    """Act on observations: packed and compact rows with some numbers replaced, and masks."""
    import gymnasium as gym
    import numpy as np

    import crystal_gym
    from crystal_gym.agents import load_policy

    assert crystal_gym.__version__
    policy = load_policy()
    rows = []
    for form in ("packed", "compact"):
        env = gym.make("CrystalFill-v0", target_gap=3.0, observation=form)
        seen, _ = env.reset(seed=0)
        if form == "compact":
            from crystal_gym.envs.observations import compact_rows

            seen = compact_rows(
                env.unwrapped.skeletons,  # type: ignore[attr-defined]
                seen["skeleton"],
                seen["element_tokens"][None],
                seen["focus"],
                seen["target_gap"],
            )[0]
        rows.append(np.asarray(seen, dtype=np.float32))

    def feed(data: bytes) -> None:
        dice = Dice(data)
        batch = np.repeat(dice.pick(rows)[None], 1 + dice.byte() % 3, axis=0)
        for _ in range(dice.byte() % 6):
            place = dice.number(batch.shape[1] if dice.byte() % 2 else 20)
            batch[dice.number(len(batch)), place % batch.shape[1]] = dice.pick(_NUMBERS)
        shape = dice.byte() % 8
        batch = batch[:, : dice.number(40)] if shape == 1 else batch[0] if shape == 2 else batch
        mask = None
        if dice.byte() % 3 == 0:
            mask = np.ones(dice.pick([(88,), (len(batch), 88), (1, 2), ()]), np.int8)
            mask.ravel()[: dice.byte() % 90] = 0
        actions = policy.predict(batch, mask)
        if not (0 <= actions.min(initial=0) and actions.max(initial=0) < 88):
            raise Failure(f"actions {actions}")
        policy.values(batch)

    feed(b"")
    return feed


# -- files of several parts ------------------------------------------------------------------------


_VALUES = (
    None, True, -1, 0, 1, 3, 10**5, 10**12, -(10**12), 1e308, 0.5, "", "x", "../x", "os:system",
    [], {}, [[]], [1, 2], [10**5, 10**5], {"type": "x"}, "none", "[" * 5_000,
)  # fmt: skip


def _changed_json(dice: Dice, text: str) -> str:
    """Return JSON with one value replaced or removed; text in it that is JSON is changed inside."""
    value = json.loads(text)
    place, depth = value, dice.byte() % 8
    while isinstance(place, (dict, list)) and place:
        key = dice.pick(list(place) if isinstance(place, dict) else range(len(place)))
        inner = place[key]
        if isinstance(inner, str) and inner[:1] in "[{" and depth > 0:
            place[key] = _changed_json(dice, inner)
            break
        if depth == 0 or not isinstance(inner, (dict, list)) or not inner:
            if dice.byte() % 5 == 0:
                del place[key]
            else:
                place[key] = dice.pick(_VALUES)
            break
        place, depth = inner, depth - 1
    return json.dumps(value)


def _changed_npz(dice: Dice, path: Path) -> None:
    """Rewrite an ``.npz`` with an array of other numbers, another shape or type, damaged, gone."""
    import numpy as np

    with np.load(path) as file:
        arrays = dict(file)
    name = dice.pick(sorted(arrays))
    array, how = arrays[name], dice.byte() % 7
    if how == 0:
        del arrays[name]
    elif how == 1 and array.size:
        array = array.copy()
        value = dice.pick([0, 1, -1, 77, 30_000])
        array.reshape(-1)[dice.number(array.size)] = value
        arrays[name] = array
    elif how == 2:
        arrays[name] = array[: dice.number(len(array) + 1)] if array.ndim else array[None]
    elif how == 3:
        arrays[name] = array.astype(dice.pick(["U8", "f8", "i1", "u8", "c16", "bool", "S4"]))
    elif how == 4:
        arrays[name] = array[..., None]
    elif how == 5:
        arrays[name] = np.array(dice.pick([0, 1, -1, 10**9, "x"]))
    with open(path, "wb") as out:
        np.savez(out, **arrays)
    if how == 6:  # with its checksum: no other error comes first
        with zipfile.ZipFile(path) as archive:
            members = {member: archive.read(member) for member in archive.namelist()}
        members[f"{name}.npy"] = dice.damaged(members[f"{name}.npy"])
        with zipfile.ZipFile(path, "w") as archive:
            for member, content in members.items():
                archive.writestr(member, content)


def _changed_hdf5(dice: Dice, path: Path) -> None:
    """Change, remove or replace a part of an episode."""
    import h5py

    with h5py.File(path, "r+") as file:
        group = file[f"episode_{dice.number(3)}"]
        name = dice.pick(["actions", "observations/focus", "observations/skeleton", "rewards"])
        how = dice.byte() % 6
        if how == 0:
            del group[name]
        elif how == 1:
            group[name][...] = dice.pick([-1, 0, 50, 120])
        elif how == 2:
            del group[name]
            group.create_dataset(name, shape=dice.pick([(10**12,), (0,), (2, 2), ()]), dtype="i8")
        elif how == 3:
            del group[name]
            group[name] = dice.pick([b"text", 3.5, [[1], [2]]])
        elif how == 4:
            key = dice.pick(sorted(group.attrs))
            group.attrs[key] = dice.pick(["x", -1, 1e308, [1, 2]])
        else:
            del group.attrs[dice.pick(sorted(group.attrs))]


def _fresh(pristine: Path, live: Path) -> None:
    shutil.rmtree(live, ignore_errors=True)
    shutil.copytree(pristine, live)


def _minari(folder: Path) -> Feed:
    """Read a dataset of which one file was changed."""
    import numpy as np

    from crystal_gym.datasets.minari_io import DatasetCard, load_trajectories, write_dataset
    from crystal_gym.datasets.trajectories import plan_trajectories
    from crystal_gym.oracles import load_table
    from crystal_gym.oracles.table import table_of_fillings
    from crystal_gym.sets import dataset_dir

    mini = load_table("mini")
    few = [entry for entry in range(len(mini)) if mini.skeleton[entry] < 3]
    table = table_of_fillings(
        mini.skeletons[:3],
        [(int(mini.skeleton[e]), mini.entry_tokens(e), mini.properties(e)) for e in few],
    )
    name, pristine = "crystal-fuzz-v0", folder / "pristine"
    write_dataset(DatasetCard(name, "For fuzzing."), plan_trajectories(table), table)
    shutil.copytree(dataset_dir(name), pristine)

    def feed(data: bytes) -> None:
        dice, live = Dice(data), dataset_dir(name)
        _fresh(pristine, live)
        path = live / dice.pick(sorted(p.name for p in pristine.iterdir()))
        if dice.byte() % 3 == 0:
            path.write_bytes(dice.damaged(path.read_bytes()))
        elif path.suffix == ".json":
            path.write_text(_changed_json(dice, path.read_text()))
        elif path.suffix == ".npz":
            _changed_npz(dice, path)
        else:
            _changed_hdf5(dice, path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            episodes = load_trajectories(name)
            steps = np.arange(len(episodes.actions))
            assert len(episodes.tokens_before(steps)) == len(steps)
            table = load_table(live)
            assert all(len(table.entry_tokens(e)) for e in range(len(table)))

    with contextlib.suppress(ValueError, OSError):
        feed(b"\x01")
    return feed


def _models(folder: Path) -> Feed:
    """Load a policy or a surrogate of which one file was changed, and act."""
    import d3rlpy
    import numpy as np
    import torch
    from d3rlpy.models.encoders import VectorEncoderFactory

    from crystal_gym.agents import load_policy, save_policy
    from crystal_gym.agents.surrogate import Surrogate, load_surrogate, save_surrogate
    from crystal_gym.files import sha256_of

    config = d3rlpy.algos.DiscreteBCConfig(encoder_factory=VectorEncoderFactory([8, 8]))
    algorithm = config.create(device=False)
    algorithm.create_impl((25,), 88)
    save_policy(algorithm, folder / "pristine" / "policy")
    save_surrogate(Surrogate(2, 8, 1, 2), folder / "pristine" / "surrogate")

    def feed(data: bytes) -> None:
        dice, live = Dice(data), folder / "live"
        _fresh(folder / "pristine", live)
        model = live / dice.pick(["policy", "surrogate"])
        path = model / dice.pick(["config.json", "weights.pt"])
        if path.suffix == ".json" and dice.byte() % 4:
            path.write_text(_changed_json(dice, path.read_text()))
        elif path.suffix == ".pt" and dice.byte() % 2:
            weights = torch.load(path, weights_only=True)
            name = dice.pick(sorted(weights))
            weights[name] = dice.pick(
                [torch.zeros(3), torch.zeros(1).expand(10**9), torch.ones(()), None, "x", {}]
            )
            torch.save(dice.pick([weights, list(weights), weights[name]]), path)
        else:
            path.write_bytes(dice.damaged(path.read_bytes()))
        if path.suffix == ".pt" and dice.byte() % 4:  # as whoever changed it would
            settings = json.loads((model / "config.json").read_text())
            settings["weights_sha256"] = sha256_of(path)
            (model / "config.json").write_text(json.dumps(settings))
        if model.name == "policy":
            load_policy(model).predict(np.zeros((2, 25), np.float32))
        else:
            load_surrogate(model)

    with contextlib.suppress(ValueError, OSError):
        feed(b"\x00\x00\x01\x00\x01\x00")
    return feed


# -- the command -----------------------------------------------------------------------------------


_PARSED_ONLY = {"quickstart", "train", "doctor", "fetch", "build", "publish"}
"""Commands that train, download, build or upload: their words are parsed, and no more."""

_FILES = {
    "a.cif": b"data_x\n",
    "b.toml": b"steps = 'x'\n",
    "c.json": b"{}",
    "d.csv": b"skeleton,elements\n0,H\n",
    "e.db": b"SQLite format 3\0",
    "f.d3": b"\x80\x04.",
    "g.npz": b"PK\x05\x06" + bytes(18),
}


def _options(parser: argparse.ArgumentParser) -> list[str]:
    """Return all words that a parser and its commands know."""
    words: list[str] = []
    for action in parser._actions:
        words += action.option_strings
        if isinstance(action, argparse._SubParsersAction):
            for name, inner in action.choices.items():
                words += [name, *_options(inner)]
        elif action.choices:
            words += map(str, action.choices)
    return words


def _cli(folder: Path) -> Feed:
    """Run the command on words that it knows, files of no use, and others."""
    from crystal_gym import cli
    from crystal_gym.commands.arguments import build_parser

    for name, content in _FILES.items():
        (folder / name).write_bytes(content)
    (folder / "empty").mkdir()
    os.environ["PATH"] = str(folder / "empty")  # no pw.x
    known = sorted(set(_options(build_parser())) - {"doctor", "quickstart"})
    words = [*known, *_FILES, "empty", "none", "out", "3", "0", "-1", "nan", "1e308", "Na", "Xx"]
    words += ["x" * 300, "a=1", "k_mesh=1,2", "", "é", "mini", "--", "\x00", "crystal-x-v0", "/"]
    starts = ["data", "label", "design", "evaluate", "report", "train", "show", "export"]

    def feed(data: bytes) -> None:
        dice = Dice(data)
        line = [dice.pick(starts)] + [
            words[dice.number(len(words))] for _ in range(dice.byte() % 9)
        ]
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                if _PARSED_ONLY & set(line):
                    build_parser().parse_args(line)
                    return
                code = cli.main(line)
            except SystemExit as exit:
                code = exit.code
        said = err.getvalue()
        if code not in (0, 1, 2, 130) or "Traceback" in said:
            raise Failure(f"crystal-gym {line}: exit {code!r}, {said[-500:]}")
        if code == 1 and not said.splitlines()[-1].startswith("crystal-gym: "):
            raise Failure(f"crystal-gym {line}: exit 1 after {said[-500:]!r}")

    for line in (b"\x01\x03", b"\x02\x03", b"\x03\x03", b"\x04\x01"):
        feed(line)
    return feed


_STRUCTURES = ("crystal_gym.structures", "crystal_gym.graphs")
_BYTES = st.binary(min_size=1, max_size=64)

TARGETS = {
    target.name: target
    for target in (
        Target("cif", _structures("a.cif"), _text_inputs("cif"), (*_STRUCTURES, "pymatgen.io.cif")),
        Target(
            "poscar",
            _structures("POSCAR"),
            _text_inputs("poscar"),
            (*_STRUCTURES, "pymatgen.io.vasp.inputs"),
        ),
        Target("xyz", _structures("a.xyz"), _text_inputs("xyz"), (*_STRUCTURES, "ase.io.extxyz")),
        Target("csv", _csv, _text_inputs("csv"), (*_STRUCTURES, "crystal_gym.cdvae")),
        Target("rows", _rows, _BYTES, ("crystal_gym.envs.observations",)),
        Target("minari", _minari, _BYTES, ("crystal_gym.datasets.minari_io",)),
        Target("models", _models, _BYTES, ("crystal_gym.agents.model_files",)),
        Target("cli", _cli, _BYTES, ("crystal_gym.cli", "crystal_gym.commands.label")),
    )
}
