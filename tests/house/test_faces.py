"""What is public is on a face, documented, and light to import; outside, faces alone are used."""

import ast
import importlib
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import nnlib

ROOT = Path(__file__).parents[2]
PACKAGES = (
    "attention",
    "datasets",
    "distances",
    "features",
    "image_codec",
    "language",
    "nca",
    "neighbors",
    "training",
)
FACES = {"nnlib", *(f"nnlib.{name}" for name in PACKAGES)}
EXTRAS = ("IPython", "ipywidgets", "jupyterlab", "matplotlib", "nbconvert", "papermill")
PUBLIC = sorted(
    f"{package}.{name}"
    for package in PACKAGES
    for name in importlib.import_module(f"nnlib.{package}").__all__
)


def public(name: str):
    package, attribute = name.split(".")
    return getattr(importlib.import_module(f"nnlib.{package}"), attribute)


def code_blocks(path: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL)


def code_cells(path: Path) -> list[str]:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def library_imports(source: str) -> dict[str, list[str]]:
    """The modules of nnlib that a source imports from, and the names it takes."""
    modules: dict[str, list[str]] = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "nnlib":
            modules.setdefault(node.module, []).extend(alias.name for alias in node.names)
        if isinstance(node, ast.Import):
            modules |= {a.name: [] for a in node.names if a.name.split(".")[0] == "nnlib"}
    return modules


def sources() -> dict[str, str]:
    """Everything that readers copy from, and the book's own code."""
    pages = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "data/README.md")]
    found = {page.name: "\n".join(code_blocks(page)) for page in pages}
    for notebook in sorted((ROOT / "notebooks").glob("*.ipynb")):
        found[notebook.name] = "\n".join(code_cells(notebook))
    for path in sorted((ROOT / "nnbook").rglob("*.py")):
        found[str(path.relative_to(ROOT))] = path.read_text(encoding="utf-8")
    return found


@pytest.mark.parametrize("name", sources())
def test_outside_the_library_only_faces_are_imported(name):
    for module, names in library_imports(sources()[name]).items():
        if module in ("nnlib._common.files", "nnlib._common.validation", "nnlib.errors"):
            continue  # the book writes files and refuses settings as the library does
        assert module in FACES
        if module != "nnlib":
            assert set(names) <= set(importlib.import_module(module).__all__)


@pytest.mark.parametrize("package", sorted(set(PACKAGES) - {"datasets"}))
def test_packages_import_each_other_by_their_faces(package):
    for path in (ROOT / "nnlib" / package).rglob("*.py"):
        for module in library_imports(path.read_text(encoding="utf-8")):
            inside = module.startswith((f"nnlib.{package}", "nnlib._common", "nnlib.errors"))
            assert inside or module in FACES, f"{path.relative_to(ROOT)} imports {module}"


def test_the_root_shows_its_doors():
    names = [name for name in dir(nnlib) if not name.startswith("_")]
    assert {"attend", "nearest", "DynamicClassifier", "ContextModel", "image_codec"} <= set(names)
    assert all(getattr(nnlib, name) is not None for name in names)
    with pytest.raises(AttributeError, match="nnlib"):
        nnlib.no_such_name  # noqa: B018


def test_importing_the_library_loads_nothing_heavy():
    heavy = {"torch", "torchvision", "matplotlib", "triton", "sklearn", "pandas"}
    code = f"import nnlib, sys; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


def test_using_the_core_loads_no_pictures_and_no_plots():
    heavy = {"torchvision", "matplotlib", "triton", "IPython"}
    code = (
        "from nnlib import attend, DynamicClassifier, nca_loss, ContextModel\n"
        f"import sys; print(sorted({heavy} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_is_documented(name):
    thing = public(name)
    if not inspect.isfunction(thing) and not inspect.isclass(thing):
        return
    text = inspect.getdoc(thing) or ""
    assert len(text.split("\n\n")[0].splitlines()) <= 2, "the first paragraph is one line"
    if inspect.isclass(thing) and issubclass(thing, Exception | tuple):
        return
    assert not inspect.signature(thing).parameters or "Parameters\n-----" in text
    assert ">>> " in text, "an example that doctest runs"


def files_on_the_way_of_predict() -> set[str]:
    import torch

    from nnlib import DynamicClassifier

    x = torch.randn(200, 20, generator=torch.Generator().manual_seed(0))
    model = DynamicClassifier("euclidean", device="cpu", progress=False).fit(x, x[:, 0] > 0)
    files = set()

    def note(frame, event, _):
        path = Path(frame.f_code.co_filename)
        if (ROOT / "nnlib") in path.parents:
            files.add(path.relative_to(ROOT).as_posix())

    sys.setprofile(note)
    try:
        model.predict(x)
    finally:
        sys.setprofile(None)
    return files


def test_a_prediction_goes_through_few_files():
    assert len(files_on_the_way_of_predict()) <= 9


@pytest.mark.slow
def test_the_readme_runs_without_the_books_packages(tmp_path):
    blocked = f"import sys\nfor name in {EXTRAS}: sys.modules[name] = None\n"
    script = tmp_path / "readme.py"
    script.write_text(blocked + "\n".join(code_blocks(ROOT / "README.md")), encoding="utf-8")
    done = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("2904 0.968")
