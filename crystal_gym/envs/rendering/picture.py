"""The crystal so far as a picture of fixed size, drawn by matplotlib without a display.

Elements carry their symbols and empty sites a dashed outline, and the site in focus is marked by a
ring and a question mark, so no colour has to be told from another.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from io import BytesIO
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from crystal_gym.elements import reduced_formula, tokens_to_symbols
from crystal_gym.envs.rendering.text import (
    Outcome,
    cell_line,
    news_line,
    progress_words,
    target_words,
)
from crystal_gym.envs.state import State
from crystal_gym.scenes import GHOST_COLOR, Scene, element_color, element_radius, lay_out
from crystal_gym.skeletons import Skeleton

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.path import Path

__all__ = ["HEIGHT", "WIDTH", "paint", "render_png", "render_rgb", "standard_turn", "turned_by"]

Float = NDArray[np.float64]

WIDTH, HEIGHT = 640, 480
"""Pixels; even numbers, as encoders of films ask for."""

_CRYSTAL = (16.0, 100.0, 624.0, 412.0)
"""Left, bottom, right and top of the space for the crystal, in pixels from the lower left."""

_SITES = (16.0, 10.0, 624.0, 60.0)
"""The same of the row of sites."""

_COMPASS = (594.0, 92.0)
"""Place of the arrows that show the directions of a, b and c."""

_MARGIN_ANG = 0.9
"""Kept free around the cell for balls on its border, whatever their element."""

_MAX_SCALE = 60.0
"""Pixels per Å, so that a cell of two sites does not fill the picture with two balls."""

_INK, _FAINT, _FOCUS = "#1a1a1a", "#6b6b6b", "#d55e00"
_GHOST = "#ffffffc0"
"""Of an empty site; what is behind it shines through."""

_DASHES = (0.0, (2.5, 2.0))
_BOND_WIDTH_ANG = 0.16
_CLEAR_ANG = 1.8
"""Balls whose centres are so far apart in the picture do not hide each other."""

_MOST_JUDGED = 120
"""Balls by which a view is chosen; of more, every so many-th."""

_CELL_PIECES = 12
"""An edge of the cell is drawn in this many pieces, so that a ball hides only what is behind it."""

_AXES = [2, 1, 0]
"""Places in ``Scene.cell`` of the edges a, b and c that start at its origin."""

_SMALLEST_LABEL = 6.0
"""Pixels of a ball's radius; on smaller ones no symbol could be read."""


def render_rgb(state: State, outcome: Outcome | None = None) -> NDArray[np.uint8]:
    """Return the picture as an array.

    Args:
        state: What is shown.
        outcome: Of a crystal that is finished; None where it is not known.

    Returns:
        uint8 ``(480, 640, 3)``: rows from the top, red, green and blue.
    """
    canvas = _painted(state, outcome)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[:, :, :3].copy()


def render_png(state: State, outcome: Outcome | None = None) -> bytes:
    """Return the picture as a PNG file, twice as fine as :func:`render_rgb`'s.

    Args:
        state: What is shown.
        outcome: Of a crystal that is finished; None where it is not known.

    Returns:
        What the file holds, 1280 by 960 pixels.
    """
    file = BytesIO()
    _painted(state, outcome).print_figure(file, format="png", dpi=200)
    return file.getvalue()


def _painted(state: State, outcome: Outcome | None) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    canvas = FigureCanvasAgg(Figure(figsize=(WIDTH / 100, HEIGHT / 100), dpi=100))
    paint(canvas.figure, state, outcome)
    return canvas


def paint(
    figure: Figure, state: State, outcome: Outcome | None = None, turn: Float | None = None
) -> None:
    """Draw a state into a figure, in place of what was there.

    Args:
        figure: Of any size; the picture keeps its proportions.
        state: What is shown.
        outcome: Of a crystal that is finished.
        turn: Rotation whose rows are the directions to the right, up and towards the eye,
            ``(3, 3)``; :func:`standard_turn` by default.
    """
    figure.clear()
    axes: Axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, WIDTH), ylim=(0, HEIGHT), aspect="equal")
    axes.set_axis_off()
    scene = _scene(state.skeleton)
    turn = standard_turn(state.skeleton) if turn is None else turn
    points = 72 * figure.get_figwidth() / WIDTH  # of a pixel of the picture
    crystal = _crystal(scene, turn, state)
    _draw(axes, points, [*crystal, *_compass(scene, turn), *_row_of_sites(state)])
    _write(axes, points, state, outcome)


# -- shapes ----------------------------------------------------------------------------------------


class _Shape(NamedTuple):
    path: Path
    face: str = "none"
    edge: str = "none"
    width: float = 0.0
    """Pixels."""
    dashes: Any = "solid"


