"""The site: these pages and the package's docstrings, put together by Sphinx (``make docs``)."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import rest_fast

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
# Pages outside of docs/ that the site has, too. A link to any other file there becomes a download of it.
COPIES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "benchmarks/README.md": "benchmarks.md",
    "examples/README.md": "examples.md",
    "examples": "examples.md",
    "examples/comfyui": "examples.md",
    "examples/recipes": "examples.md",
}

project = "rest_fast"
copyright = "the rest_fast maintainers"
release = version = rest_fast.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
nitpicky = True
# Only this package's names are looked up: those of others would have to be fetched.
nitpick_ignore_regex = [
    ("py:.*", r"(?!rest_fast\b).*"),
    ("py:class", r"rest_fast\.config\.whole\.C"),
]  # a type variable

myst_heading_anchors = 4  # by the names that GitHub gives them
highlight_language = "none"  # of blocks that name none: commands, drawings
default_role = "code"  # what single backticks mean in docstrings

autodoc_member_order = "bysource"
autodoc_mock_imports = ["livekit", "pipecat"]  # their faces are read, not run
python_maximum_signature_line_length = 120
python_use_unqualified_type_names = True

html_theme = "furo"
html_title = "rest_fast"
html_show_sphinx = False
html_copy_source = False
html_theme_options = {"top_of_page_buttons": []}


def led_here(text: str, folder: Path, reader: Path) -> str:
    """A page of ``folder``, its links as they are from the folder ``reader`` and to the site's copies."""

    def link(found: re.Match[str]) -> str:
        there = os.path.normpath(folder / found[1])
        copy = COPIES.get(os.path.relpath(there, ROOT))
        return "](" + os.path.relpath(DOCS / copy if copy else there, reader)

    return re.sub(r"\]\((?![a-z]+:)([^)#\s]+)", link, text)


def read(app: Any, name: str, source: list[str]) -> None:
    folder = Path(app.env.doc2path(name)).parent
    source[0] = led_here(source[0], folder, folder)
    if name.endswith("/README"):  # has its folder's pages below it
        source[0] += "\n```{toctree}\n:hidden:\n:glob:\n\n[!R]*\n```\n"


def include(app: Any, path: Path, name: str, source: list[str]) -> None:
    source[0] = led_here(source[0], (DOCS / path).resolve().parent, DOCS)


def setup(app: Any) -> None:
    app.connect("source-read", read)
    app.connect("include-read", include)
