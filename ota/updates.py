"""The updates of one federated job: a folder per device, what is refused, and the mean."""

import logging
import shutil
import statistics
from pathlib import Path
from typing import Final

from edgert import plugins
from edgert.errors import BundleError, CheckError, SamplesError
from edgert.federated.aggregators.base import Aggregator
from edgert.federated.job import Contribution, Job
from edgert.federated.update import Update, unpack_weights
from edgert.samples import pack_arrays
from edgert.store import Store

__all__ = ["Updates", "excess"]

logger = logging.getLogger(__name__)

_EXAMPLES_LIMIT: Final = 1_000_000_000
_ROOM_BYTES: Final = 1 << 20
_MEDIANS_LIMIT: Final = 10


class Updates:
    """Files of devices, not trusted. Everything here blocks: call it in a thread.

    Args:
        folder: made when the first update comes.
        store: holds the weights a round starts from.
    """

    def __init__(self, folder: Path, store: Store) -> None:
        self._folder = folder
        self._store = store

    def shelf(self, device: str, digest: str) -> Store:
        """Where updates of a device are kept; one that was never finished makes room for another.

        Raises:
            StoreError: it cannot be made.
        """
        shelf = Store(self._folder / device)
        if not shelf.has(digest) and not shelf.partial(digest).exists():
            shutil.rmtree(shelf.root, ignore_errors=True)
            shelf = Store(shelf.root)
        return shelf

    def fault(self, device: str, part: Contribution, job: Job) -> str:
        """Why an update that has arrived is refused; empty when it fits the model."""
        try:
            self._read(device, part, job).check_against(unpack_weights(self._store.read(job.weights)))
        except (BundleError, CheckError, SamplesError) as e:
            return e.message
        except Exception:
            logger.exception("could not read the update of %s", device)
            return "the update cannot be read"
        return ""

    def mean(self, aggregator: str, job: Job) -> bytes:
        """The weights after a round, as an ``.npz`` file.

        A device counts with at most ten times the examples of the (lower) median device of the round: what it says of
        itself cannot be checked, and must not make the others vanish.

        Raises:
            EdgeRTError: an update is gone or damaged, or there is none.
        """
        made: Aggregator = plugins.load("edgert.federated.aggregators", aggregator)()
        most = _MEDIANS_LIMIT * statistics.median_low(part.examples for part in job.received.values())
        for device, part in sorted(job.received.items()):
            counted = part.model_copy(update={"examples": min(part.examples, most)})
            made.add(self._read(device, counted, job))
        return pack_arrays(made.result(unpack_weights(self._store.read(job.weights))))

    def drop(self) -> None:
        """Delete all of them."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _read(self, device: str, part: Contribution, job: Job) -> Update:
        data = Store(self._folder / device).read(part.digest)
        return Update(unpack_weights(data, limit_bytes=_limit(job)), part.examples)


def excess(part: Contribution, job: Job) -> str:
    """Why an offer is not even fetched; empty when it may be."""
    if part.size_bytes > _limit(job) or part.examples > _EXAMPLES_LIMIT:
        return f"{part.size_bytes} bytes, {part.examples} examples: too many"
    return ""


def _limit(job: Job) -> int:
    return 2 * job.weights_bytes + _ROOM_BYTES