def _draw(axes: Axes, points: float, shapes: Sequence[_Shape]) -> None:
    """Draw all shapes in order as one artist, which is many times faster than one each."""
    from matplotlib.collections import PathCollection

    paths, faces, edges, widths, dashes = zip(*shapes, strict=True)
    collection = PathCollection(
        list(paths),
        facecolors=list(faces),
        edgecolors=list(edges),
        linewidths=[points * w for w in widths],
        linestyles=list(dashes),
        transform=axes.transData,
    )
    axes.add_collection(collection, autolim=False)


def _circle(x: float, y: float, radius: float) -> Path:
    from matplotlib.path import Path

    unit = Path.unit_circle()
    return Path(np.asarray(unit.vertices) * radius + (x, y), unit.codes)


def _polygon(points: Any) -> Path:
    from matplotlib.path import Path

    return Path([*points, points[0]], closed=True)


def _line(first: Any, second: Any) -> Path:
    from matplotlib.path import Path

    return Path([first, second])


@lru_cache(maxsize=256)
def _glyphs(text: str) -> tuple[Float, Any]:
    """Return the outline of a text of height 1, its middle at the origin."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextPath

    path = TextPath((0, 0), text, size=10, prop=FontProperties(weight="bold"))
    cap = TextPath((0, 0), "H", size=10, prop=FontProperties(weight="bold")).vertices[:, 1].max()
    middle = [(path.vertices[:, 0].min() + path.vertices[:, 0].max()) / 2, cap / 2]
    return (path.vertices - middle) / cap, path.codes


def _label(text: str, x: float, y: float, height: float, color: str) -> _Shape:
    from matplotlib.path import Path

    vertices, codes = _glyphs(text)
    return _Shape(Path(vertices * height + (x, y), codes), color)


def _ink_on(color: str) -> str:
    """Return black or white, whichever is easier to read on a colour."""
    red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return _INK if 0.299 * red + 0.587 * green + 0.114 * blue > 120 else "#ffffff"


def _mixed(color: str, other: str, share: float) -> str:
    pairs = [(int(color[i : i + 2], 16), int(other[i : i + 2], 16)) for i in (1, 3, 5)]
    return "#" + bytes(round(a + share * (b - a)) for a, b in pairs).hex()


# -- the crystal -----------------------------------------------------------------------------------


@lru_cache(maxsize=64)
def _scene(skeleton: Skeleton) -> Scene:
    edges = (skeleton.edge_index, skeleton.edge_image)
    return lay_out(skeleton.lattice, skeleton.frac_coords, edges)


@lru_cache(maxsize=64)
def standard_turn(skeleton: Skeleton) -> Float:
    """Return the direction of view of a skeleton: large in the picture, few balls behind others.

    Args:
        skeleton: Its elements play no part, so that the view stays the same in an episode.

    Returns:
        As ``turn`` of :func:`paint`.
    """
    scene = _scene(skeleton)
    best, most = np.eye(3), -np.inf
    for axis in skeleton.lattice:
        for azimuth in np.radians(np.arange(4, 360, 16)):
            for height in np.radians((8, 16, 25)):
                for upright in (True, False):
                    turn = _turned(axis, azimuth, height, upright)
                    worth = _worth(scene, turn)
                    if worth > most:
                        best, most = turn, worth
    return best


def turned_by(turn: Float, right: float, up: float) -> Float:
    """Return a view after the crystal was turned, as by a hand that drags its near side.

    Args:
        turn: The view before, ``(3, 3)``; rows point to the right, up and towards the eye.
        right: Radians.
        up: Radians.

    Returns:
        A rotation, ``(3, 3)``, its rows as those of ``turn``.
    """
    about_up = [[math.cos(right), 0, math.sin(right)], [0, 1, 0],
                [-math.sin(right), 0, math.cos(right)]]  # fmt: skip
    about_right = [[1, 0, 0], [0, math.cos(up), math.sin(up)],
                   [0, -math.sin(up), math.cos(up)]]  # fmt: skip
    after: Float = np.array(about_right) @ np.array(about_up) @ turn
    return after


def _turned(axis: Float, azimuth: float, height: float, upright: bool) -> Float:
    """Return a view that shows an axis upright, or to the right, from beside it and above."""
    up = axis / np.linalg.norm(axis)
    helper = np.eye(3)[np.abs(up).argmin()]
    side = np.cross(up, helper)
    side /= np.linalg.norm(side)
    across = np.cos(azimuth) * side + np.sin(azimuth) * np.cross(up, side)
    eye = np.cos(height) * across + np.sin(height) * up
    right = np.cross(up, eye)
    right /= np.linalg.norm(right)
    turn = np.array([right, np.cross(eye, right), eye])
    return turn if upright else np.array([turn[1], -turn[0], turn[2]])


def _fit(scene: Scene, turn: Float) -> tuple[float, Float]:
    """Return pixels per Å, and the place of the origin in pixels."""
    corners = np.concatenate([scene.cell.reshape(-1, 3), scene.points]) @ turn[:2].T
    low, high = corners.min(0) - _MARGIN_ANG, corners.max(0) + _MARGIN_ANG
    left, bottom, right, top = _CRYSTAL
    scale = min(_MAX_SCALE, *(np.array([right - left, top - bottom]) / (high - low)).tolist())
    return scale, np.array([left + right, bottom + top]) / 2 - scale * (low + high) / 2


def _worth(scene: Scene, turn: Float) -> float:
    """Return how good a view is, by its scale and how much of the balls is seen."""
    flat = scene.points[:: 1 + len(scene.points) // _MOST_JUDGED] @ turn[:2].T
    apart = np.linalg.norm(flat[:, None] - flat[None], axis=-1)
    np.fill_diagonal(apart, np.inf)
    seen = np.minimum(1.0, apart.min(1) / _CLEAR_ANG)
    return math.sqrt(_fit(scene, turn)[0]) * float(seen.mean())


class _View(NamedTuple):
    """A scene as it is looked at; every array has a row for each ball."""

    scale: float
    """Pixels per Å."""
    origin: Float
    """Place of the origin in pixels, ``(2,)``."""
    places: Float
    """Å to the right, up and towards the eye, ``(n_balls, 3)``."""
    radii: Float
    """Å."""
    symbols: list[str | None]
    colors: list[str]

    def flat(self, place: Float) -> Float:
        """Return pixels of a place."""
        pixels: Float = self.scale * place[:2] + self.origin
        return pixels

    def faded(self, color: str, depth: float) -> str:
        """Return the colour of what is at a depth: paler far from the eye."""
        near, far = float(self.places[:, 2].max()), float(self.places[:, 2].min())
        share = (near - depth) / (near - far + 1.0)
        return _mixed(color, "#ffffff", 0.45 * min(1.0, max(0.0, share)))


_Deep = tuple[float, list[_Shape]]
"""How near the eye shapes are (Å), and the shapes."""


def _crystal(scene: Scene, turn: Float, state: State) -> list[_Shape]:
    """Return the cell, the sticks and the balls, what is near in front of what is far."""
    of_sites = tokens_to_symbols(state.tokens.tolist())
    symbols = [of_sites[site] for site in scene.site]
    radii = np.array([element_radius(symbol) for symbol in symbols])
    colors = [element_color(symbol) for symbol in symbols]
    view = _View(*_fit(scene, turn), scene.points @ turn.T, radii, symbols, colors)
    drawn = [*_cell(scene.cell @ turn.T, view), *_sticks(scene.bonds, view), *_balls(view)]
    drawn.sort(key=lambda item: item[0])
    in_focus = np.flatnonzero(scene.site == state.focus).tolist()
    return [shape for _, group in drawn for shape in group] + _focus_marks(in_focus, view)


def _cell(cell: Float, view: _View) -> Iterator[_Deep]:
    """Yield pieces of the edges of the cell, without those inside of a ball."""
    share = np.linspace(0, 1, _CELL_PIECES + 1)[:, None]
    ends = cell[:, None, 0] + share * (cell[:, None, 1] - cell[:, None, 0])
    pieces = np.stack([ends[:, :-1], ends[:, 1:]], 2).reshape(-1, 2, 3)
    away = np.linalg.norm(pieces.mean(1)[:, None] - view.places, axis=2)
    for first, second in pieces[(away > view.radii).all(1)]:
        depth = float(first[2] + second[2]) / 2
        path = _line(view.flat(first), view.flat(second))
        yield depth, [_Shape(path, edge=view.faded(_FAINT, depth), width=1.2)]


def _sticks(bonds: NDArray[np.int64], view: _View) -> Iterator[_Deep]:
    """Yield a half of a stick for each end of each bond, from a ball's surface to the middle."""
    for ends in bonds.tolist():
        middle = view.places[ends].mean(0)
        for ball in ends:
            out = middle - view.places[ball]
            share = min(1.0, 0.9 * view.radii[ball] / (np.linalg.norm(out) + 1e-9))
            start = view.places[ball] + share * out
            depth, color = float(start[2] + middle[2]) / 2, view.colors[ball]
            path = _stick(view.flat(start), view.flat(middle), view.scale * _BOND_WIDTH_ANG)
            edge = view.faded(_mixed(color, "#000000", 0.35), depth)
            yield depth, [_Shape(path, view.faded(color, depth), edge, 0.6)]


