"""What the fleet has signed: TUF metadata, kept durably, judged at a time that signatures have proved.

python-tuf decides what is trusted; this module gives it a fetcher, a pinned root, the time, and durability.
"""

import asyncio
import errno
import logging
import os
import shutil
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Final

from tuf.api.exceptions import (
    BadVersionNumberError,
    DownloadError,
    DownloadHTTPError,
    EqualVersionNumberError,
    ExpiredMetadataError,
    LengthOrHashMismatchError,
    RepositoryError,
    UnsignedMetadataError,
)
from tuf.api.metadata import TargetFile  # type: ignore[attr-defined]
from tuf.ngclient.config import UpdaterConfig
from tuf.ngclient.updater import Updater

from agents.update.fetcher import BASE, BlobFetcher, Bytes
from edgert.errors import LinkError, MessageError, NotFoundError, RefusedError, StoreError, WireError
from edgert.files import fsync_folder, write_durable
from edgert.store import Store
from edgert.values import digest as digest_of
from edgert.wire.fleet import FLEET_KEYS, FleetKeys
from edgert.wire.twin import Assignment

__all__ = ["Trust"]

logger = logging.getLogger(__name__)

_TARGET_LIMIT_BYTES: Final = 4 << 20
_DISK: Final = frozenset({errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EIO, errno.EACCES, errno.EPERM})


class Trust:
    """The verified view of what is released.

    Args:
        folder: keeps the metadata; not shared.
        root: the pinned root metadata of the kit, JSON.
        blobs: asks the server.
        store: where images that are already here are taken from.
        time: the time to judge expiry with, see `agents.state.Memory.proven`.
        deadline_s: for one metadata file.
    """

    def __init__(
        self,
        folder: Path,
        root: bytes,
        blobs: Bytes,
        store: Store,
        time: Callable[[], datetime],
        deadline_s: float = 30.0,
    ) -> None:
        self._folder = folder
        self._root = root
        self._blobs = blobs
        self._store = store
        self._time = time
        self._deadline_s = deadline_s
        self._one_at_a_time = asyncio.Lock()
        self._updater: Updater | None = None
        self._keys: FleetKeys | None = None

    async def refresh(self) -> None:
        """Bring the metadata up to date and verify it.

        Raises:
            RefusedError: expired, rolled back, or not signed as it must be.
            WireError: the server could not be asked.
            StoreError: the metadata could not be kept.
        """
        async with self._one_at_a_time:
            await self._refresh()

    async def image(self, assignment: Assignment) -> bytes:
        """The verified OCI image manifest that `assignment` names, as the fleet's metadata has it now.

        Raises:
            RefusedError: the metadata is refused, lacks that target, or names another image.
            WireError: the server could not be asked.
        """
        async with self._one_at_a_time:
            updater = await self._refresh()
            target = await self._target(updater, assignment.target)
            if target.length != assignment.size_bytes or _digest(target) != assignment.digest:
                raise RefusedError(
                    f"the assignment of {assignment.model} {assignment.version} names another bundle than "
                    f"the signed target {assignment.target}",
                    hint="the server contradicts itself, or somebody stands in its place",
                )
        if self._store.has(assignment.digest):
            return self._store.read(assignment.digest)
        return await self._fetch(target, assignment.target)

    async def fleet_keys(self) -> FleetKeys:
        """The keys that may sign envelopes, from fresh metadata.

        Raises:
            RefusedError: the metadata is refused or names no keys.
            WireError: the server could not be asked.
        """
        async with self._one_at_a_time:
            updater = await self._refresh()
            target = await self._target(updater, FLEET_KEYS)
            self._keys = await self._read_keys(target)
            return self._keys

    async def known_keys(self) -> FleetKeys:
        """The keys as they were at the last look; looks when there was none since the start."""
        return self._keys if self._keys is not None else await self.fleet_keys()

    # Metadata

    async def _refresh(self) -> Updater:
        fetcher = BlobFetcher(self._blobs, asyncio.get_running_loop(), self._deadline_s)
        self._updater = None
        self._updater = await asyncio.to_thread(self._refreshed, fetcher)
        return self._updater

    def _refreshed(self, fetcher: BlobFetcher) -> Updater:
        try:
            updater = self._opened(fetcher)
            updater.refresh()
        except (RepositoryError, DownloadError) as e:
            raise _translated(e, fetcher.trouble) from e
        except OSError as e:
            raise _unkept(self._folder, e) from e
        finally:
            _make_durable(self._folder)
        return updater

    def _opened(self, fetcher: BlobFetcher) -> Updater:
        """An updater over the kept metadata; a folder it cannot work with is begun anew from the pinned root."""
        try:
            return self._new_updater(fetcher)
        except OSError as e:
            if e.errno in _DISK:
                raise
            logger.error("the fleet's metadata in %s is damaged (%s); it is fetched anew", self._folder, e.strerror)
            shutil.rmtree(self._folder, ignore_errors=True)
            return self._new_updater(fetcher)

    def _new_updater(self, fetcher: BlobFetcher) -> Updater:
        self._folder.mkdir(parents=True, exist_ok=True)
        updater = Updater(str(self._folder), BASE, fetcher=fetcher, config=UpdaterConfig(), bootstrap=self._root)
        # python-tuf takes no time from outside and reads the system's clock, which a box without a battery has wrong.
        updater._trusted_set.reference_time = self._time()  # noqa: SLF001
        return updater

    async def _target(self, updater: Updater, path: str) -> TargetFile:
        try:
            target = await asyncio.to_thread(updater.get_targetinfo, path)
        except (RepositoryError, DownloadError) as e:
            raise _translated(e, None) from e
        except OSError as e:
            raise _unkept(self._folder, e) from e
        if target is None:
            raise RefusedError(f"the fleet's metadata names no target {path}", hint="was it published?")
        return target

    # Targets

    async def _fetch(self, target: TargetFile, path: str) -> bytes:
        if target.length > _TARGET_LIMIT_BYTES:
            raise RefusedError(f"target {path} claims {target.length} bytes", hint="no image is so long")
        data = await self._blobs.fetch_bytes(_digest(target), limit_bytes=target.length, deadline_s=self._deadline_s)
        try:
            target.verify_length_and_hashes(data)
        except LengthOrHashMismatchError as e:
            raise RefusedError(f"target {path} is not what the fleet signed", hint="the sender damaged it") from e
        return data

    async def _read_keys(self, target: TargetFile) -> FleetKeys:
        digest = _digest(target)
        cached = self._folder.parent / "fleet-keys.json"
        data = await asyncio.to_thread(_read, cached)
        if digest_of(data) != digest:
            data = await self._fetch(target, FLEET_KEYS)
            await asyncio.to_thread(write_durable, cached, data)
        try:
            keys = FleetKeys.decode(data)
            keys.for_assignment()
            keys.for_federation()
        except (MessageError, ValueError) as e:
            raise RefusedError(
                f"target {FLEET_KEYS} cannot be understood", hint="the server may be newer than this agent"
            ) from e
        return keys


