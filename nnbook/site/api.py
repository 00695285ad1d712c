"""The library's reference: pages that pdoc makes of the docstrings of nnlib's public packages."""

import pkgutil
import sys
import warnings
from pathlib import Path

import nnlib

MODULES = {"nnlib.datasets", "nnlib.errors"}  # public ones that aren't packages


def write(reports: Path) -> None:
    """Write reports/api/ unless it is newer than the library; say in a line what can't be read."""
    index = reports / "api" / "index.html"
    sources = Path(nnlib.__file__).parent.rglob("*.py")
    if index.exists() and index.stat().st_mtime > max(path.stat().st_mtime for path in sources):
        return
    index.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings(action="ignore"):
        try:
            _write_pages(index)
        except Exception as error:  # of pdoc
            _warn("nnlib", error)


def _write_pages(index: Path) -> None:
    from pdoc import doc, render

    render.configure(docformat="numpy", math=False, search=False, show_source=False)
    packages = pkgutil.iter_modules(nnlib.__path__, "nnlib.")
    names = [name for _, name, is_package in packages if is_package or name in MODULES]
    modules: dict[str, doc.Module] = {}
    for name in [*(name for name in names if "._" not in name), "nnlib"]:
        try:
            modules[name] = doc.Module.from_name(name)
        except RuntimeError as error:
            _warn(name, error)
    root = modules["nnlib"]
    root.__dict__["submodules"] = [module for module in modules.values() if module is not root]
    root.__dict__["members"] = {}  # its packages describe them
    for name, module in modules.items():
        path = index.parent / f"{name.replace('.', '/')}.html"
        path.parent.mkdir(exist_ok=True)
        try:
            path.write_text(render.html_module(module, modules), encoding="utf-8")
        except Exception as error:
            _warn(name, error)
    index.write_bytes(index.with_name("nnlib.html").read_bytes())


def _warn(name: str, error: Exception) -> None:
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    print(f"nnbook: no reference of {name}: {reason[:300]}", file=sys.stderr)