def _balls(view: _View) -> Iterator[_Deep]:
    """Yield balls with their symbols, and ghosts where a site is empty."""
    for place, radius_ang, symbol, base in zip(
        view.places, view.radii, view.symbols, view.colors, strict=True
    ):
        (x, y), depth, radius = view.flat(place).tolist(), float(place[2]), view.scale * radius_ang
        if symbol is None:
            yield depth, [_Shape(_circle(x, y, radius), _GHOST, _FAINT, 1.2, _DASHES)]
            continue
        color = view.faded(base, depth)
        gleam = _circle(x - 0.34 * radius, y + 0.36 * radius, 0.26 * radius)
        shapes = [
            _Shape(_circle(x, y, radius), color, _mixed(color, "#000000", 0.55), 1.0),
            _Shape(gleam, _mixed(color, "#ffffff", 0.55)),
        ]
        if radius >= _SMALLEST_LABEL:
            shapes.append(_label(symbol, x, y, min(13.0, 0.85 * radius), _ink_on(color)))
        yield depth, shapes


def _focus_marks(balls: Sequence[int], view: _View) -> list[_Shape]:
    """Return rings and question marks, to be drawn in front of everything."""
    shapes = []
    for ball in balls:
        (x, y), radius = view.flat(view.places[ball]).tolist(), view.scale * view.radii[ball]
        shapes.append(_Shape(_circle(x, y, radius + 0.5), edge=_FOCUS, width=3.0))
        shapes.append(_label("?", x, y, max(7.0, min(13.0, 0.85 * radius)), _FOCUS))
    return shapes


