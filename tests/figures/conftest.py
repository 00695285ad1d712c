"""`pytest tests/figures --tags test,slow,data,gpu` measures figures and prints their table.

Without --tags the quick ones are tests like others, the rest is left out, and there is no table.
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
    parser.addoption("--tags", help=f"measure these figures: {', '.join(TAGS)}")


def pytest_collection_modifyitems(config, items):
    tags = (config.getoption("tags", None) or "test").split(",")
    if unknown := set(tags) - set(TAGS):
        raise pytest.UsageError(f"--tags: {', '.join(unknown)}: give some of {', '.join(TAGS)}")
    others = [item for item in items if stated(item) and stated(item).tag not in tags]
    config.hook.pytest_deselected(items=others)
    items[:] = [item for item in items if item not in others]


def stated(item):
    """What a test states, None for one that states no figure."""
    return getattr(getattr(item, "obj", None), "figure", None)


def printer(config):
    """What writes a line of the table, None where figures are tests like others."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    return reporter.write_line if reporter and config.getoption("tags", None) else None


def pytest_collection_finish(session):
    if show := printer(session.config):
        facts = origin(ROOT)
        show(f"{facts['date']}, {facts['processor']}, GPU {facts['GPU']}, commit {facts['commit']}")
        show(facts["versions"] + "\n")
        show(line("figure", "bar", "measured", "verdict", "seconds", "tag"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    show, row = printer(item.config), stated(item)
    if row and show and (call.when == "call" or not report.passed):
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        verdict = {"passed": "met", "failed": "MISSED", "skipped": "not measured"}[report.outcome]
        words = row.measured or call.excinfo.exconly()
        what = row.what.format(**parameters)
        show(line(what, row.bar, words, verdict, f"{call.duration:.0f}", row.tag) + "\n")
    return report


def pytest_report_teststatus(report, config):
    if printer(config):  # the table tells what dots would
        return report.outcome if report.when == "call" or not report.passed else "", "", ""
