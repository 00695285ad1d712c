"""Files are written whole or not at all."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield an empty file next to `path` that replaces it when the block succeeds, else is deleted.

    Raises OSError naming `path` where its folder can't be written.
    """
    path = Path(path)
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.touch()
        mode = part.stat().st_mode  # any new file's; writers that make their own may set another
    except OSError as error:
        wanted = "give a folder that can be, or free this one"
        raise OSError(
            f"path={str(path)!r} can't be written ({error.strerror}): {wanted}"
        ) from error
    try:
        yield part
        part.chmod(mode)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
