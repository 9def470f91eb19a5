"""The pages of docs/: they agree with each other, with the package, and with the site's navigation.

``make docs`` builds the site, which is too slow for here; what its pages say is held to the truth by these tests.
"""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import pytest

import rest_fast

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def name(page: Path) -> str:
    return page.relative_to(DOCS).with_suffix("").as_posix()


def listed(page: Path) -> list[str]:
    """What a page's tables of contents name, as from docs/."""
    tables = re.findall(r"```\{toctree\}\n(.*?)```", page.read_text(), re.DOTALL)
    entries = [line for table in tables for line in table.splitlines() if line and not line.startswith(":")]
    return [(page.parent / entry).relative_to(DOCS).as_posix() for entry in entries]


def anchors(page: Path) -> set[str]:
    """The names that GitHub, and the site, give to a page's headings."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    return {
        re.sub(r"[^\w\- ]", "", re.sub(r"\[(.*?)\]\(.*?\)", r"\1", one).lower()).replace(" ", "-") for one in headings
    }


def test_every_page_is_in_the_navigation_once():
    """A new page needs a line in a table of contents of docs/index.md. Pages of kernels/ are below its README."""
    pages = [name(page) for page in [*PAGES, *DOCS.rglob("*.rst")]]
    expected = [one for one in pages if one != "index" and not re.match(r"kernels/(?!README)", one)]
    assert sorted(listed(DOCS / "index.md") + listed(DOCS / "api" / "index.md")) == sorted(expected)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page):
    """To files that are there, and headings that these have."""
    for link in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", page.read_text())):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def code_of(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)


@pytest.mark.parametrize("page", [page for page in PAGES if code_of(page)], ids=name)
def test_code_is_of_today(page):
    """It is Python, and what it imports of this package exists. Most of it is run by the tests of its subject."""
    for code in code_of(page):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "rest_fast":
                if node.module.endswith(
                    ("livekit_avatar", "pipecat_avatar", "ray_app")
                ):  # these need libraries of their own
                    defined = ast.parse((ROOT / f"{node.module.replace('.', '/')}.py").read_text()).body
                    there = {getattr(one, "name", "") for one in defined}
                else:
                    there = {*dir(importlib.import_module(node.module)), "media"}
                assert {alias.name for alias in node.names} <= there


def test_the_reference_has_all_that_is_public():
    text = "\n".join(page.read_text() for page in (DOCS / "api").glob("*.rst"))
    named = re.findall(r"^\.\. auto\w+:: rest_fast\.(\w+)(?:\(\))?$", text, re.MULTILINE)
    assert sorted(named) == sorted(rest_fast.__all__)
    for target, members in re.findall(
        r"^\.\. autoclass:: (\S+?)(?:\(\))?\n   :members: ((?:.|\n {6})+)$", text, re.MULTILINE
    ):
        module, _, kind = target.rpartition(".")
        if not module.endswith("livekit_avatar"):
            found = getattr(importlib.import_module(module), kind)
            assert not [one for one in re.split(r",\s*", members) if not getattr(found, one).__doc__], target


def test_operations_name_every_metric():
    pytest.importorskip("prometheus_client")
    source = (ROOT / "rest_fast" / "serving" / "metrics.py").read_text()
    names = {
        one + ("_total" if kind == "Counter" else "")
        for kind, one in re.findall(r'(Gauge|Counter)MetricFamily\("(\w+)"', source)
    }
    told = set(
        re.findall(
            r"\brest_fast_\w+", re.search(r"\| metric \|.*?\n\n", (DOCS / "operations.md").read_text(), re.DOTALL)[0]
        )
    )
    assert told == names


def test_the_pictures_show_the_demo_as_it_is():
    """``python tools/pictures.py`` draws them again."""
    config = rest_fast.preset("demo")
    seconds = config.stream.chunk * config.latent_seconds
    ahead = (config.speech.side_ms + 7.5) / 1000  # a spectrum of 25 ms stands around its 10 ms
    units, latency = ((DOCS / "pictures" / f"{one}.svg").read_text() for one in ("units", "latency"))
    assert f"chunk: {config.stream.chunk} blocks, {8 * config.stream.chunk} frames, {seconds:.2f} s" in units
    assert f"the floor: {seconds + ahead:.2f} s" in latency and f"look-ahead {1000 * ahead:.1f} ms" in latency
