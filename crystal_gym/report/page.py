"""One self-contained HTML page: sections, tables, figures, a viewer of crystals.

Tables and the periodic table are plain HTML: they need no script, and a screen reader reads them.
Figures are plotly's; its library is packed into the page (1.5 MB instead of 4.8) and unpacked by
the browser.
"""

from __future__ import annotations

import base64
import gzip
import html
import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from crystal_gym.extras import require_extra
from crystal_gym.files import atomic_path

__all__ = [
    "crystal_viewer",
    "figure",
    "page_text",
    "paragraph",
    "record",
    "section",
    "table",
    "write_page",
]

_HERE = Path(__file__).parent


def write_page(path: Path | str, title: str, lead: str, sections: Sequence[str]) -> None:
    """Write a page, whole or not at all.

    Args:
        path: The HTML file.
        title: Its heading, plain text.
        lead: What the reader has to know first, HTML.
        sections: HTML of :func:`section`.
    """
    text = page_text(title, lead, sections)
    with atomic_path(Path(path)) as temporary:
        temporary.write_text(text, encoding="utf-8")


def page_text(title: str, lead: str, sections: Sequence[str]) -> str:
    """Return the page that :func:`write_page` writes."""
    template = (_HERE / "page.html").read_text(encoding="utf-8")
    parts = {
        "TITLE": html.escape(title),
        "STYLE": (_HERE / "page.css").read_text(encoding="utf-8"),
        "LEAD": lead,
        "SECTIONS": "\n".join(sections),
        "PLOTLY": _packed_plotly(),
        "SCRIPT": (_HERE / "page.js").read_text(encoding="utf-8"),
    }
    return re.sub(r"<!--([A-Z]+)-->", lambda match: parts[match[1]], template)


@cache
def _packed_plotly() -> str:
    require_extra("report", "a report page")
    from plotly.offline import get_plotlyjs

    packed = gzip.compress(get_plotlyjs().encode("utf-8"), compresslevel=9, mtime=0)
    return base64.b64encode(packed).decode("ascii")


def section(heading: str, *parts: str) -> str:
    """Return a section with a heading (plain text) over HTML parts."""
    return f"<section><h2>{html.escape(heading)}</h2>{''.join(parts)}</section>"


def paragraph(text: str) -> str:
    """Return a paragraph of plain text."""
    return f"<p>{html.escape(text)}</p>"


def table(
    header: Sequence[str], rows: Sequence[Sequence[str]], caption: str, text_columns: int = 1
) -> str:
    """Return a table that scrolls sideways by itself on a narrow screen.

    Args:
        header: Plain text.
        rows: HTML of the cells.
        caption: Plain text.
        text_columns: How many columns from the left hold words, not numbers.

    Returns:
        HTML.
    """

    def cell(tag: str, number: int, content: str, more: str = "") -> str:
        kind = "" if number < text_columns else ' class="number"'
        return f"<{tag}{kind}{more}>{content}</{tag}>"

    head = "".join(cell("th", i, html.escape(h), ' scope="col"') for i, h in enumerate(header))
    body = "".join(
        f"<tr>{''.join(cell('td', i, c) for i, c in enumerate(row))}</tr>" for row in rows
    )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{html.escape(caption)}">'
        f"<table><caption>{html.escape(caption)}</caption><thead><tr>{head}</tr></thead>"
        f"<tbody>{body}</tbody></table></div>"
    )


def record(rows: Sequence[tuple[str, str]]) -> str:
    """Return the table of names (underscores are blanks) and values, plain text, of a run."""
    cells = [[html.escape(name.replace("_", " ")), html.escape(text)] for name, text in rows]
    return table(["Setting", "Value"], cells, "Everything needed to repeat it.", 2)


def figure(data: Sequence[Mapping[str, Any]], layout: Mapping[str, Any], caption: str) -> str:
    """Return a plotly figure.

    Args:
        data: Traces. Colours may be left out: the page has eight that suit light and dark.
        layout: As plotly's.
        caption: What is seen, plain text; also read to those who cannot see it.

    Returns:
        HTML, which the script of :func:`page_text` draws.
    """
    spec = _script_json({"data": list(data), "layout": dict(layout)})
    label = html.escape(caption)
    height = f' style="height:{layout["height"]}px"' if "height" in layout else ""
    return (
        f'<figure><div class="plot" role="img" aria-label="{label}"{height}>'
        f'<script type="application/json">{spec}</script></div>'
        f"<figcaption>{label}</figcaption></figure>"
    )


def crystal_viewer(groups: Sequence[Sequence[Mapping[str, Any]]]) -> str:
    """Return a viewer of crystals, one group at a time, side by side.

    Args:
        groups: Of :func:`crystal_gym.report.crystals.scene`, as many in each; the first of each is
            in the menu, which is left out for a single group.

    Returns:
        HTML, which the script of :func:`page_text` fills; a scene in several groups is in it once.
    """
    scenes: list[Mapping[str, Any]] = []
    for scene in (s for group in groups for s in group):
        if not any(scene is other for other in scenes):
            scenes.append(scene)
    place = {id(scene): number for number, scene in enumerate(scenes)}
    numbers = [[place[id(scene)] for scene in group] for group in groups]
    spec = _script_json({"scenes": scenes, "groups": numbers})
    hidden = " hidden" if len(groups) == len(groups[0]) == 1 else ""  # the page says it above
    columns = "".join(
        f'<div><h3 class="{name}" aria-live="polite"{hidden}></h3>'
        '<div class="scene" role="img"></div></div>'
        for name in ("shown", *["other"] * (len(groups[0]) - 1))
    )
    return (
        f'<div class="viewer">{_menu(groups) if len(groups) > 1 else ""}'
        f'<div class="columns">{columns}</div>'
        f'<script type="application/json">{spec}</script></div>'
    )


def _menu(groups: Sequence[Sequence[Mapping[str, Any]]]) -> str:
    options = "".join(
        f'<option value="{i}">{html.escape(str(first["title"]))}</option>'
        for i, (first, *_) in enumerate(groups)
    )
    return (
        '<div class="controls"><button type="button" data-step="-1">previous</button>'
        f'<label>Crystal <select aria-label="crystal shown">{options}</select></label>'
        '<button type="button" data-step="1">next</button></div>'
    )


def _script_json(value: Any) -> str:
    """Return JSON that no text in it can end the script element of."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c")
