"""Every test runs with the shapes in the signatures of the core checked."""

from jaxtyping import install_import_hook

CORE = (
    *("attend", "condense", "distances", "kernels", "reach", "rows", "search", "stream"),
    *("contexts", "evidence", "gate", "recall"),
    "shards",
)
install_import_hook([f"nnlib.{name}" for name in CORE], "shapes.check")