def _digest(target: TargetFile) -> str:
    value = target.hashes.get("sha256")
    if value is None:
        raise RefusedError(f"target {target.path} has no SHA-256", hint="publish with `edgert ota publish`")
    return f"sha256:{value}"


def _translated(error: Exception, trouble: WireError | None) -> WireError | RefusedError:
    if trouble is not None:
        return LinkError(trouble.message, hint=trouble.hint)
    match error:
        case DownloadHTTPError():
            return NotFoundError(f"the server lacks a metadata file: {error}", hint="is its home folder complete?")
        case DownloadError():
            return LinkError(f"the fleet's metadata could not be fetched: {error}", hint="it is tried again")
        case ExpiredMetadataError():
            hint = "the server must sign it again; is this box's clock right?"
        case BadVersionNumberError() | EqualVersionNumberError():
            hint = "someone offers older metadata than this box has seen"
        case UnsignedMetadataError():
            hint = "it was not signed with the keys that the fleet's root names"
        case _:
            hint = "the server or the way to it is not to be trusted"
    return RefusedError(f"the fleet's metadata was refused: {error}", hint=hint)


def _unkept(folder: Path, error: OSError) -> StoreError:
    words = f"cannot keep the fleet's metadata in {folder}: {error.strerror or error}"
    return StoreError(words, hint="check the disk and its permissions")


def _make_durable(folder: Path) -> None:
    """Flush what python-tuf renamed into place but did not flush."""
    try:
        _flush(folder)
    except OSError as e:
        raise _unkept(folder, e) from e


def _flush(folder: Path) -> None:
    for path in (folder / "root_history", folder):
        if not path.is_dir():
            continue
        for file in path.iterdir():
            if file.is_file():
                handle = os.open(file, os.O_RDONLY)
                try:
                    os.fsync(handle)
                finally:
                    os.close(handle)
        fsync_folder(path)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
