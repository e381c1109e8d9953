"""``CrystalFill-v0``: fill an empty crystal skeleton, site by site."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from crystal_gym.charge_masks import ChargeNeutralMask
from crystal_gym.elements import ELEMENTS, N_ELEMENTS, element_mask, reduced_formula
from crystal_gym.envs.observations import make_form
from crystal_gym.envs.rendering import Outcome, Screen, open_screen, render_ansi, render_rgb
from crystal_gym.envs.state import State, initial_state, is_terminal, place
from crystal_gym.extras import require_extra
from crystal_gym.graphs import breadth_first_order
from crystal_gym.oracles import (
    Filling,
    FillingOracle,
    Oracle,
    Properties,
    PropertyTable,
    Status,
    TableOracle,
    load_table,
)
from crystal_gym.oracles.surrogate import SurrogateOracle, holds_surrogate
from crystal_gym.rewards import Reward, make_reward
from crystal_gym.sets import is_named_set, load_skeletons
from crystal_gym.skeletons import Skeleton, SkeletonSet
from crystal_gym.targets import TargetSampler, check_target_gap

__all__ = ["CrystalFillEnv"]

SITE_ORDERS = ("canonical", "shuffled", "source")
MASKS = ("elements", "table", "charge_neutral")
TOLD_PROPERTIES = ("total_energy_ry", "formation_energy_ev_per_atom", "band_gap_ev")
_SKELETONS_KEPT = 10_000
"""In memory: about 30 MB for cells of MP-20."""
RESET_OPTIONS = ("skeleton", "start_site", "target_gap")


class CrystalFillEnv(gym.Env[Any, np.int64]):
    r"""Fill an empty crystal skeleton site by site with one of 88 elements.

    ## Description
    A *skeleton* is a periodic cell with sites and no elements. The agent visits its sites in a
    breadth-first order over the bonds and puts one element on each. When the last site is filled
    an oracle gives the crystal's properties and the reward says how close its band gap is to the
    target, and how stable it is. The task is that of Govindarajan et al., *Digital Discovery*
    2024, 3, 769 (doi 10.1039/d4dd00024b), without its leak: neither the graph nor the order of
    the sites depends on the elements of the crystal the skeleton was taken from.

    ## Action space
    ``Discrete(88)``: the elements by atomic number, H He Li ... Bi Ac Th Pa U Np Pu (without Ar,
    Po, At, Rn, Fr, Ra): ``crystal_gym.elements.ELEMENTS[action]``. Some actions may be masked.

    ## Observation space
    ``observation=``

    - ``"graph"`` (default): ``Dict`` of arrays padded to the largest skeleton (``n`` sites, ``e``
      directed edges) of the set: ``element_tokens`` (n,) 0 empty, 1 to 88 = action + 1;
      ``node_mask`` (n,); ``focus`` (n,) flag of the site to fill; ``edge_index`` (2, e),
      ``edge_image`` (e, 3), ``edge_length`` (e,) Å, ``edge_mask`` (e,); ``lattice`` (6,) Å and
      degrees; ``space_group`` (1,) of the bare skeleton; ``target_gap`` (1,) eV.
    - ``"packed"``: the same numbers in one self-contained float32 ``Box``
      (:class:`crystal_gym.envs.observations.PackedLayout`).
    - ``"compact"``: ``Dict`` of ``skeleton`` (its number in the set), ``element_tokens``,
      ``focus`` (site number, ``n_sites`` after the last), ``target_gap``: what datasets store.
    - ``"space"``: Gymnasium's ``Graph``. Works in ``check_env`` and ``SyncVectorEnv``; Gymnasium
      has no shared memory for graphs, so ``AsyncVectorEnv`` needs ``shared_memory=False``.

    Without a target (``target_gap=None``) there is no ``target_gap`` key, and the packed row
    holds 0 in its ``conditional`` and ``target`` columns.

    ## Rewards
    0 until the last site; then, by default, eqn (7) of the paper,
    ``exp(-E_form/5) + 10 exp(-(gap - target)^2/3)`` with E_form in eV/atom and the gap in eV; only
    the first term without a target. ``reward=`` ``"formation"`` (this), ``"total_energy"``
    (eqn 16), ``"energy"`` (first term only), or a callable ``(properties, target_gap) -> float``.
    If the oracle has no properties the reward is ``failure_reward`` and ``info`` says why.

    ## Starting state
    ``reset(seed=, options=)`` draws a skeleton and a start site uniformly, or takes them from
    ``options={"skeleton": 12, "start_site": 3, "target_gap": 1.12}`` (each optional; a skeleton by
    number or name; the target holds for this episode only).

    ## Episode end
    ``terminated`` at the last site; ``truncated`` never.

    ## Info
    Every step: ``action_mask`` (int8, 88; 1 = allowed), ``skeleton`` (its name, which may tell
    the source crystal: for people, not for agents), ``focus`` (``n_sites`` after the last). At
    the end also ``formula``, ``properties`` (a dict with units in its keys), ``oracle_status``
    (``"ok"`` or why there is no answer) and ``provenance``.

    ## Arguments
    - ``target_gap``: eV, >= 0; a list of these, or ``"uniform"`` (0 to 6 eV), from which every
      reset draws one; or None (default): the unconditional task.
    - ``skeletons``: ``"mini"`` (bundled, default), ``"tabular"`` (bundled, every valid filling of
      small skeletons calculated), ``"mp20"``, ``"mp20-val"``, a path (CIF, POSCAR, extended XYZ,
      ASE database, CSV, a folder of these), or Structure/Atoms objects.
    - ``oracle``: ``"table"`` (of the skeleton set; the bundled one for own structures),
      ``"espresso"`` (live pw.x at the settings of the published labels, behind a cache; seconds to
      hours at the last site), ``"surrogate"`` (predictions of the bundled ensemble, not DFT; needs
      the extra ``agents``), the name or path of a table, or any object with
      ``evaluate(structures) -> list[Properties]``.
    - ``elements``: the symbols that may be chosen; the rest is masked.
    - ``mask``: ``"elements"``; ``"table"``: only elements that some calculated filling of the
      table agrees with; or ``"charge_neutral"``: only elements after which some choice for the
      other sites is valid under SMACT's test (:mod:`crystal_gym.charge_masks`). Left out, it is
      ``"table"`` for the set ``"tabular"``, else ``"elements"``.
    - ``site_order``: how ties in the breadth-first order are broken. ``"canonical"``: by the
      numbering of the sites, which is drawn from the geometry alone. ``"shuffled"``: anew at every
      reset. ``"source"``: as in the source file; **this leaks the elements**, because files group
      their sites by element, and its only use is to reproduce the published protocol.
    - ``failure_reward``: reward without properties, 0.0.
    - ``render_mode``: ``"ansi"``, ``"rgb_array"`` or ``"human"``.

    ## Rendering
    - ``"ansi"``: text; the sites in the order of filling, ``>`` and ``[?]`` at the one in focus.
    - ``"rgb_array"``: a picture, uint8 (480, 640, 3), without a display. Jmol's colours with the
      elements' symbols; empty sites are dashed circles, the one in focus has a ring and a
      question mark; what bonds are drawn are those of the graph.
      ``gymnasium.wrappers.RecordVideo`` makes films of it (``pip install 'crystal-gym[render]'``).
    - ``"human"``: the same picture at every reset and step, for half a second each, in a window (it
      turns when dragged), in Jupyter below the running cell; where there is neither, the text.

    ## References
    Govindarajan et al. 2024 (above); CrystalNN: Zimmermann and Jain, *RSC Adv.* 2020, 10, 6063.

    ## Version history
    v0: first version.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 (Gymnasium's form)
        "render_modes": ["ansi", "rgb_array", "human"],
        "render_fps": 2,
    }

    def __init__(
        self,
        target_gap: float | Sequence[float | str] | str | None = None,
        *,
        skeletons: Any = "mini",
        oracle: str | Path | Oracle = "table",
        observation: str = "graph",
        elements: Sequence[str] | None = None,
        mask: str | None = None,
        reward: str | Reward = "formation",
        failure_reward: float = 0.0,
        site_order: str = "canonical",
        render_mode: str | None = None,
    ) -> None:
        self._targets = TargetSampler(target_gap)
        self._targets.draw(np.random.default_rng(0))  # what cannot be drawn is refused here
        _check_choice("site_order", site_order, SITE_ORDERS)
        if mask is None:  # in a set with every filling calculated, the table is the world
            mask = "table" if isinstance(skeletons, str) and skeletons == "tabular" else "elements"
        _check_choice("mask", mask, MASKS)
        if render_mode is not None:
            _check_choice("render_mode", render_mode, tuple(self.metadata["render_modes"]))
        if render_mode == "rgb_array":  # human can do without, in text
            require_extra("render", "render_mode='rgb_array'", modules=["matplotlib"])
        self._failure_reward = _finite("failure_reward", failure_reward)
        self.element_mask = element_mask(elements)
        self._reward = make_reward(reward)
        self._site_order = site_order
        self.skeletons: SkeletonSet = load_skeletons(skeletons)
        self.oracle: Oracle = make_oracle(oracle, skeletons)
        if site_order == "source":
            self.skeletons, self.oracle = _in_source_order(self.skeletons, self.oracle)
        self.mask_rule = _mask_rule(mask, self.oracle, self.element_mask)
        self.form = make_form(observation, self.skeletons, conditional=self._targets.conditional)
        self._kept: dict[int, Skeleton] = {}
        self.observation_space = self.form.space
        self.action_space = spaces.Discrete(N_ELEMENTS)
        self.render_mode = render_mode
        self._screen: Screen | None = None
        if render_mode == "human":
            self._screen = open_screen(1 / self.metadata["render_fps"])
        self._state: State | None = None
        self._outcome: Outcome | None = None
        self._prepared: Any = None
        self._mask = self.element_mask

    # -- the Gymnasium interface ---------------------------------------------------------------

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start an episode; see the class for ``options``.

        Args:
            seed: Starts the draws of skeleton and start site anew; None goes on with them.
            options: Some of ``skeleton``, ``start_site`` and ``target_gap`` (eV), instead of what
                would be drawn or was given to the class.

        Returns:
            The observation of the empty crystal, and its info, as the class describes them.

        Raises:
            TypeError: If an option is of the wrong kind.
            ValueError: If an option is unknown, or names no skeleton, site or gap of this
                environment.
        """
        super().reset(seed=seed)
        self._state = self.begin(self.np_random, options)
        self._outcome = None
        self._prepared = self.form.prepare(self._state.skeleton)
        info = self._info()
        self._show()
        return self._observe(), info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Put element ``action`` (0 to 87) on the focus site.

        Args:
            action: Number of the element in ``crystal_gym.elements.ELEMENTS``.

        Returns:
            The observation, the reward (0 before the last site), whether the last site was filled,
            False (no episode is cut short) and the info, as the class describes them.

        Raises:
            RuntimeError: If there is no episode, or all its sites are filled.
            TypeError: If ``action`` is no integer, or the oracle's or the reward's answer is none.
            ValueError: If ``action`` is out of range or masked.
        """
        state = self._require_state()
        if is_terminal(state):
            raise RuntimeError(
                f"step() after the end: all {state.step} sites are filled; call reset() first"
            )
        self._state = state = place(state, self._check_action(action))
        info: dict[str, Any]
        if not is_terminal(state):
            info = self._info()
            self._show()
            return self._observe(), 0.0, False, False, info
        (properties,) = self.evaluate([Filling(state.skeleton, state.tokens)])
        reward, status = self.score(properties, state.target_gap)
        self._outcome = Outcome(reward, status, properties)
        self._show()
        info = self._info()
        info["formula"] = reduced_formula(state.tokens)
        info["properties"] = {name: getattr(properties, name) for name in TOLD_PROPERTIES}
        info["oracle_status"] = status
        info["provenance"] = properties.provenance
        return self._observe(), reward, True, False, info

    def render(self) -> Any:
        """Return the crystal so far as text or as an array, or None where it is shown anyhow."""
        if self.render_mode is None:
            choices = ", ".join(self.metadata["render_modes"])
            gym.logger.warn(f"render() without a render_mode: make the env with one of {choices}")
            return None
        state = self._require_state()
        if self.render_mode == "human":
            return None
        draw = render_ansi if self.render_mode == "ansi" else render_rgb
        return draw(state, self._outcome)

    def close(self) -> None:
        """Close the window of render mode ``human``."""
        if self._screen is not None:
            self._screen.close()

    # -- what users and wrappers ask for ---------------------------------------------------------

    def action_masks(self) -> NDArray[np.int8]:
        """Return the allowed actions of the present state, int8 ``(88,)``."""
        return self._mask.copy()

    def structure(self) -> Any:
        """Return the pymatgen Structure so far; empty sites hold the dummy species X."""
        state = self._require_state()
        return state.skeleton.structure(state.tokens)

    @property
    def state(self) -> State:
        """The present state (immutable)."""
        return self._require_state()

    # -- the rules, which the vector environment follows too ---------------------------------------

    def begin(self, generator: np.random.Generator, options: Mapping[str, Any] | None) -> State:
        """Return the first state of an episode.

        Args:
            generator: Of what is drawn.
            options: As in :meth:`reset`.

        Returns:
            The state with no site filled, and its target in eV or None.
        """
        if options is not None and not isinstance(options, Mapping):
            raise TypeError(
                f"options={options!r} is no dictionary: expected keys {', '.join(RESET_OPTIONS)}"
            )
        options = dict(options or {})
        unknown = sorted(set(options) - set(RESET_OPTIONS))
        if unknown:
            raise ValueError(
                f"reset option {unknown[0]!r} is unknown: expected {', '.join(RESET_OPTIONS)}"
            )
        # All draws are made whatever the options say, so that fixing one leaves the others as are.
        drawn = int(generator.integers(len(self.skeletons)))
        fraction = float(generator.random())
        target = self._targets.draw(generator)
        skeleton = self._choose_skeleton(options.get("skeleton"), drawn)
        start = options.get("start_site")
        start = int(fraction * skeleton.n_sites) if start is None else _integer("start_site", start)
        shuffled = self._site_order == "shuffled"
        rank = generator.permutation(skeleton.n_sites) if shuffled else None
        traversal = breadth_first_order(skeleton.neighbours, start, rank)
        if "target_gap" in options:
            target = self._check_target(options["target_gap"])
        return initial_state(skeleton, traversal, target)

    def evaluate(self, fillings: Sequence[Filling]) -> Sequence[Properties]:
        """Return what the oracle says of finished crystals, in order.

        Args:
            fillings: Skeletons with an element on every site.

        Returns:
            One for each filling.

        Raises:
            TypeError: If it says anything but as many Properties.
        """
        if isinstance(self.oracle, FillingOracle):
            answers = self.oracle.evaluate_fillings(fillings)
        else:
            answers = self.oracle.evaluate([f.skeleton.structure(f.tokens) for f in fillings])
        if (
            not isinstance(answers, Sequence)
            or len(answers) != len(fillings)
            or not all(isinstance(answer, Properties) for answer in answers)
        ):
            raise TypeError(
                f"the oracle {type(self.oracle).__name__} answered {answers!r} for "
                f"{'one crystal' if len(fillings) == 1 else f'{len(fillings)} crystals'}: expected "
                f"a list of {'one' if len(fillings) == 1 else len(fillings)} "
                "crystal_gym.oracles.Properties"
            )
        return answers

    def score(self, properties: Properties, target: float | None) -> tuple[float, str]:
        """Return the reward of a finished crystal, and the status that says why it is so.

        Args:
            properties: What the oracle said.
            target: eV, None for the unconditional task.

        Returns:
            The reward, ``failure_reward`` where there is none; and ``"ok"``, or why there is none.

        Raises:
            TypeError: If a reward function of the user's returns no number.
        """
        if properties.status != Status.OK:
            return self._failure_reward, str(properties.status)
        reward = self._reward(properties, target)
        if reward is None:
            return self._failure_reward, "the oracle lacks a property that the reward needs"
        if not isinstance(reward, numbers.Real):
            raise TypeError(
                f"the reward function returned {reward!r}: expected a number, or None where a "
                "property is unknown"
            )
        if not math.isfinite(reward):
            return self._failure_reward, f"the reward of these properties is {float(reward)}"
        return float(reward), str(properties.status)

    # -- parts -------------------------------------------------------------------------------------

    def _require_state(self) -> State:
        if self._state is None:
            raise RuntimeError("there is no episode yet: call reset() first")
        return self._state

    def _choose_skeleton(self, wanted: Any, drawn: int) -> Skeleton:
        if wanted is None:
            return self._skeleton(drawn)
        if isinstance(wanted, str):
            found = np.flatnonzero(self.skeletons.names == wanted)
            if not len(found):
                raise ValueError(
                    f"skeleton {wanted!r} is not in this set of {len(self.skeletons)}: expected a "
                    f"name such as {str(self.skeletons.names[0])!r}, or a number"
                )
            return self._skeleton(int(found[0]))
        number = _integer("skeleton", wanted)
        if not 0 <= number < len(self.skeletons):
            raise ValueError(
                f"skeleton={number} is not in this set: expected 0 to {len(self.skeletons) - 1}"
            )
        return self._skeleton(number)

    def _skeleton(self, number: int) -> Skeleton:
        # One that is kept knows the lists of its neighbours, which take most of a reset.
        skeleton = self._kept.get(number)
        if skeleton is None:
            if len(self._kept) == _SKELETONS_KEPT:
                self._kept.clear()
            skeleton = self._kept[number] = self.skeletons[number]
        return skeleton

    def _check_target(self, target_gap: Any) -> float | None:
        target = check_target_gap(target_gap)
        if (target is None) == self._targets.conditional:
            kind = "a number" if self._targets.conditional else "None"
            raise ValueError(
                f"options target_gap={target!r}: this environment was made with target_gap={kind}, "
                "which fixes its observation space; make another one for the other task"
            )
        return target

    def _check_action(self, action: Any) -> int:
        if isinstance(action, np.ndarray) and action.shape in ((), (1,)):
            action = action.item()
        number = _integer("action", action)
        require_allowed(number, self._mask)
        return number

    def _show(self) -> None:
        if self._screen is not None:
            self._screen.show(self._require_state(), self._outcome)

    def _observe(self) -> Any:
        state = self._require_state()
        return self.form.encode(self._prepared, state.tokens, state.focus, state.target_gap)

    def _info(self) -> dict[str, Any]:
        state = self._require_state()
        if self.mask_rule is not None and not is_terminal(state):
            self._mask = self.mask_rule(state)
        return {
            "action_mask": self._mask.copy(),
            "skeleton": state.skeleton.name,
            "focus": state.focus,
        }


