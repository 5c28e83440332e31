"""A box without network or child processes: the real update shell over a store, with a fleet that hands over bytes."""

import asyncio
from collections.abc import Callable
from pathlib import Path

from agents.update.box import Box
from agents.update.execute import Updater
from agents.update.machine import RESTING, State
from edgert.bundle import Bundle
from edgert.errors import EdgeRTError, ServeError
from edgert.store import Slot, Store
from edgert.trial import Verdict
from edgert.wire.fleet import bundle_target
from edgert.wire.messages.device import Event
from edgert.wire.twin import Assignment
from tests.support.models import bundle_file, mlp

__all__ = ["MODEL", "PROFILE", "Fleet", "PowerCut", "Serving", "TestBox", "following", "rested", "verdict"]

MODEL, PROFILE = "tiny", "generic-cpu"


class PowerCut(BaseException):
    """The box is gone from here on."""


class Fleet:
    """Two releases of one model, and the half of the wire that hands them over.

    Args:
        folder: for the bundles.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.store = Store(folder / "server")
        self.assignments: dict[int, Assignment] = {}
        self.trouble: dict[str, EdgeRTError] = {}
        self.asked: list[str] = []
        for version in (1, 2):
            path = bundle_file(folder / f"{version}.edgert", model=mlp(version).SerializeToString())
            bundle = Bundle.open(path)
            self.store.ingest(bundle)
            self.assignments[version] = Assignment(
                model=MODEL,
                version=version,
                target=bundle_target(MODEL, version, PROFILE),
                digest=bundle.digest,
                size_bytes=len(self.store.read(bundle.digest)),
            )

    def bundle(self, version: int) -> Bundle:
        return Bundle.load(self.store, self.assignments[version].digest)

    def slot(self, version: int) -> Slot:
        return Slot(digest=self.assignments[version].digest, version=version)

    def _note(self, name: str) -> None:
        self.asked.append(name)
        error = self.trouble.pop(name, None) or self.trouble.pop("*", None)
        if error is not None:
            raise error

    # As `agents.update.box` wants it

    async def image(self, assignment: Assignment) -> bytes:
        self._note("image")
        return self.store.read(assignment.digest)

    async def fetch_bytes(self, name: str, *, limit_bytes: int, deadline_s: float = 30) -> bytes:
        self._note("bytes")
        return self.store.read(name)

    async def fetch_blob(
        self,
        store: Store,
        digest: str,
        size_bytes: int,
        *,
        progress: Callable[[int, int], None] | None = None,
        deadline_s: float | None = None,
    ) -> None:
        self._note("blob")
        store.partial(digest).write_bytes(self.store.read(digest))
        store.adopt(digest)
        if progress is not None:
            progress(size_bytes, size_bytes)


class Serving:
    """Remembers what answers; versions in `broken` cannot be loaded."""

    def __init__(self) -> None:
        self.answers: dict[str, int] = {}
        self.broken: set[int] = set()

    async def load(self, model: str, version: int, digest: str) -> None:
        if version in self.broken:
            raise ServeError(f"version {version} cannot be loaded", hint="convert it again")
        self.answers[model] = version


class TestBox:
    """One box: its folder outlives every `Updater` made from it.

    Args:
        tell: sees every phase after it was journalled and before its effect; may raise `PowerCut`.
        trial: the verdict on a bundle.
    """

    __test__ = False

    def __init__(
        self,
        folder: Path,
        fleet: Fleet,
        *,
        tell: Callable[[Event], None] = lambda event: None,
        trial: Callable[[Store, Bundle], Verdict] | None = None,
        retry_s: float = 0.001,
        profiles: tuple[str, ...] = (PROFILE,),
    ) -> None:
        self.folder = folder
        self.fleet = fleet
        self.store = Store(folder / "store")
        self.journal = folder / "journal" / f"{MODEL}.json"
        self.journal.parent.mkdir(parents=True, exist_ok=True)
        self.serving = Serving()
        self.phases: list[str] = []
        self.events: list[Event] = []
        self.changed = asyncio.Event()

        def note(event: Event) -> None:
            self.events.append(event)
            if not self.phases or self.phases[-1] != event.phase:
                self.phases.append(event.phase)
            tell(event)

        self.box = Box(
            store=self.store,
            authority=fleet,
            blobs=fleet,
            loader=self.serving,
            trial=trial or (lambda store, bundle: verdict(True)),
            profiles=profiles,
            tell=note,
            changed=self.changed.set,
            retry_s=retry_s,
        )

    def install(self, version: int) -> None:
        """Let a version be the active one, as after an earlier update."""
        self.store.ingest(self.fleet.bundle(version))
        self.store.switch(MODEL, self.store.stage(MODEL, self.fleet.slot(version)))
        self.serving.answers[MODEL] = version

    def boot(self) -> None:
        """What the supervisor does first: answer from the active slot."""
        active = self.store.active_slot(MODEL)
        if active is not None and active.version not in self.serving.broken:
            self.serving.answers[MODEL] = active.version

    def updater(self) -> Updater:
        async def tidy() -> None:
            self.store.collect()

        return Updater(MODEL, self.box, self.journal, tidy)

    def version(self) -> int:
        """Of the active slot, whose bundle must be whole; 0 when there is none."""
        active = self.store.active_slot(MODEL)
        if active is None:
            return 0
        bundle = Bundle.load(self.store, active.digest)
        for artifact in bundle.manifest.artifacts:
            bundle.read(artifact)
        return active.version


async def rested(box: TestBox, updater: Updater, enough: Callable[[State], bool] = lambda state: True) -> State:
    """Run the machine until nothing is under way and `enough` says so; raises what ended it."""
    task = asyncio.ensure_future(updater.run())
    try:
        async with asyncio.timeout(5):
            while True:
                box.changed.clear()
                waiting = asyncio.ensure_future(box.changed.wait())
                await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
                waiting.cancel()
                if task.done():
                    task.result()
                if updater.state.phase in RESTING and enough(updater.state):
                    await asyncio.sleep(0)
                    return updater.state
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def following(box: TestBox, version: int, revision: int = 1) -> State:
    """Boot, assign a version, and run until the machine rests on that revision."""
    box.boot()
    updater = box.updater()
    updater.assign(box.fleet.assignments[version], revision)
    return await rested(box, updater, lambda state: state.revision == revision)


def verdict(passed: bool, reason: str = "") -> Verdict:
    """What a trial says."""
    return Verdict(label=MODEL, passed=passed, stage="done" if passed else "golden", reason=reason)
