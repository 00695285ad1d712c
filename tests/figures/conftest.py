"""`pytest tests/figures --tags test,slow,data,gpu` measures figures and prints their table.

Anywhere else only the quick figures are tests like others, and no table is printed.
"""

import sys
from pathlib import Path

import pytest
from figures.table import TAGS, line

from nnbook.notebooks import ROOT
from nnbook.results import origin

FOLDERS = ("attention", "nca", "training")  # of tests whose cases figures use
sys.path.extend(str(Path(__file__).parents[1] / folder) for folder in FOLDERS)


def pytest_addoption(parser):
    known = ", ".join(TAGS)
    parser.addoption("--tags", default=",".join(TAGS), help=f"figures to measure: {known}; all")


def pytest_configure(config):
    if unknown := set(tags(config)) - set(TAGS):
        raise pytest.UsageError(f"--tags: {', '.join(unknown)}: give some of {', '.join(TAGS)}")


def tags(config) -> list[str]:
    """The tags asked for: the quick ones where this folder isn't named."""
    return config.getoption("tags", "test").split(",")


def pytest_collection_modifyitems(config, items):
    others = [item for item in items if stated(item) and stated(item).tag not in tags(config)]
    config.hook.pytest_deselected(items=others)
    items[:] = [item for item in items if item not in others]


def stated(item):
    return getattr(getattr(item, "obj", None), "figure", None)


def pytest_sessionstart(session):
    config = session.config
    if show := printer(config):
        facts = origin(ROOT)
        show(f"{facts['date']}, {facts['processor']}, GPU {facts['GPU']}, commit {facts['commit']}")
        show(facts["versions"] + "\n")
        show(line("figure", "bar", "measured", "verdict", "seconds", "tag"))


def printer(config):
    """What writes a line of the table, None where figures are tests like others."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    return reporter.write_line if reporter and hasattr(config.option, "tags") else None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    show, row = printer(item.config), stated(item)
    if row and show and (call.when == "call" or not report.passed):
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        verdict = {"passed": "met", "failed": "MISSED", "skipped": "not measured"}[report.outcome]
        reason = str(call.excinfo.value) if call.excinfo and not row.measured else row.measured
        what = row.what.format(**parameters)
        show(line(what, row.bar, reason, verdict, f"{call.duration:.0f}", row.tag) + "\n")
    return report


def pytest_report_teststatus(report, config):
    if printer(config):  # the table tells what dots would
        return report.outcome, "", ""