def require_allowed(action: int, mask: NDArray[np.int8], where: str = "") -> None:
    """Refuse an action that is none or is masked.

    Args:
        action: A number.
        mask: Of the state, ``(88,)``.
        where: Words after the action, such as `` of environment 3``.

    Raises:
        ValueError: If it may not be taken.
    """
    if not 0 <= action < N_ELEMENTS:
        raise ValueError(
            f"action={action}{where} is out of range: expected 0 to {N_ELEMENTS - 1} "
            "(crystal_gym.elements.ELEMENTS lists the elements)"
        )
    if not mask[action]:
        raise ValueError(
            f"action {action} ({ELEMENTS[action]}){where} is masked here: choose one that "
            "info['action_mask'] allows"
        )


def make_oracle(oracle: Any, skeletons: Any = "mini") -> Oracle:
    """Return the oracle that ``gym.make(oracle=...)`` names.

    Args:
        oracle: ``"table"`` (the table of ``skeletons`` where that is a named set, else the
            bundled one), ``"espresso"`` (live pw.x behind the user's cache of results),
            ``"surrogate"`` (the bundled one; not DFT) or the path of another, the name or path of
            a table, a PropertyTable, or an oracle.
        skeletons: The ``skeletons`` argument beside it.

    Returns:
        A new oracle; or ``oracle`` itself where it is one.

    Raises:
        ValueError: If the name is unknown.
        FileNotFoundError: If ``"espresso"`` finds no pw.x or no pseudopotentials.
        TypeError: If an object has no ``evaluate``.
    """
    if isinstance(oracle, str) and oracle == "table":
        return TableOracle(_table_beside(skeletons))
    if isinstance(oracle, str) and oracle == "espresso":
        from crystal_gym.oracles import CachedOracle, EspressoOracle

        return CachedOracle(EspressoOracle())
    if isinstance(oracle, str) and oracle == "surrogate":
        return SurrogateOracle()
    if isinstance(oracle, (str, Path)) and holds_surrogate(oracle):
        return SurrogateOracle(oracle)
    if isinstance(oracle, (str, Path, PropertyTable)):
        return TableOracle(oracle)
    if not isinstance(oracle, Oracle) or isinstance(oracle, type):
        raise TypeError(
            f"oracle={oracle!r} has no evaluate(structures): expected 'table', 'espresso', "
            "'surrogate', a path to a table, or an object with the oracle protocol"
        )
    return oracle


