"""What the site makes of the Markdown files beside this one.

The files are read on GitHub as well, so they hold no syntax of their own but comments that GitHub
does not show: ``<!-- insert: WHAT ARGUMENT -->`` alone on a line is replaced by text that comes
from the code. Pictures get their dark twin, formulas become MathML, and types in signatures are
written as in the code.
"""

from __future__ import annotations

import importlib.util
import inspect
import re
import shutil
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform
from sphinx.util.osutil import relative_uri

ROOT = Path(__file__).resolve().parents[1]

# -- text from the code ------------------------------------------------------------------------

_INSERT = re.compile(r"^<!-- insert: (\w+)(?: (\S+))? -->$", re.MULTILINE)
_NAMED_AFTER_FILE = re.compile(r"\[[\w/.-]+\.md\]\(([^)\s]+)\)")


def insert(app: Sphinx, page: str, source: list[str]) -> None:
    """Replace the comments of one page by what they name, and names of files by titles."""
    text = _INSERT.sub(lambda m: _INSERTS[m[1]](*m.groups()[1:]), source[0])
    if text != source[0]:
        app.env.reread_always.add(page)  # the code may have changed where the page has not
    for there, here in _PAGES_OF_FILES.items():
        text = text.replace(f"](../{there}", f"]({here}")
    source[0] = _NAMED_AFTER_FILE.sub(r"[](\1)", text)


def _object(name: str) -> Any:
    module, _, attribute = name.rpartition(".")
    return getattr(import_module(module), attribute)


_ROLE = re.compile(r":(class|mod|func|meth):`")


def _docstring(name: str) -> str:
    """Return a docstring that is written in Markdown, without its first line."""
    text = inspect.getdoc(_object(name)) or ""
    return _ROLE.sub(r"{py:\1}`", text.partition("\n")[2])


def _file(name: str) -> str:
    """Return a Markdown file from elsewhere; its links lead on within docs/ or are dropped."""
    text = (ROOT / name).read_text("utf-8")

    def link(found: re.Match[str]) -> str:
        label, target = found.groups()
        if ":" in target:
            return found[0]
        inside = re.search(r"(?:^|/)docs/(.*)", target)
        return f"[{label}]({inside[1]})" if inside else label

    text = re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL)  # a card's settings
    return re.sub(r"\[([^]]*)\]\(([^)]*)\)", link, text)


_PAGES_OF_FILES = {
    "SECURITY.md": "security.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "examples/README.md": "examples.md",
    "crystal_gym/data/policy/README.md": "policy.md",
}
"""Pages that show a file from outside of docs/, by the file."""


def _elements(_: None) -> str:
    """Return the 88 actions, eight to a row."""
    from crystal_gym.elements import ELEMENTS

    starts = range(0, len(ELEMENTS), 8)
    rows = [f"| **{i}** | " + " | ".join(ELEMENTS[i : i + 8]) + " |" for i in starts]
    head = "| | " + " | ".join(f"+{i}" for i in range(8)) + " |"
    return "\n".join([head, "|---:" + "|---" * 8 + "|", *rows])


def _space(form: str) -> str:
    """Return the observation space of a form, as the bundled set gives it."""
    import gymnasium as gym

    space = gym.make("CrystalFill-v0", target_gap=3.0, observation=form).observation_space
    parts = space.spaces if isinstance(space, gym.spaces.Dict) else {"(the row)": space}
    rows = ["| key | shape | type | from | to |", "|---|---|---|---:|---:|"]
    for key, part in parts.items():
        low, high = (f"{bound:g}" for bound in (part.low.min(), part.high.max()))
        rows.append(f"| `{key}` | `{part.shape}` | {part.dtype} | {low} | {high} |")
    return "\n".join(rows)


def _api(module: str) -> str:
    """Return directives for a module: its docstring and everything in its ``__all__``."""
    if importlib.util.find_spec(module) is None:
        return f"`{module}` is not part of this version."
    lines = [f".. automodule:: {module}", "   :no-members:", ""]
    for name in import_module(module).__all__:
        thing = getattr(import_module(module), name)
        kind = "class" if inspect.isclass(thing) else "function" if callable(thing) else "data"
        lines += [f".. auto{kind}:: {module}.{name}"]
        lines += [{"class": "   :members:", "data": "   :no-value:"}.get(kind, ""), ""]
    return "```{eval-rst}\n" + "\n".join(lines) + "```"


_INSERTS: dict[str, Callable[..., str]] = {
    "api": _api,
    "docstring": _docstring,
    "elements": _elements,
    "file": _file,
    "space": _space,
}

# -- the reference -----------------------------------------------------------------------------