def _compass(scene: Scene, turn: Float) -> list[_Shape]:
    """Return arrows, with letters, along a, b and c."""
    shapes = []
    for name, (start, end) in zip("abc", scene.cell[_AXES], strict=True):
        x, y, z = turn @ (end - start) / np.linalg.norm(end - start)
        tip = np.array(_COMPASS) + 17.0 * np.array([x, y])
        shapes.append((z, _Shape(_line(_COMPASS, tip), edge=_FAINT, width=1.5)))
        letter = _label(name, _COMPASS[0] + 25.0 * x, _COMPASS[1] + 25.0 * y, 8.0, _INK)
        shapes.append((z, letter))
    return [shape for _, shape in sorted(shapes, key=lambda item: item[0])]


def _stick(first: Float, second: Float, width: float) -> Path:
    along = second - first
    across = np.array([-along[1], along[0]]) / (np.linalg.norm(along) + 1e-9) * width / 2
    return _polygon([first - across, first + across, second + across, second - across])


# -- what is around it -----------------------------------------------------------------------------


def _row_of_sites(state: State) -> list[_Shape]:
    """Return the sites in the order of filling as boxes: what was chosen, and what comes."""
    left, bottom, right, top = _SITES
    n_sites = len(state.traversal)
    rows = next((r for r in (1, 2) if n_sites * 20 <= r * (right - left)), 3)
    columns = -(-n_sites // rows)
    width, height = min(38.0, (right - left) / columns), min(34.0, (top - bottom) / rows)
    symbols = tokens_to_symbols(state.tokens.tolist())
    shapes: list[_Shape] = []
    focus: list[_Shape] = []
    for step, site in enumerate(state.traversal):
        x = left + width * (step % columns)
        y = top - height * (step // columns + 1)
        symbol, here = symbols[site], site == state.focus
        box = _polygon(
            [(x + 1, y + 1), (x + width - 1, y + 1), (x + width - 1, y + height - 1),
             (x + 1, y + height - 1)]
        )  # fmt: skip
        color = "#ffffff" if symbol is None else element_color(symbol)
        some = focus if here else shapes
        some.append(
            _Shape(
                box,
                color,
                _FOCUS if here else (GHOST_COLOR if symbol is None else _FAINT),
                3.0 if here else 1.0,
                _DASHES if symbol is None and not here else "solid",
            )
        )
        text = "?" if here else symbol
        tall = min(12.0, 0.32 * width + 1.5, 0.55 * height)
        if text and tall >= 4.5:
            ink = _FOCUS if here else _ink_on(color)
            some.append(_label(text, x + width / 2, y + height / 2, tall, ink))
    return shapes + focus


_SUBSCRIPTS = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")


def _write(axes: Axes, points: float, state: State, outcome: Outcome | None) -> None:
    def write(x: float, y: float, text: str, size: float, color: str, side: str) -> None:
        axes.text(x, y, text, fontsize=points * size, color=color, ha=side, va="baseline")

    skeleton = state.skeleton
    formula = reduced_formula(state.tokens).translate(_SUBSCRIPTS)
    write(16, 446, formula, min(26.0, 520 / len(formula)), _INK, "left")
    write(624, 452, target_words(state), 15, _INK, "right")
    write(624, 434, progress_words(state), 13, _FAINT, "right")
    write(16, 426, _short(f"{skeleton.name}   {cell_line(skeleton)}", 92), 11, _FAINT, "left")
    write(16, 72, _short(news_line(state, outcome), 80), 14, _INK, "left")


def _short(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
