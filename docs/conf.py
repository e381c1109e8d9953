"""Settings of the documentation site: `make docs` builds it into build/docs."""

import sys
from pathlib import Path

import crystal_gym

sys.path.insert(0, str(Path(__file__).parent))

project = "crystal_gym"
author = "crystal_gym developers"
copyright = "crystal_gym developers, MIT licence"
version = release = crystal_gym.__version__
language = "en"

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "myst_parser",
    "sphinx_copybutton",
    "site_pages",
]

# Files are read on GitHub too: GitHub's anchors, and no syntax that it does not know.
myst_heading_anchors = 3
myst_enable_extensions = ["dollarmath"]
myst_update_mathjax = False  # formulas become MathML

# STYLE: types live in annotations, docstrings carry meaning, shape, unit, failure and source.
autodoc_typehints = "signature"
autodoc_type_aliases = {"ArrayLike": "ArrayLike"}
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # fields of a dataclass are described once
napoleon_attr_annotations = False
python_maximum_signature_line_length = 88

html_theme = "furo"
html_math_renderer = "mathml"
html_title = f"crystal_gym {release}"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_show_search_summary = False  # fetched, which browsers refuse for files on a disk
html_copy_source = False
html_theme_options = {"sidebar_hide_name": False}
pygments_style = "tango"
pygments_dark_style = "github-dark"