_ARRAY = re.compile(
    r"~?(?:numpy\.)?ndarray\[tuple\[~?(?:typing\.)?Any, \.\.\.\], ~?(?:numpy\.)?dtype\[(.*?)\]\]"
)


def _shorten(text: str) -> str:
    """Write ``NDArray[int8]`` as the code does, not what it stands for."""
    return _ARRAY.sub(r"NDArray[\1]", text)


def signature(
    _: Sphinx, __: str, ___: str, thing: Any, ____: Any, arguments: str | None, returns: str | None
) -> tuple[str | None, str | None]:
    """Shorten a signature; interfaces, which nobody makes, have none."""
    if getattr(thing, "_is_protocol", False):
        return "", returns
    return arguments and _shorten(arguments), returns and _shorten(returns)


def docstring(_: Sphinx, what: str, __: str, thing: Any, ___: Any, lines: list[str]) -> None:
    """Mend what is no docstring of ours, or what napoleon has misread."""
    if any(line.startswith("## ") for line in lines):  # written in Markdown
        lines[1:] = ["", "Everything about it is on the page :doc:`/environment`.", ""]
    elif what == "data" and lines and "\n".join(lines).startswith(type(thing).__doc__ or "\0"):
        lines.clear()  # that of int or tuple
    elif what in ("attribute", "data", "property") and ":type: " in (last := (lines or [""])[-1]):
        # Words before a colon are no type: those are in annotations.
        lines[:] = [last.replace(":type: ", "", 1) + ": " + lines[0], *lines[1:-1]]


class ReferenceWords(SphinxTransform):
    """Types of properties are shortened, and fields of a dataclass are called attributes."""

    default_priority = 100

    def apply(self, **_: Any) -> None:
        """Change the words on one page."""
        for note in self.document.findall(addnodes.desc_annotation):
            if (text := _shorten(note.astext())) != note.astext():
                note[:] = [nodes.Text(text)]
        for name in self.document.findall(nodes.field_name):
            if name.astext() == "Variables":
                name[:] = [nodes.Text("Attributes")]


# -- pictures and formulas -----------------------------------------------------------------------


class DarkTwins(SphinxTransform):
    """Beside ``pictures/NAME.svg`` stands ``pictures/NAME-dark.svg``, for dark pages."""

    default_priority = 100

    def apply(self, **_: Any) -> None:
        """Show one of both, as the page is light or dark."""
        for image in list(self.document.findall(nodes.image)):
            path = Path(image["uri"])
            dark = path.with_stem(path.stem + "-dark")
            if (Path(self.env.srcdir) / dark).exists():
                twin = image.copy()
                twin["uri"] = dark.as_posix()
                image["classes"].append("only-light")
                twin["classes"].append("only-dark")
                image.parent.insert(image.parent.index(image) + 1, twin)


REPORT = "results/evaluation.html"
"""A page that `crystal-gym evaluate` wrote; a page of the site has its name."""
REPORT_ON_SITE = "results/report.html"


class ReportLinks(SphinxTransform):
    """Links to the report open it instead of saving it."""

    default_priority = 100

    def apply(self, **_: Any) -> None:
        """Lead each to where :func:`copy_report` puts it."""
        here = self.env.docname
        for link in list(self.document.findall(addnodes.download_reference)):
            target = (Path(here).parent / link["reftarget"]).as_posix()
            if target == REPORT:
                uri = relative_uri(f"{here}.html", REPORT_ON_SITE)
                link.replace_self(nodes.reference("", "", *link.children, refuri=uri))


def copy_report(app: Sphinx, error: Exception | None) -> None:
    """Put the report beside the pages."""
    if error is None and app.builder.format == "html":
        shutil.copy(Path(app.srcdir) / REPORT, Path(app.outdir) / REPORT_ON_SITE)


def visit_math(translator: Any, node: nodes.math) -> None:
    """Write an inline formula as MathML, which needs no script and no font."""
    translator.body.append(tex2mathml(node.astext(), as_block=False))
    raise nodes.SkipNode


def visit_display_math(translator: Any, node: nodes.math_block) -> None:
    """Write a formula on a line of its own as MathML."""
    formula = tex2mathml(node.astext().strip(), as_block=True)
    translator.body.append(f'<div class="math">{formula}</div>')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, Any]:
    """Register all of this with Sphinx."""
    app.connect("source-read", insert)
    app.connect("autodoc-process-signature", signature)
    app.connect("autodoc-process-docstring", docstring, priority=600)  # after napoleon
    app.connect("build-finished", copy_report)
    app.add_transform(ReferenceWords)
    app.add_transform(DarkTwins)
    app.add_transform(ReportLinks)
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_display_math, None))
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
