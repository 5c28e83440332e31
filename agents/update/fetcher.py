"""Lets python-tuf ask for metadata by the blob protocol instead of HTTP.

python-tuf is synchronous and runs in a thread; the messages belong to the event loop. `BlobFetcher` hands each
question over to the loop and waits for the answer, with a limit of size and time.
"""

import asyncio
from collections.abc import Iterator
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Final, Protocol

from tuf.api.exceptions import DownloadError, DownloadHTTPError
from tuf.ngclient.fetcher import FetcherInterface

from edgert.errors import NotFoundError, WireError

__all__ = ["BASE", "BlobFetcher", "Bytes"]

BASE: Final = "metadata/"
"""What stands for python-tuf's base URL: the name of a metadata file in the blob protocol."""

_LIMIT_BYTES = 5_000_000
_NOT_FOUND = 404


class Bytes(Protocol):
    """Brings small blobs whole (`edgert.wire.link.Fetcher`)."""

    async def fetch_bytes(self, name: str, *, limit_bytes: int, deadline_s: float = 30) -> bytes: ...


class BlobFetcher(FetcherInterface):
    """See the module.

    Args:
        blobs: asks the server; used on `loop` only.
        loop: where the messages live; must not be the thread this object is called in.
        deadline_s: for one file.
    """

    def __init__(self, blobs: Bytes, loop: asyncio.AbstractEventLoop, deadline_s: float = 30.0) -> None:
        self._blobs = blobs
        self._loop = loop
        self._deadline_s = deadline_s
        self.trouble: WireError | None = None

    def _fetch(self, url: str) -> Iterator[bytes]:
        asking = self._blobs.fetch_bytes(url, limit_bytes=_LIMIT_BYTES, deadline_s=self._deadline_s)
        answer = asyncio.run_coroutine_threadsafe(asking, self._loop)
        try:
            data = answer.result(self._deadline_s + 5)
        except NotFoundError as e:
            raise DownloadHTTPError(e.message, _NOT_FOUND) from e
        except WireError as e:
            self.trouble = e
            raise DownloadError(e.message) from e
        except FutureTimeoutError as e:
            answer.cancel()
            raise DownloadError(f"no answer about {url}") from e
        return iter((data,))
