"""A plugin of pytest: every test is a line of evidence as it ends, and hypothesis draws few examples.

``-p gpu_suite.recorded``, also under pytest-xdist, where the one that hands out the tests writes the lines. What passed
in an earlier call is not run again.
"""

from __future__ import annotations

import pytest

from gpu_suite.evidence import REASON, Evidence

EXAMPLES = 10
PASSED = "passed"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The same in every worker: no test runs before all have collected."""
    evidence = Evidence.here()
    done = {name for name, line in evidence.progress().found.items() if line.get("outcome") == PASSED}
    if not hasattr(config, "workerinput") and not config.getoption("numprocesses", None):
        evidence.left(item.nodeid for item in items)
    kept = [item for item in items if item.nodeid not in done]
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid in done])
    items[:] = kept
    for item in items:
        _few_examples(getattr(item, "obj", None))


def _few_examples(function: object) -> None:
    """Hypothesis has no option above what a test asks for itself."""
    asked = getattr(function, "_hypothesis_internal_use_settings", None)
    if asked is not None and asked.max_examples > EXAMPLES:
        from hypothesis import settings

        function._hypothesis_internal_use_settings = settings(asked, max_examples=EXAMPLES)  # type: ignore[attr-defined]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_node_collection_finished(node: object, ids: list[str]) -> None:
    evidence = Evidence.here()
    done = [name for name, line in evidence.progress().found.items() if line.get("outcome") == PASSED]
    evidence.left({*ids, *done})


class Lines:
    """Writes a test's line once its last phase has ended."""

    def __init__(self) -> None:
        self.evidence = Evidence.here()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call" and report.outcome == PASSED:
            return
        line = {"outcome": report.outcome, "seconds": round(report.duration, 3)}
        if report.outcome == "skipped":
            line["reason"] = str(report.longrepr)[-REASON:]
        elif report.outcome == "failed":
            line["failed"] = _reason(report)
        self.evidence.add(report.nodeid, line)


def _reason(report: pytest.TestReport) -> str:
    crash = getattr(report.longrepr, "reprcrash", None)
    return (crash.message if crash else str(report.longrepr))[:REASON]


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Lines(), "lines of evidence")
