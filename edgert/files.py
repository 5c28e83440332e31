"""Writing files so that a power cut leaves the old content or the new, never a mixture."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgert.errors import StoreError

__all__ = ["fsync_folder", "replacing", "replacing_folder", "write_durable"]


def write_durable(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Replace the content of `path` by `data`: temporary file, fsync, rename, fsync of the folder.

    Args:
        mode: permissions of the file; 0o600 for keys.

    Raises:
        StoreError: the disk is full or read-only; the old content is still there.
    """
    with replacing(path, mode=mode) as temporary:
        temporary.write_bytes(data)


@contextmanager
def replacing(path: Path, *, mode: int = 0o644) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place, durably, when the block ends without an error.

    Raises:
        StoreError: the disk is full or read-only; nothing is left behind.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:80]}.", suffix=".tmp")
    except OSError as e:
        raise _cannot_write(path, e) from e
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(mode)
        _fsync(temporary)
        temporary.replace(path)
        fsync_folder(path.parent)
    except OSError as e:
        raise _cannot_write(path, e) from e
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder beside `folder` that becomes it when the block ends without an error.

    Args:
        folder: does not exist, or is empty.

    Raises:
        StoreError: the disk is full or read-only; nothing is left behind.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name[:80]}.", suffix=".tmp"))
    except OSError as e:
        raise _cannot_write(folder, e) from e
    try:
        yield temporary
        temporary.chmod(0o755)
        temporary.rename(folder)
        fsync_folder(folder.parent)
    except OSError as e:
        raise _cannot_write(folder, e) from e
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def fsync_folder(folder: Path) -> None:
    """Make the names in `folder` durable."""
    _fsync(folder)


def _cannot_write(path: Path, error: OSError) -> StoreError:
    return StoreError(f"cannot write {path}: {error.strerror or error}", hint="check the disk and its permissions")


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
