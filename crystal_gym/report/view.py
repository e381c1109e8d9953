"""One crystal in 3D, in a notebook or as a page: the viewer of the reports by itself."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crystal_gym.files import atomic_path
from crystal_gym.report import page
from crystal_gym.report.crystals import scene
from crystal_gym.structures import EMPTY_SYMBOLS, site_symbols, to_structure

if TYPE_CHECKING:
    from pymatgen.core import Structure

__all__ = ["CrystalView", "show_crystal"]


class CrystalView:
    """A crystal to turn and zoom; a notebook shows it where it is the last line of a cell.

    It holds the whole page, 2 MB with plotly's library, and needs no network.

    Args:
        title: Plain text.
        text: HTML of the page.
    """

    def __init__(self, title: str, text: str) -> None:
        self.title = title
        self._text = text

    def __repr__(self) -> str:
        return f"CrystalView({self.title}: write('crystal.html') makes a page of it)"

    def _repr_html_(self) -> str:
        return (
            f'<iframe title="{html.escape(self.title)}" srcdoc="{html.escape(self._text)}" '
            'style="width: 100%; height: 620px; border: 0"></iframe>'
        )

    def write(self, path: Path | str) -> None:
        """Write the page to an HTML file."""
        with atomic_path(Path(path)) as temporary:
            temporary.write_text(self._text, encoding="utf-8")


def show_crystal(crystal: Any, title: str | None = None) -> CrystalView:
    """Show a crystal in 3D; empty sites are grey balls.

    Args:
        crystal: A pymatgen Structure, ASE Atoms, or a ``CrystalFill-v0`` environment after
            ``reset()``, wrapped or not, whose crystal so far is shown.
        title: Shown above; the formula by default.

    Returns:
        A notebook shows it; ``write()`` makes a page of it.

    Raises:
        TypeError: If it is none of these.

    Example:
        >>> import gymnasium as gym, crystal_gym
        >>> from crystal_gym.report import show_crystal
        >>> env = gym.make("CrystalFill-v0", target_gap=3.0)
        >>> _ = env.reset(seed=0, options={"skeleton": "MgO-rocksalt"})
        >>> show_crystal(env, "an empty cell")
        CrystalView(an empty cell: write('crystal.html') makes a page of it)
    """
    made = getattr(getattr(crystal, "unwrapped", crystal), "structure", None)
    structure = made() if callable(made) else to_structure(crystal)
    symbols = [None if s in EMPTY_SYMBOLS else s for s in site_symbols(structure)]
    title = title or _formula(structure, symbols)
    drawn = scene(structure.lattice.matrix, structure.frac_coords, symbols, title)
    hint = "<p>Drag to turn, scroll or pinch to zoom.</p>"
    return CrystalView(title, page.page_text(title, hint, [page.crystal_viewer([[drawn]])]))


def _formula(structure: Structure, symbols: Sequence[str | None]) -> str:
    if None not in symbols:
        formula: str = structure.composition.reduced_formula
        return formula
    counts = Counter(symbol or "□" for symbol in symbols)
    return "".join(f"{symbol}{n if n > 1 else ''}" for symbol, n in sorted(counts.items()))
