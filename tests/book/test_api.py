"""The library's reference: pages of the public packages, offline; some may fail."""

import os
import re
from collections import Counter

import pytest
from bs4 import BeautifulSoup

from nnbook.site import api

write = api.write  # before other tests' books go without


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    reports = tmp_path_factory.mktemp("reports")
    write(reports)
    return reports / "api"


def test_the_reference_has_a_page_for_each_public_package(reference):
    names = {page.relative_to(reference).as_posix() for page in reference.rglob("*.html")}
    assert {"index.html", "nnlib.html", "nnlib/attention.html", "nnlib/nca.html"} <= names
    assert not any("/_" in name for name in names)


def test_each_public_name_has_one_place(reference):
    names = Counter()
    for page in reference.rglob("*.html"):
        soup = BeautifulSoup(page.read_text(encoding="utf-8"), "html.parser")
        names.update(tag["id"] for tag in soup.select("main section[id]") if "." not in tag["id"])
    assert names["attend"] == names["MemoryBank"] == 1


def test_the_reference_loads_nothing(reference):
    for page in reference.rglob("*.html"):
        soup = BeautifulSoup(page.read_text(encoding="utf-8"), "html.parser")
        assert not soup.select("script, link[href], iframe, img[src^=http]"), page.name
        sheets = "".join(sheet.get_text() for sheet in soup("style"))
        assert not re.search(r"@import|url\((?!\s*['\"]?data:)", sheets), page.name


def test_it_is_written_again_where_the_library_is_newer_alone(reference, monkeypatch):
    rendered = []
    monkeypatch.setattr(api, "_write_pages", rendered.append)
    for seconds, times in ((2**33, 0), (0, 1)):
        os.utime(reference / "index.html", (seconds, seconds))
        write(reference.parent)
        assert len(rendered) == times


def test_what_cannot_be_read_is_told_in_a_line(tmp_path, monkeypatch, capsys):
    def broken(index):
        raise ValueError("no such\nthing")

    monkeypatch.setattr(api, "_write_pages", broken)
    write(tmp_path)
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "ValueError: no such thing" in told
