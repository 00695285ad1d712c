"""The library's reference: pages that pdoc makes of the docstrings of nnlib's public packages."""

import importlib
import pkgutil
import sys
import warnings
from pathlib import Path

import nnlib

MODULES = {"nnlib.datasets", "nnlib.errors"}  # public ones that aren't packages


def write(reports: Path) -> None:
    """Write reports/api/ unless it is newer than the library; say in one line what can't be written."""
    index = reports / "api" / "index.html"
    sources = Path(nnlib.__file__).parent.rglob("*.py")
    if index.exists() and index.stat().st_mtime > max(path.stat().st_mtime for path in sources):
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            _render(index)
        except Exception as error:  # of pdoc, or of what it imports
            _warn("the reference", error)


def _render(index: Path) -> None:
    from pdoc import doc, render

    render.configure(docformat="numpy", math=False, search=False, show_source=False)
    modules = {name: doc.Module.from_name(name) for name in _faces()}
    modules["nnlib"].__dict__["members"] = {}  # its packages describe them
    for name, module in modules.items():
        path = index.parent / f"{name.replace('.', '/')}.html"
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            path.write_text(render.html_module(module, modules), encoding="utf-8")
        except Exception as error:
            _warn(name, error)
    index.write_text(render.html_index(modules), encoding="utf-8")


def _faces() -> list[str]:
    """Return the names of nnlib and its public packages, of those that can be imported."""
    names = ["nnlib"]
    for module in pkgutil.iter_modules(nnlib.__path__, "nnlib."):
        if "._" in module.name or not (module.ispkg or module.name in MODULES):
            continue
        try:
            importlib.import_module(module.name)
            names.append(module.name)
        except Exception as error:
            _warn(module.name, error)
    return names


def _warn(name: str, error: Exception) -> None:
    reason = " ".join(str(error).split())[:300]
    print(f"nnbook: {name} isn't in reports/api: {type(error).__name__}: {reason}", file=sys.stderr)
