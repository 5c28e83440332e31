"""Does what the update machine decides: the journal first, then the effect; everything may be done twice.

One `Updater` per model, all of them in one `Updates`. A passing trouble (the way to the server, metadata that is
refused, a full disk) is tried again after a pause; a bundle that does not work here is not, until a new assignment
asks for it.
"""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from agents.update import journal as journals
from agents.update import plan
from agents.update.box import Box
from agents.update.machine import RESTING, TRANSITIONS, Effect, Event, State, step, wanted, withdrawal
from agents.update.troubles import outcome, stopped
from edgert.bundle import Bundle, Image, parse_image
from edgert.errors import (
    BundleError,
    EdgeRTError,
    FaultError,
    StoreError,
)
from edgert.manifest import Manifest
from edgert.store import Slot
from edgert.values import digest as digest_of
from edgert.values import digest_file
from edgert.wire.messages import device
from edgert.wire.twin import Assignment

__all__ = ["Updater"]

logger = logging.getLogger(__name__)

_MANIFEST_LIMIT_BYTES = 4 << 20
_PROGRESS_EVERY_S = 1.0


class Updater:
    """The update machine of one model, with its journal.

    Args:
        journal: the file the state is kept in.
        tidy: called at COMMIT to throw away what no slot needs.
    """

    def __init__(self, model: str, box: Box, journal: Path, tidy: Callable[[], Awaitable[None]]) -> None:
        self._box = box
        self._journal = journal
        self._tidy = tidy
        self.state = journals.read(journal, model)
        self._pending: tuple[Assignment | None, int] | None = None
        self._withdrawal: tuple[int, asyncio.Future[State]] | None = None
        self._withdrawing: asyncio.Future[State] | None = None
        self._wake = asyncio.Event()
        self._newer = asyncio.Event()
        self._nudged = asyncio.Event()
        self._told_s = float("-inf")

    def assign(self, assignment: Assignment | None, revision: int) -> None:
        """Follow an accepted assignment, as soon as the machine can; None: the model is no longer assigned."""
        if wanted(self.state, assignment, revision, self._active()) is None and self._pending is None:
            return
        self._pending = (assignment, revision)
        self._newer.set()
        self._wake.set()

    def withdraw(self, revision: int) -> "asyncio.Future[State]":
        """Go back to the other slot when nothing is under way; the result is the state after it.

        Cancelling the result before that takes the wish back.
        """
        done: asyncio.Future[State] = asyncio.get_running_loop().create_future()
        self._withdrawal = (revision, done)
        self._wake.set()
        return done

    def nudge(self) -> None:
        """The way to the server is open again: do not wait any longer."""
        self._nudged.set()
        self._wake.set()

    async def run(self) -> None:
        """Resume from the journal, then follow assignments until cancelled."""
        await self._follow(Event(kind="resumed"))
        while True:
            await _waited(self._wake, self._rest_s())
            retry = not self._wake.is_set() or self._nudged.is_set()
            self._wake.clear()
            self._nudged.clear()
            event = self._request()
            if event is None and retry and self.state.phase == "FAILED" and self.state.passing:
                event = Event(kind="retried")
            await self._follow(event)

    # Deciding

    async def _follow(self, event: Event | None) -> None:
        while event is not None:
            outcome = await self._advance(event)
            self._answer_withdrawal()
            event = self._request() or outcome

    async def _advance(self, event: Event) -> Event | None:
        before = self.state
        state, effects = step(before, event)
        outcome: Event | None = None
        for effect in effects:
            if effect == "journal":
                try:
                    await asyncio.to_thread(journals.write, self._journal, state)
                except StoreError as e:
                    logger.error("the journal of %s cannot be written: %s", before.model, e.message)
                    if state.phase != "ROLLBACK":  # going back must not depend on the disk
                        self.state = stopped(state, e)
                        self._report()
                        return None
            self.state = state
            if effect == "report":
                self._report()
            elif effect != "journal":
                outcome = await self._perform(effect)
        return outcome

    def _request(self) -> Event | None:
        """What was asked from outside, if the machine can take it in this phase."""
        self._newer.clear()
        if self._withdrawal is not None and self.state.phase in RESTING:
            return self._withdrawn(*self._withdrawal)
        if self._pending is None:
            return None
        assignment, revision = self._pending
        kind = wanted(self.state, assignment, revision, self._active())
        if kind is None:
            self._pending = None
        elif (self.state.phase, kind) in TRANSITIONS:
            self._pending = None
            return Event(kind=kind, assignment=assignment, revision=revision)
        return None

    def _withdrawn(self, revision: int, done: "asyncio.Future[State]") -> Event | None:
        self._withdrawal = None
        if done.done():
            return None
        try:
            event = withdrawal(self._box.store, self.state.model, revision)
        except EdgeRTError as e:
            done.set_exception(e)
            return None
        self._withdrawing = done
        return event

    def _answer_withdrawal(self) -> None:
        if self._withdrawing is not None and self.state.phase == "FAILED":
            if not self._withdrawing.done():
                self._withdrawing.set_result(self.state)
            self._withdrawing = None

    def _rest_s(self) -> float | None:
        if self.state.phase != "FAILED" or not self.state.passing:
            return None
        return self._box.retry_s * min(60.0, 2.0 ** max(0, self.state.failures - 1))

    def _active(self) -> Slot | None:
        try:
            return self._box.store.active_slot(self.state.model)
        except StoreError as e:
            logger.error("%s", e.message)
            return None

    # Doing

    async def _perform(self, effect: Effect) -> Event | None:
        work: dict[Effect, Callable[[], Coroutine[Any, Any, Event]]] = {
            "check": self._check,
            "plan": self._plan,
            "download": self._download,
            "verify": self._verify,
            "stage": self._stage,
            "trial": self._trial,
            "switch": self._switch,
            "commit": self._commit,
            "rollback": self._rollback,
        }
        try:
            if effect in ("check", "download"):
                return await self._unless_newer(work[effect])
            return await work[effect]()
        except EdgeRTError as e:
            return outcome(self.state.phase, e)
        except (OSError, ValueError) as e:  # a file of ours that is not what we left
            logger.exception("update of %s: %s broke", self.state.model, self.state.phase)
            return outcome(self.state.phase, StoreError(f"{self.state.phase}: {e}", hint="check the disk of this box"))

    async def _unless_newer(self, work: Callable[[], Coroutine[Any, Any, Event]]) -> Event:
        """The result of `work`, which is dropped when a newer assignment comes in meanwhile."""
        task = asyncio.ensure_future(self._after_pause(work))
        newer = asyncio.ensure_future(self._newer.wait())
        try:
            await asyncio.wait({task, newer}, return_when=asyncio.FIRST_COMPLETED)
            return task.result() if task.done() else Event(kind="resumed")
        finally:
            for one in (task, newer):
                one.cancel()
            await asyncio.gather(task, newer, return_exceptions=True)

    async def _after_pause(self, work: Callable[[], Coroutine[Any, Any, Event]]) -> Event:
        if self.state.attempts:
            self._nudged.clear()
            pause_s = min(self._box.retry_s, 2.0 ** min(self.state.attempts - 1, 10))
            await _waited(self._nudged, pause_s * random.uniform(0.5, 1))  # noqa: S311 - jitter
        return await work()

    async def _check(self) -> Event:
        assignment = self._assignment()
        content = await self._box.authority.image(assignment)
        await asyncio.to_thread(self._box.store.add, content)
        image = parse_image(content)
        size = image.config.size
        if size > _MANIFEST_LIMIT_BYTES:
            raise BundleError(
                f"the manifest of {assignment.model} claims {size} bytes", hint="publish a bundle with fewer words"
            )
        if not self._box.store.has(image.config.digest):
            data = await self._box.blobs.fetch_bytes(image.config.digest, limit_bytes=size)
            if len(data) != size or digest_of(data) != image.config.digest:
                raise BundleError(
                    f"the manifest of {assignment.model} {assignment.version} arrived damaged",
                    hint="the sender or the way damaged it",
                )
            await asyncio.to_thread(self._box.store.add, data)
        return Event(kind="passed")

    async def _plan(self) -> Event:
        assignment, store = self._assignment(), self._box.store
        image = self._image()
        try:
            manifest = Manifest.model_validate_json(store.read(image.config.digest))
        except ValidationError as e:
            raise BundleError(
                f"the manifest of {assignment.model} {assignment.version} cannot be understood",
                hint="it may have been made by a newer EdgeRT",
            ) from e
        lacking = plan.missing(image, [digest for digest in image.blobs() if store.has(digest)])
        here = sum(_disk_bytes(store.partial(digest)) for digest in lacking)
        fit = plan.Fit(self._box.profiles, self._box.socs, store.free_bytes(), self._box.model_bytes)
        plan.check(assignment, manifest, max(0, sum(lacking.values()) - here), fit)
        return Event(kind="passed")

    async def _download(self) -> Event:
        sizes = self._image().blobs()
        total, before = sum(sizes.values()), 0
        for digest, size in sizes.items():
            if not self._box.store.has(digest):
                told = partial(self._progress, before, total)
                await self._box.blobs.fetch_blob(self._box.store, digest, size, progress=told)
            before += size
        return Event(kind="passed")

    async def _verify(self) -> Event:
        damaged = await asyncio.to_thread(self._damaged)
        if damaged:
            raise BundleError(f"blob {damaged[0]} on this disk is damaged", hint="it is fetched again; check the disk")
        Bundle.load(self._box.store, self._assignment().digest)
        return Event(kind="passed")

    async def _stage(self) -> Event:
        assignment, store = self._assignment(), self._box.store
        back = store.active(assignment.model)
        slot = Slot(digest=assignment.digest, version=assignment.version)
        name = await asyncio.to_thread(store.stage, assignment.model, slot)
        return Event(kind="passed", slot=name, back=back)

    async def _trial(self) -> Event:
        assignment = self._assignment()
        bundle = Bundle.load(self._box.store, assignment.digest)
        verdict = await asyncio.to_thread(self._box.trial, self._box.store, bundle)
        if verdict.passed:
            return Event(kind="passed")
        return Event(
            kind="failed",
            error=f"the trial of {assignment.model} {assignment.version} failed ({verdict.stage}): {verdict.reason}",
            hint="the bundle does not work on this box; convert it again for this profile",
        )

    async def _switch(self) -> Event:
        assignment = self._assignment()
        if self.state.slot is None:
            raise FaultError(f"nothing was staged for {assignment.model}", hint="roll the release out again")
        await asyncio.to_thread(self._box.store.switch, assignment.model, self.state.slot)
        await self._box.loader.load(assignment.model, assignment.version, assignment.digest)
        logger.info("activated %s %s in slot %s", assignment.model, assignment.version, self.state.slot)
        return Event(kind="passed")

    async def _commit(self) -> Event:
        self._box.activated(self.state.model)
        try:
            await self._tidy()
        except (EdgeRTError, OSError, ValueError) as e:  # the new version answers: only room on the disk is lost
            logger.warning("what no slot of this box needs could not be removed: %s", e)
        return Event(kind="passed")

    async def _rollback(self) -> Event:
        model, store = self.state.model, self._box.store
        if self.state.back is not None and store.active(model) != self.state.back:
            await asyncio.to_thread(store.switch, model, self.state.back)
            slot = store.active_slot(model)
            if slot is None:
                raise StoreError(f"slot {self.state.back} of {model} is empty", hint="roll out any release of it")
            await self._box.loader.load(model, slot.version, slot.digest)
            logger.warning("%s went back to version %s in slot %s", model, slot.version, self.state.back)
            self._box.activated(model)
        return Event(kind="passed")

    # Parts

    def _assignment(self) -> Assignment:
        if self.state.assignment is None:
            raise FaultError(
                f"the journal of {self.state.model} names no assignment", hint="roll the release out again"
            )
        return self.state.assignment

    def _image(self) -> Image:
        return parse_image(self._box.store.read(self._assignment().digest))

    def _damaged(self) -> list[str]:
        store = self._box.store
        found = []
        for digest, size in self._image().blobs().items():
            path = store.path(digest)
            try:
                good = path.stat().st_size == size and digest_file(path) == digest
            except OSError:
                good = False
            if not good:
                path.unlink(missing_ok=True)
                found.append(digest)
        return found

    def _progress(self, before: int, total: int, done: int, _: int) -> None:
        done += before
        now = self._box.clock.monotonic()
        if now - self._told_s >= _PROGRESS_EVERY_S or done == total:
            self._told_s = now
            self._box.tell(self._event(done, total))

    def _report(self) -> None:
        if self.state.error:
            logger.warning("update of %s: %s, %s", self.state.model, self.state.phase, self.state.error)
        else:
            logger.info("update of %s: %s", self.state.model, self.state.phase)
        self._box.tell(self._event(0, 0))
        self._box.changed()

    def _event(self, done: int, total: int) -> device.Event:
        state = self.state
        return device.Event(
            model=state.model,
            version=0 if state.assignment is None else state.assignment.version,
            revision=state.revision,
            phase=state.phase,
            done_bytes=done,
            total_bytes=total,
            error=state.error,
            hint=state.hint,
        )


async def _waited(event: asyncio.Event, longest_s: float | None) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(longest_s):
            await event.wait()


def _disk_bytes(path: Path) -> int:
    try:
        return path.stat().st_blocks * 512
    except OSError:
        return 0
