"""The documentation site: pages of this folder, docstrings, and the notebooks as they last ran (make notebooks)."""

import importlib
import pathlib
import re
import sys
from typing import Any

from docutils import nodes
from docutils.utils import get_source_line

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import executed  # noqa: E402

from jola_interp._version import __version__  # noqa: E402

executed.bring(HERE / "notebooks", HERE / "_static")

project = "jola_interp"
author = "jola_interp contributors"
project_copyright = author
version = release = __version__
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.doctest",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_llms_txt",
]
myst_enable_extensions = ["colon_fence", "deflist", "fieldlist"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # scripts/notebooks.py runs them
nb_number_source_lines = False
copybutton_prompt_text = ">>> |\\.\\.\\. |\\$ "
copybutton_prompt_is_regexp = True
copybutton_exclude = ".linenos, .gp, .go"

autodoc_default_options = {"members": True, "member-order": "bysource", "show-inheritance": True}
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autoclass_content = "class"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
default_role = "literal"
nitpicky = True
nitpick_ignore_regex = [  # types in signatures, shapes among them, and bare names under "Raises"
    ("py:class", ".*"),
    ("py:obj", ".*"),
    ("py:exc", r"\w+Error"),
]
doctest_test_doctest_blocks = ""  # examples of docstrings have tests of their own, with a model
doctest_global_setup = "import torch\nimport jola_interp as ji"

html_theme = "furo"
html_title = f"jola_interp {release}"
html_show_sourcelink = False
html_static_path = ["_static"]
linkcheck_ignore = [r"https?://localhost"]
llms_txt_summary = (
    "Train JoLA (joint localization and activation editing, arXiv 2502.01179) through TransformerLens hook points, "
    "read its gates, draw what it edits, and test whether the heads that it selects mean anything."
)
llms_txt_uri_template = "_sources/{docname}{suffix}{sourcelink_suffix}"
llms_txt_exclude = ["search", "genindex"]


def as_restructured(_app: Any, _what: str, _name: str, _object: Any, _options: Any, lines: list[str]) -> None:
    """Docstrings are written to be read as they are: what is indented behind a colon is code, |x| mathematics."""
    for place, line in enumerate(lines):
        behind = lines[place + 1 : place + 3]
        if (
            line.rstrip().endswith(":")
            and len(behind) == 2
            and not behind[0].strip()
            and depth(behind[1]) > depth(line)
        ):
            line += ":"
        parts = re.split(r"(``.*?``)", line)  # literals stay
        lines[place] = "".join(
            part if part.startswith("``") else re.sub(r"\\?\||(?<=\w)_(?=[\s,;:.)]|$)", lambda m: f"\\{m[0][-1]}", part)
            for part in parts
        )


def depth(line: str) -> int:
    return len(line) - len(line.lstrip())


def named_in_code(_app: Any, _env: Any, node: Any, shown: nodes.Element) -> nodes.Element | None:
    """What a docstring refers to and no page describes is shown without a link, if it exists; else Sphinx complains."""
    if node.get("refdomain") != "py":
        return None
    home = re.search(r"docstring of ([\w.]+)", get_source_line(node)[0] or "")
    parts = home[1].split(".") if home else []
    places = ["", "jola_interp.", *(".".join(parts[:cut]) + "." for cut in range(1, len(parts) + 1))]
    return shown if any(exists(place + node["reftarget"]) for place in places) else None


def exists(name: str) -> bool:
    """Whether a dotted name leads to something of the package."""
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:cut]))
            for part in parts[cut:]:
                found = getattr(found, part)
        except (ImportError, AttributeError):
            continue
        return parts[0] == "jola_interp"
    return False


def setup(app: Any) -> None:
    app.connect("autodoc-process-docstring", as_restructured)
    app.connect("missing-reference", named_in_code)
