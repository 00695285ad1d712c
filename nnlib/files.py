"""Files are written whole or not at all."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_whole(path: str | Path) -> Iterator[Path]:
    """Yield an empty file beside `path` that takes its place when the block ends well, and is gone otherwise.

    Raises OSError naming `path` where its folder can't be written.
    """
    path = Path(path)
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.touch()
    except OSError as error:
        raise OSError(
            f"path={str(path)!r} can't be written ({error.strerror}): give a folder that can be, or free this one"
        ) from error
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
