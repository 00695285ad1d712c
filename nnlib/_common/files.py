"""Files and folders are written whole or not at all."""

import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield an empty file beside `path` that takes its place when the block ends well, and is gone otherwise.

    Raises OSError naming `path` where its folder can't be written.
    """
    path = Path(path)
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.touch()
        mode = (
            part.stat().st_mode
        )  # as any new file's: who writes through a file of their own may set another
    except OSError as error:
        raise _unwritable(path, error) from error
    try:
        yield part
        part.chmod(mode)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | Path, ours: Sequence[str]) -> Iterator[Path]:
    """Yield an empty folder beside `path` that takes its place when the block ends well, and is gone otherwise.

    ours: globs of the files that such a folder holds, the first of them a name that it always holds. Only an empty
    folder or one of these files alone is replaced; it is moved aside first, and back where the new one can't follow.
    Raises OSError naming `path` where something else is there, or where it can't be written.
    """
    path = Path(path).resolve()
    _check_replaceable(path, ours)
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        part.mkdir(parents=True)
    except OSError as error:
        raise _unwritable(path, error) from error
    try:
        yield part
        _replace_folder(part, path)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _replace_folder(part: Path, path: Path) -> None:
    if not path.exists():
        os.rename(part, path)
        return
    old = part.with_suffix(".old")  # no system renames onto a folder that holds files
    os.rename(path, old)
    try:
        os.rename(part, path)
    except BaseException:
        os.rename(old, path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _check_replaceable(path: Path, ours: Sequence[str]) -> None:
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    if not (path / ours[0]).is_file():  # looked at first: a foreign folder may be a whole disk
        raise OSError(
            f"path={str(path)!r} is there and holds no {ours[0]}: give the path of a new folder"
        )
    known = {file for pattern in ours for file in path.glob(pattern)}
    foreign = next(
        (file for file in path.rglob("*") if not file.is_dir() and file not in known), None
    )
    if foreign:
        name = foreign.relative_to(path).as_posix()
        raise OSError(
            f"path={str(path)!r} holds {name!r} too, which would be lost: move it away, or give a new folder"
        )


def _unwritable(path: Path, error: OSError) -> OSError:
    reason = f"can't be written ({error.strerror})"
    return OSError(f"path={str(path)!r} {reason}: give a folder that can be, or free this one")
