"""Every test runs with the shapes in the signatures of the core checked, except figures."""

import os
from pathlib import Path

import pytest
import torch
from jaxtyping import install_import_hook

CHECKED = (
    *("attention.kernels", "attention.blockwise", "attention.kdtree", "attention.dispatch"),
    *("distances", "neighbors.condensing", "nca.distributed"),
    *("language.context_orders", "language.continuation_counts"),
    *("language.gating", "language.suffix_index"),
)


def pytest_configure(config):
    """Check shapes, and interpret kernels where there is no GPU; both would slow figures down."""
    if config.getoption("tags", None):
        return
    if not torch.cuda.is_available():
        os.environ["TRITON_INTERPRET"] = "1"
    for name in CHECKED:  # the hook ignores names of nothing
        path = Path(__file__).parents[1] / "nnlib" / name.replace(".", "/")
        assert path.is_dir() or path.with_suffix(".py").is_file(), f"nnlib.{name} is no module"
    install_import_hook([f"nnlib.{name}" for name in CHECKED], "shapes.check")


@pytest.fixture(scope="module")
def importable():
    """Let kernels that a test starts import the book from this checkout."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
        yield
