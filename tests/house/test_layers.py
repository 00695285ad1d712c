"""Imports point one way, types hold on the faces, and what a checker finds inside only falls."""

import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[2]
BASELINE = Path(__file__).with_name("type_errors.json")  # by package; only ever made smaller


def test_imports_point_one_way():
    command = [Path(sys.executable).with_name("lint-imports")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def type_errors(*paths: str | Path) -> Counter:
    command = [sys.executable, "-m", "mypy", *map(str, paths)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stderr
    return Counter(re.findall(r"^(\S+?\.py):\d+: error", done.stdout, re.MULTILINE))


def test_type_errors_only_fall():
    errors = type_errors("nnlib")
    assert {path: n for path, n in errors.items() if path.endswith("__init__.py")} == {}
    packages = Counter()
    for path, count in errors.items():
        packages[Path(path).parts[1]] += count
    known = json.loads(BASELINE.read_text())
    assert {name: n for name, n in packages.items() if n > known.get(name, 0)} == {}


def test_what_the_readme_shows_has_no_type_error(tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    script = tmp_path / "readme.py"
    script.write_text("\n".join(blocks), encoding="utf-8")
    assert type_errors(script) == Counter()