def _table_beside(skeletons: Any) -> PropertyTable:
    if is_named_set(skeletons):
        return load_table(skeletons)
    if isinstance(skeletons, (str, Path)) and Path(skeletons).suffix == ".npz":
        beside = Path(skeletons).with_name("table.npz")
        if beside.exists():
            return load_table(beside)
    return load_table("mini")


def _in_source_order(skeletons: SkeletonSet, oracle: Oracle) -> tuple[SkeletonSet, Oracle]:
    if isinstance(oracle, TableOracle) and oracle.table.skeletons is skeletons:
        table = oracle.table.in_source_order()
        return table.skeletons, TableOracle(table)
    return skeletons.in_source_order(), oracle


def _mask_rule(
    mask: str, oracle: Oracle, elements: NDArray[np.int8]
) -> Callable[[State], NDArray[np.int8]] | None:
    """Return what gives the mask of a state; None where it is always ``elements``."""
    if mask == "elements":
        return None
    if mask == "charge_neutral":
        neutral = ChargeNeutralMask(elements)
        return lambda state: neutral(state.tokens)
    if not isinstance(oracle, TableOracle):
        raise ValueError(
            f"mask={mask!r} needs a table oracle, not {type(oracle).__name__}: use oracle='table' "
            "or another mask"
        )

    def calculated(state: State) -> NDArray[np.int8]:
        found = oracle.extensions(state.skeleton, state.tokens, state.focus, elements)
        if not found.any():
            raise ValueError(
                f"no allowed element is left for site {state.focus} of {state.skeleton.name}: the "
                "table holds no calculated filling of it with the chosen elements; allow more "
                "elements or use mask='elements'"
            )
        return found

    return calculated


def _check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name}={value!r} is unknown: expected one of {', '.join(choices)}")


def _integer(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name}={value!r} is not an integer: expected a whole number")
    return int(value)


def _finite(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not math.isfinite(value):
        raise ValueError(f"{name}={value!r} is not usable: expected a finite number")
    return float(value)
