"""The update machines of all models of a box."""

import asyncio
import logging
from pathlib import Path

from agents.update.box import Box
from agents.update.execute import Updater
from agents.update.machine import RESTING, State
from edgert.values import is_name
from edgert.wire.twin import Assignment

__all__ = ["Updates"]

logger = logging.getLogger(__name__)


class Updates:
    """The machines of all models of a box.

    Args:
        folder: of the journals.
    """

    def __init__(self, box: Box, folder: Path) -> None:
        self._box = box
        self._folder = folder
        self._started: asyncio.Queue[Updater] = asyncio.Queue()
        self._updaters: dict[str, Updater] = {}
        for path in sorted(folder.glob("*.json")):
            if is_name(path.stem):
                self._updater(path.stem)

    def states(self) -> dict[str, State]:
        """Where the update of each model stands."""
        return {model: updater.state for model, updater in self._updaters.items()}

    def assign(self, assignments: tuple[Assignment, ...], revision: int) -> None:
        """Follow what an accepted Desired says; models it does not name keep answering as they are."""
        for assignment in assignments:
            self._updater(assignment.model).assign(assignment, revision)
        for model in set(self._updaters) - {assignment.model for assignment in assignments}:
            self._updaters[model].assign(None, revision)

    def withdraw(self, model: str, revision: int) -> "asyncio.Future[State]":
        """See `Updater.withdraw`."""
        return self._updater(model).withdraw(revision)

    def nudge(self) -> None:
        """See `Updater.nudge`."""
        for updater in self._updaters.values():
            updater.nudge()

    async def run(self) -> None:
        """Run every machine until cancelled; one that breaks is started again from its journal."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                updater = await self._started.get()
                tasks.create_task(self._guarded(updater))

    async def _guarded(self, updater: Updater) -> None:
        while True:
            try:
                await updater.run()
            except Exception:
                logger.exception("the update machine of %s broke; it starts again", updater.state.model)
                await asyncio.sleep(self._box.retry_s)

    def _updater(self, model: str) -> Updater:
        if model not in self._updaters:
            self._updaters[model] = Updater(model, self._box, self._folder / f"{model}.json", self._tidy)
            self._started.put_nowait(self._updaters[model])
        return self._updaters[model]

    async def _tidy(self) -> None:
        """Throw away what no slot needs, unless another machine has blobs that no slot names yet."""
        if sum(updater.state.phase not in RESTING for updater in self._updaters.values()) > 1:
            return
        gone = await asyncio.to_thread(self._box.store.collect)
        logger.debug("removed %s blobs", len(gone))
