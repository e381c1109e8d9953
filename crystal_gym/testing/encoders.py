"""What every d3rlpy encoder factory has to keep to be trained on crystals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from crystal_gym.elements import N_ELEMENTS
from crystal_gym.envs.observations import COMPACT_HEADER, PACKED_HEADER, compact_rows, make_form
from crystal_gym.testing.promises import Promises, shortened

if TYPE_CHECKING:
    from torch import Tensor

    from crystal_gym.skeletons import SkeletonSet

__all__ = ["check_encoder_factory"]

Rows = NDArray[np.float32]
_N_ROWS = 12
_ACTION_SIZE = 5
_ROUNDING = 1e-6
"""Of float32 sums, relative."""
_FORMS = ("compact", "packed")


def check_encoder_factory(
    factory: Any,
    *,
    forms: Sequence[str] = _FORMS,
    skeletons: SkeletonSet | None = None,
    tolerance: float = 1e-4,
) -> None:
    """Hold a d3rlpy encoder factory to its promises.

    - It is a ``d3rlpy.models.EncoderFactory`` that is registered under its type name and survives
      JSON.
    - ``create((width,))`` makes a network from rows, float32 ``(B, width)``, to finite features,
      float32 ``(B, n_features)``, with finite gradients; it also takes rows of zeros, which d3rlpy
      puts behind the last step of an episode, and the noise with which it probes the width.
    - In evaluation a row has the same features in a batch of 1 and of many, every time.
    - Features do not depend on how the sites are numbered, nor on whether a row is compact or
      packed; they do depend on the elements, the site in focus and the target.
    - A ``state_dict`` gives another network of the factory the same features.
    - ``create_with_action`` makes a network of rows and actions, discrete and continuous, whose
      features depend on both.

    Args:
        factory: Yours.
        forms: Rows that it takes: ``"compact"``, ``"packed"`` or both.
        skeletons: What rows are made of; seven tiny crystals by default.
        tolerance: Largest difference between features that should be the same, relative to the
            largest of them.

    Raises:
        BrokenPromise: The first that is found.
        ImportError: If torch or d3rlpy is not installed.
        ValueError: If a form is unknown.

    Example:
        >>> from crystal_gym.agents import MEGNetEncoderFactory
        >>> from crystal_gym.testing import check_encoder_factory
        >>> check_encoder_factory(MEGNetEncoderFactory())
    """
    _require_torch()
    if not forms or set(forms) - set(_FORMS):
        raise ValueError(f"forms={forms!r}: expected some of {', '.join(_FORMS)}")
    if skeletons is None:
        from crystal_gym.sets import load_skeletons
        from crystal_gym.testing.crystals import tiny_crystals

        skeletons = load_skeletons(list(tiny_crystals().values()))
    check = _EncoderCheck(factory, tolerance)
    check.settings()
    numbered = _renumbered(skeletons)
    outputs = {}
    for form in forms:
        states = _States.drawn(skeletons, form)
        encoder = check.created(states)
        check.batches(encoder, states)
        check.sees(encoder, states)
        check.numbering(encoder, states, numbered)
        check.weights(encoder, states)
        for discrete in (True, False):
            check.with_action(states, discrete)
        outputs[form] = (encoder, states)
    if len(forms) > 1:
        check.agreement(outputs)


def _require_torch() -> None:
    try:
        import d3rlpy  # noqa: F401
        import torch  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "encoders need torch and d3rlpy, which are not installed: "
            "pip install 'crystal-gym[agents]'"
        ) from error


class _States:
    """Random states of a skeleton set, as rows of one form.

    Args:
        skeletons: The set that ``number`` refers to.
        form: Of the rows: ``"compact"`` or ``"packed"``.
        number: Skeleton of every row, ``(B,)``.
        tokens: ``(B, max_sites)``, 0 in the site in focus.
        focus: Site to fill next, ``(B,)``.
        target: eV, ``(B,)``.
    """

    def __init__(
        self,
        skeletons: SkeletonSet,
        form: str,
        number: NDArray[np.int64],
        tokens: NDArray[np.int64],
        focus: NDArray[np.int64],
        target: NDArray[np.float64],
    ) -> None:
        self.skeletons, self.form = skeletons, form
        self.number, self.tokens, self.focus, self.target = number, tokens, focus, target

    @classmethod
    def drawn(cls, skeletons: SkeletonSet, form: str) -> _States:
        generator = np.random.default_rng(0)
        # The largest first: what is asked of a focus or of elements needs some sites.
        by_size = np.argsort(-skeletons.n_sites, kind="stable")
        number = by_size[np.arange(_N_ROWS) % len(skeletons)]
        n_sites = skeletons.n_sites[number]
        tokens = generator.integers(0, N_ELEMENTS + 1, (_N_ROWS, skeletons.max_sites))
        tokens[np.arange(skeletons.max_sites) >= n_sites[:, None]] = 0
        focus = generator.integers(0, n_sites)
        tokens[np.arange(_N_ROWS), focus] = 0
        return cls(skeletons, form, number, tokens, focus, generator.uniform(0.5, 5, _N_ROWS))

    def changed(self, **values: Any) -> _States:
        return _States(**{**vars(self), **values})

    @property
    def width(self) -> int:
        return self.rows().shape[1]

    def rows(self) -> Rows:
        if self.form == "compact":
            return compact_rows(self.skeletons, self.number, self.tokens, self.focus, self.target)
        form = make_form("packed", self.skeletons, conditional=True)
        rows = []
        for number, tokens, focus, target in zip(
            self.number.tolist(), self.tokens, self.focus.tolist(), self.target, strict=True
        ):
            skeleton = self.skeletons[number]
            filled = tokens[: skeleton.n_sites].astype(np.int16)
            rows.append(form.encode(form.prepare(skeleton), filled, focus, float(target)))
        return np.stack(rows)


def _renumbered(skeletons: SkeletonSet) -> tuple[SkeletonSet, list[NDArray[np.int64]]]:
    """Return the skeletons with their sites in another order, and which site is which now."""
    from dataclasses import replace

    from crystal_gym.skeletons import SkeletonSet

    generator = np.random.default_rng(1)
    cells, geometries, orders = [], [], []
    for skeleton in skeletons:
        order = generator.permutation(skeleton.n_sites)
        new_number = np.argsort(order)
        cell, geometry = _parts(skeleton)
        edges = new_number[skeleton.edge_index]
        sort = np.lexsort((edges[1], edges[0]))
        cells.append(
            replace(
                cell,
                key=f"renumbered {skeleton.key}",
                frac_coords=skeleton.frac_coords[order],
                source_rank=skeleton.source_rank[order],
                reference=skeleton.reference[order],
            )
        )
        geometries.append(
            replace(
                geometry,
                edge_index=edges[:, sort].astype(np.int16),
                edge_image=skeleton.edge_image[sort],
                edge_length=skeleton.edge_length[sort],
                permutations=new_number[skeleton.permutations[:, order]].astype(np.int16),
            )
        )
        orders.append(order)
    return SkeletonSet.from_cells(cells, geometries), orders


def _parts(skeleton: Any) -> tuple[Any, Any]:
    from crystal_gym.graphs import Geometry
    from crystal_gym.skeletons import Cell

    cell = Cell(
        skeleton.name,
        skeleton.key,
        skeleton.lattice,
        skeleton.frac_coords,
        skeleton.source_rank,
        skeleton.reference,
    )
    geometry = Geometry(
        skeleton.edge_index,
        skeleton.edge_image,
        skeleton.edge_length,
        skeleton.permutations,
        skeleton.space_group_number,
    )
    return cell, geometry


class _EncoderCheck(Promises):
    def __init__(self, factory: Any, tolerance: float) -> None:
        super().__init__(f"encoder factory {shortened(factory, 80)}")
        self.factory, self.tolerance = factory, tolerance

    def settings(self) -> None:
        """Check the factory itself."""
        from d3rlpy.algos import DiscreteBCConfig
        from d3rlpy.models import EncoderFactory

        self.require(
            isinstance(self.factory, EncoderFactory),
            "it is a d3rlpy.models.EncoderFactory, not its class",
            type(self.factory).__name__,
            "Derive a dataclass from EncoderFactory and pass an object of it",
        )
        name = self.call(
            self.factory.get_type,
            promise="get_type() returns the name under which d3rlpy stores it",
            advice="Write a static method get_type() that returns a string of your own",
        )

        def stored_and_read() -> Any:
            config = DiscreteBCConfig(encoder_factory=self.factory)
            return DiscreteBCConfig.deserialize(config.serialize()).encoder_factory

        again = self.call(
            stored_and_read,
            promise="it is registered, so that saved algorithms can be read",
            advice=f"Call d3rlpy.models.register_encoder_factory({type(self.factory).__name__}), "
            "and keep its fields of types that JSON knows",
        )
        self.require(
            again == self.factory,
            "it comes back from JSON as it was",
            f"{again!r} under the name {name!r}",
            "Make it a dataclass, and let fields hold all that create() uses",
        )

    def created(self, states: _States) -> Any:
        """Return a network after a look at what it makes of rows."""
        import torch
        from d3rlpy.models.torch.encoders import compute_output_size

        torch.manual_seed(0)
        encoder = self.call(
            self.factory.create,
            (states.width,),
            promise="create((width,)) makes a network",
            advice="observation_shape is a tuple with the number of columns of a row",
        )
        self.require(
            isinstance(encoder, torch.nn.Module),
            "create((width,)) makes a torch module",
            type(encoder).__name__,
            "Derive it from d3rlpy.models.torch.Encoder",
        )
        features = self.features(encoder, states.rows())
        size = self.call(
            compute_output_size,
            [(states.width,)],
            encoder,
            promise="it takes the uniform noise with which d3rlpy probes the width of its output",
            advice="Let rows that stand for no state pass, such as by crystal_gym.agents."
            "rows_to_batch",
        )
        self.require(
            size == features.shape[1],
            "the number of features is the same for every input",
            f"{size} for noise, {features.shape[1]} for rows",
            "Pool over the sites instead of laying them side by side",
        )
        zeros = states.rows()
        zeros[::3] = 0.0
        ended = self.features(encoder, zeros, " with rows of zeros, which stand behind the end")
        ended.sum().backward()
        gradients = {n: p.grad for n, p in encoder.named_parameters() if p.grad is not None}
        self.require(
            bool(gradients),
            "features have gradients with respect to the weights",
            "no gradient at all",
            "Leave out detach() and no_grad() in forward()",
        )
        bad = [name for name, g in gradients.items() if not bool(g.isfinite().all())]
        self.require(
            not bad,
            "gradients are finite, with rows of zeros in the batch too",
            f"NaN or infinity in {', '.join(bad)}",
            "Look for 0/0 in means over no sites, and for square roots at 0",
        )
        return encoder.eval()

    def features(self, encoder: Callable[..., Any], rows: Rows, about: str = "", *more: Any) -> Any:
        """Return the checked features of rows."""
        import torch

        given = torch.from_numpy(rows.copy())
        found = self.call(
            encoder,
            given,
            *more,
            promise=f"forward takes rows (B, width){about}",
            advice="crystal_gym.agents.rows_to_batch makes graphs of rows of both forms",
        )
        self.require(
            torch.is_tensor(found)
            and found.ndim == 2
            and len(found) == len(rows)
            and found.dtype == torch.float32,
            f"features are float32 (B, n_features){about}",
            f"{found.dtype} {tuple(found.shape)} for {len(rows)} rows"
            if torch.is_tensor(found)
            else type(found).__name__,
            "Pool the sites of each crystal to one row of features",
        )
        self.require(
            bool(found.isfinite().all()),
            f"features are finite{about}",
            f"{int((~found.isfinite()).sum())} of {found.numel()} are not",
            "Look for 0/0 in means over no sites, and for logarithms of 0",
        )
        self.require(
            bool((given == torch.from_numpy(rows)).all()),
            "rows are left as they were given",
            "another observation after forward()",
            "Work on a clone",
        )
        return found

    def same(self, one: Tensor, other: Tensor, promise: str, advice: str) -> None:
        """Require that features agree."""
        apart = float((one - other).detach().abs().max())
        allowed = self.tolerance * max(1.0, float(one.detach().abs().max()))
        self.require(apart <= allowed, promise, f"features {apart:.2g} apart", advice)

    def batches(self, encoder: Any, states: _States) -> None:
        """Check batches and repetitions."""
        import torch

        rows = states.rows()
        many = self.features(encoder, rows)
        self.same(
            many,
            self.features(encoder, rows),
            "in evaluation it gives the same features every time",
            "Let dropout and noise follow self.training",
        )
        singles = [self.features(encoder, rows[i : i + 1]) for i in range(len(rows))]
        self.same(
            many,
            torch.cat(singles),
            "a row has the same features alone and among others",
            "Look for padding that is not masked, and for normalisation over the batch",
        )

    def sees(self, encoder: Any, states: _States) -> None:
        """Check that what a policy needs to know reaches the features."""
        whole = self.features(encoder, states.rows())
        # The first row is of the largest skeleton.
        n_sites = int(states.skeletons.n_sites[states.number[0]])
        others = {
            "the target": states.changed(target=states.target + 1.5),
            "the elements": states.changed(tokens=_other_elements(states)),
        }
        if n_sites > 1:
            others["the site in focus"] = states.changed(focus=_other_focus(states))
        for name, changed in others.items():
            other = self.features(encoder, changed.rows())
            self.require(
                _differ(whole[0], other[0]),
                f"features depend on {name}",
                "the same features after it was changed",
                f"Columns {', '.join(_header(states.form))}, then the tokens: read all that counts",
            )

    def numbering(
        self,
        encoder: Any,
        states: _States,
        numbered: tuple[SkeletonSet, list[NDArray[np.int64]]],
    ) -> None:
        """Check that features do not depend on how sites are numbered."""
        skeletons, orders = numbered
        tokens, focus = states.tokens.copy(), states.focus.copy()
        for row, number in enumerate(states.number.tolist()):
            order = orders[number]
            tokens[row, : len(order)] = states.tokens[row, order]
            focus[row] = np.argsort(order)[states.focus[row]]
        other = states.changed(skeletons=skeletons, tokens=tokens, focus=focus)
        self.same(
            self.features(encoder, states.rows()),
            self.features(encoder, other.rows()),
            "features do not depend on how the sites are numbered",
            "Use sums, means or attention over sites, and nothing that knows a site's number",
        )

    def weights(self, encoder: Any, states: _States) -> None:
        """Check that weights are all that a network knows."""
        import torch

        torch.manual_seed(1)
        other = self.factory.create((states.width,)).eval()
        self.call(
            other.load_state_dict,
            encoder.state_dict(),
            promise="a network of the factory takes the state_dict of another",
            advice="Build the same layers every time, from the factory's fields alone",
        )
        self.same(
            self.features(encoder, states.rows()),
            self.features(other, states.rows()),
            "with the same state_dict it gives the same features",
            "Register what is drawn or learned as parameters or buffers",
        )

    def with_action(self, states: _States, discrete: bool) -> None:
        """Check networks of rows and actions."""
        import torch

        kind = "discrete" if discrete else "continuous"
        torch.manual_seed(0)
        encoder = self.call(
            self.factory.create_with_action,
            (states.width,),
            _ACTION_SIZE,
            discrete,
            promise="create_with_action((width,), action_size, discrete_action) makes a network "
            f"of {kind} actions",
            advice="Write it as create(), with one more layer that joins the action",
        ).eval()
        rows, n = states.rows(), _N_ROWS
        actions = (
            (torch.arange(n) % _ACTION_SIZE)[:, None]
            if discrete
            else torch.linspace(-1, 1, n * _ACTION_SIZE).view(n, _ACTION_SIZE)
        )
        about = f" and {kind} actions {tuple(actions.shape)}"
        found = self.features(encoder, rows, about, actions)
        other = self.features(encoder, rows, about, actions.flip(0))
        self.require(
            _differ(found, other),
            f"features depend on {kind} actions",
            "the same features for other actions",
            "Join the action (one-hot where it is discrete) to the features of the row",
        )
        elsewhere = self.features(encoder, rows[::-1].copy(), about, actions)
        self.require(
            _differ(found, elsewhere),
            f"features depend on the row beside {kind} actions",
            "the same features for other rows",
            "Join the features of the row to the action",
        )

    def agreement(self, outputs: dict[str, tuple[Any, _States]]) -> None:
        """Check that both forms of a state have the same features."""
        (first, compact), (second, packed) = outputs["compact"], outputs["packed"]
        self.call(
            second.load_state_dict,
            first.state_dict(),
            promise="the weights do not depend on the width of a row",
            advice="Pool over the sites instead of laying them side by side",
        )
        self.same(
            self.features(first, compact.rows()),
            self.features(second, packed.rows()),
            "compact and packed rows of a state have the same features",
            "Read both through crystal_gym.agents.rows_to_batch, or pass forms=('compact',)",
        )


def _differ(one: Tensor, other: Tensor) -> bool:
    """Return whether features differ by more than rounding."""
    apart = float((one - other).detach().abs().max())
    return apart > _ROUNDING * max(1.0, float(one.detach().abs().max()))


def _header(form: str) -> tuple[str, ...]:
    return COMPACT_HEADER if form == "compact" else PACKED_HEADER


def _other_elements(states: _States) -> NDArray[np.int64]:
    """Return tokens with other elements on every site but the one in focus."""
    inside = np.arange(states.tokens.shape[1]) < states.skeletons.n_sites[states.number][:, None]
    changed = states.tokens % N_ELEMENTS + 1
    changed[~inside] = 0
    changed[np.arange(len(changed)), states.focus] = 0
    return changed


def _other_focus(states: _States) -> NDArray[np.int64]:
    """Return another site of each row."""
    moved: NDArray[np.int64] = (states.focus + 1) % states.skeletons.n_sites[states.number]
    return moved
