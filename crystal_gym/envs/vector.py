"""Many episodes of ``CrystalFill-v0`` at once, in arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.utils.seeding import np_random
from gymnasium.vector.utils import batch_space, create_empty_array
from numpy.typing import ArrayLike, NDArray

from crystal_gym.elements import N_ELEMENTS, reduced_formula
from crystal_gym.envs.crystal_fill import TOLD_PROPERTIES, CrystalFillEnv, require_allowed
from crystal_gym.envs.observations import Placed
from crystal_gym.envs.rendering import Outcome, render_ansi, render_rgb
from crystal_gym.envs.state import State
from crystal_gym.oracles import Filling

__all__ = ["CrystalFillVectorEnv"]

# Gymnasium 1.1 and later ask how an environment restarts; 1.0 knows this way alone.
_MODES = getattr(gym.vector, "AutoresetMode", None)
_AUTORESET = {} if _MODES is None else {"autoreset_mode": _MODES.NEXT_STEP}


class CrystalFillVectorEnv(gym.vector.VectorEnv[Any, Any, Any]):
    """``num_envs`` environments that answer as a ``SyncVectorEnv`` of as many would, faster.

    ``gym.make_vec("CrystalFill-v0", num_envs=1024, vectorization_mode="vector_entry_point", ...)``
    makes it. Every step is a few operations on arrays; crystals that are finished in the same step
    are asked about in one call of the oracle.

    An environment that has ended starts again at the next step, whose action for it is ignored and
    whose reward is 0 (Gymnasium's next-step autoreset). Environment ``i`` is seeded with
    ``seed + i``. Infos are arrays with a mask ``_key`` each; ``properties`` holds NaN where
    something is not known. ``render()`` returns one text or picture for each environment (render
    modes ``ansi`` and ``rgb_array``).

    Args:
        num_envs: Environments.
        kwargs: As of :class:`CrystalFillEnv`, without render mode ``human``.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 (Gymnasium's form)
        "render_modes": ["ansi", "rgb_array"],
        "render_fps": CrystalFillEnv.metadata["render_fps"],
        **_AUTORESET,
    }

    def __init__(self, num_envs: int = 1, **kwargs: Any) -> None:
        if isinstance(num_envs, bool) or not isinstance(num_envs, int) or num_envs < 1:
            raise ValueError(f"num_envs={num_envs!r}: expected a whole number above 0")
        if kwargs.get("render_mode") == "human":
            raise ValueError(
                "render_mode='human' is for a single environment: expected 'ansi' or 'rgb_array', "
                "whose render() returns one picture for each environment"
            )
        self.num_envs = num_envs
        self._env = env = CrystalFillEnv(**kwargs)
        self.render_mode = env.render_mode
        self.single_observation_space = env.observation_space
        self.single_action_space: Any = env.action_space
        self.observation_space = batch_space(env.observation_space, num_envs)
        self.action_space = batch_space(env.action_space, num_envs)
        self._arrays: Any
        if isinstance(env.observation_space, spaces.Graph):
            self._arrays = [None] * num_envs
        else:
            self._arrays = create_empty_array(env.observation_space, num_envs)
        n_sites = env.skeletons.max_sites
        self._generators = [np_random()[0] for _ in range(num_envs)]
        self._skeletons: list[Any] = [None] * num_envs
        self._prepared: list[Any] = [None] * num_envs
        self._targets: list[float | None] = [None] * num_envs
        self._outcomes: list[Outcome | None] = [None] * num_envs
        self._names = np.full(num_envs, None, dtype=object)
        self._n_sites = np.zeros(num_envs, dtype=np.int64)
        self._tokens = np.zeros((num_envs, n_sites), dtype=np.int16)
        # After the last site of an environment comes n_sites, which is no site.
        self._order = np.zeros((num_envs, n_sites + 1), dtype=np.int64)
        self._filled = np.zeros(num_envs, dtype=np.int64)
        self._masks = np.tile(env.element_mask, (num_envs, 1))
        self._over = np.ones(num_envs, dtype=np.bool_)
        self._begun = False

    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> tuple[Any, dict[str, Any]]:
        """Start an episode in every environment.

        Args:
            seed: A number, to which environment ``i`` adds ``i``, or one for each; None goes on
                with the draws.
            options: As in :meth:`CrystalFillEnv.reset`, for all of them.

        Returns:
            The observations, batched as in ``observation_space``, and the infos.

        Raises:
            ValueError: If there are not as many seeds as environments, or an option is not usable.
        """
        if seed is not None:
            seeds = [seed + i for i in range(self.num_envs)] if isinstance(seed, int) else [*seed]
            if len(seeds) != self.num_envs:
                raise ValueError(
                    f"{len(seeds)} seeds for {self.num_envs} environments: expected one for each, "
                    "or a single number"
                )
            for i, one in enumerate(seeds):
                if one is not None:
                    self._generators[i] = np_random(one)[0]
        for i in range(self.num_envs):
            self._begin(i, options)
        self._over[:] = False
        self._begun = True
        self._update_masks()
        return self._observations(), self._infos()

    def step(
        self, actions: ArrayLike
    ) -> tuple[Any, NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        """Put an element on the site in focus of every environment that has not ended.

        Args:
            actions: Numbers of elements, 0 to 87, ``(num_envs,)``.

        Returns:
            The observations; the rewards, which episodes ended and which were cut short (none),
            each ``(num_envs,)``; and the infos.

        Raises:
            TypeError: If actions are no whole numbers.
            ValueError: If one is out of range or masked.
        """
        chosen = self._check_actions(actions)
        over = self._over
        rows = np.flatnonzero(~over)
        sites = self._order[rows, self._filled[rows]]
        self._tokens[rows, sites] = chosen[rows] + 1
        self._filled[rows] += 1
        self._show(rows, sites)
        for i in np.flatnonzero(over).tolist():
            self._begin(i, None)
        ended = self._filled == self._n_sites
        self._over = ended
        self._update_masks()
        infos = self._infos()
        rewards = np.zeros(self.num_envs)
        if ended.any():
            self._finish(np.flatnonzero(ended), rewards, infos)
        no = np.zeros(self.num_envs, dtype=np.bool_)
        return self._observations(), rewards, ended.copy(), no, infos

    def render(self) -> tuple[Any, ...] | None:
        """Return every crystal so far, as text or as arrays, in the order of the environments."""
        if self.render_mode is None:
            gym.logger.warn("render() without a render_mode: make it with 'ansi' or 'rgb_array'")
            return None
        self._require_begun()
        draw = render_ansi if self.render_mode == "ansi" else render_rgb
        return tuple(draw(self._state(i), self._outcomes[i]) for i in range(self.num_envs))

    # -- parts -------------------------------------------------------------------------------------

    def _begin(self, i: int, options: Mapping[str, Any] | None) -> None:
        state = self._env.begin(self._generators[i], options)
        skeleton = state.skeleton
        n_sites = skeleton.n_sites
        self._skeletons[i], self._targets[i] = skeleton, state.target_gap
        self._outcomes[i] = None
        self._names[i], self._n_sites[i], self._filled[i] = skeleton.name, n_sites, 0
        self._tokens[i] = 0
        self._order[i, :n_sites] = state.traversal
        self._order[i, n_sites] = n_sites
        prepared = self._env.form.prepare(skeleton)
        shown = self._env.form.encode(prepared, state.tokens, state.focus, state.target_gap)
        if isinstance(shown, dict):
            for name, array in shown.items():
                self._arrays[name][i] = array
        else:
            self._arrays[i] = shown
        if isinstance(self._arrays, list):  # arrays hold it already
            self._prepared[i] = prepared

    def _show(self, rows: NDArray[np.int64], sites: NDArray[np.int64]) -> None:
        """Bring observations up to date after a token was put on a site of some environments."""
        focus = self._order[rows, self._filled[rows]]
        tokens = self._tokens[rows, sites]
        if not isinstance(self._arrays, list):
            self._env.form.move(self._arrays, Placed(rows, sites, tokens, focus))
            return
        for i, site in zip(rows.tolist(), focus.tolist(), strict=True):
            filled = self._tokens[i, : self._n_sites[i]]
            self._arrays[i] = self._env.form.encode(
                self._prepared[i], filled, site, self._targets[i]
            )

    def _observations(self) -> Any:
        if isinstance(self._arrays, dict):
            return {name: array.copy() for name, array in self._arrays.items()}
        return tuple(self._arrays) if isinstance(self._arrays, list) else self._arrays.copy()

    def _state(self, i: int) -> State:
        n_sites = int(self._n_sites[i])
        order = tuple(self._order[i, :n_sites].tolist())
        tokens, filled = self._tokens[i, :n_sites], int(self._filled[i])
        return State(self._skeletons[i], order, tokens, filled, self._targets[i])

    def _update_masks(self) -> None:
        rule = self._env.mask_rule
        if rule is None:  # it is the same in all states
            return
        for i in np.flatnonzero(~self._over).tolist():
            self._masks[i] = rule(self._state(i))

    def _infos(self) -> dict[str, Any]:
        infos: dict[str, Any] = {}
        focus = self._order[np.arange(self.num_envs), self._filled]
        for name, array in (
            ("action_mask", self._masks.copy()),
            ("skeleton", self._names.copy()),
            ("focus", focus),
        ):
            infos[name], infos[f"_{name}"] = array, np.ones(self.num_envs, dtype=np.bool_)
        return infos

    def _finish(
        self, rows: NDArray[np.int64], rewards: NDArray[np.float64], infos: dict[str, Any]
    ) -> None:
        """Ask the oracle about finished crystals; write rewards and what is told of them."""
        fillings = [
            Filling(self._skeletons[i], self._tokens[i, : self._n_sites[i]].copy())
            for i in rows.tolist()
        ]
        answers = self._env.evaluate(fillings)
        has = np.zeros(self.num_envs, dtype=np.bool_)
        has[rows] = True
        told = {
            name: np.full(self.num_envs, None, dtype=object)
            for name in ("formula", "oracle_status", "provenance")
        }
        numbers = {name: np.full(self.num_envs, np.nan) for name in TOLD_PROPERTIES}
        for i, filling, answer in zip(rows.tolist(), fillings, answers, strict=True):
            rewards[i], status = self._env.score(answer, self._targets[i])
            self._outcomes[i] = Outcome(float(rewards[i]), status, answer)
            told["formula"][i] = reduced_formula(filling.tokens)
            told["oracle_status"][i], told["provenance"][i] = status, answer.provenance
            for name, column in numbers.items():
                value = getattr(answer, name)
                if value is not None:
                    column[i] = value
        for name, values in told.items():
            infos[name], infos[f"_{name}"] = values, has.copy()
        properties: dict[str, Any] = {}
        for name, column in numbers.items():
            properties[name], properties[f"_{name}"] = column, has.copy()
        infos["properties"], infos["_properties"] = properties, has.copy()

    def _require_begun(self) -> None:
        if not self._begun:
            raise RuntimeError("there is no episode yet: call reset() first")

    def _check_actions(self, actions: ArrayLike) -> NDArray[np.int64]:
        self._require_begun()
        chosen = np.asarray(actions)
        if chosen.shape != (self.num_envs,) or chosen.dtype.kind not in "iu":
            raise TypeError(
                f"actions of shape {chosen.shape} and type {chosen.dtype} do not fit: expected "
                f"{self.num_envs} whole numbers, one for each environment"
            )
        beyond = (chosen < 0) | (chosen >= N_ELEMENTS)
        masked = self._masks[np.arange(self.num_envs), chosen % N_ELEMENTS] == 0
        for wrong in (beyond, masked):
            for i in np.flatnonzero(wrong & ~self._over).tolist():
                require_allowed(int(chosen[i]), self._masks[i], f" of environment {i}")
        return chosen.astype(np.int64)
