"""The periodic table as HTML, elements shaded by how often they are used."""

from __future__ import annotations

import html
from collections.abc import Mapping

__all__ = ["periodic_table"]


def periodic_table(counts: Mapping[str, int], caption: str) -> str:
    """Return a table of the elements with their counts.

    Args:
        counts: By symbol.
        caption: What is counted, plain text.

    Returns:
        HTML; elements are shaded by the root of their share of the largest count.
    """
    from pymatgen.core import Element

    most = max(counts.values(), default=0) or 1
    cells = []
    for element in Element:
        if element.Z > 103 or element.symbol in ("D", "T"):
            continue
        n = counts.get(element.symbol, 0)
        row, column = element.row, element.group
        if element.is_lanthanoid or element.is_actinoid:
            row, column = (8, 9)[element.is_actinoid], 3 + element.Z - (57, 89)[element.is_actinoid]
        share = round(100 * (n / most) ** 0.5)  # the root: rare elements should be seen too
        shade = f"color-mix(in srgb, var(--accent) {share * 0.45:.0f}%, var(--shade))"
        style = f"grid-row:{row};grid-column:{column}" + (f";background:{shade}" if n else "")
        words = f"{element.long_name}: {n}"
        cells.append(
            f'<div role="listitem" style="{style}" title="{words}" aria-label="{words}">'
            f"{element.symbol}<small>{n or ''}</small></div>"
        )
    label = html.escape(caption)
    return (
        f'<figure><div class="scroll" tabindex="0" role="region" aria-label="{label}">'
        f'<div class="periodic" role="list">{"".join(cells)}</div></div>'
        f"<figcaption>{label}</figcaption></figure>"
    )
