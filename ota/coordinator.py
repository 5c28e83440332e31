"""The shell around federated jobs: hears participants, fetches their updates, averages, rebuilds, publishes.

What to do is decided by `edgert.federated.round`; the state is written down before anything of it is done, so that a
killed server goes on with the same job (a round that was under way gets its whole time again).
"""

import asyncio
import logging
import shutil
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Final

from edgert.envelope import JOB_TYPE, sign
from edgert.errors import (
    BundleError,
    CheckError,
    EdgeRTError,
    LinkError,
    MessageError,
    StoreError,
    UsageError,
    WireError,
)
from edgert.federated import job as words
from edgert.federated.job import FINAL, Contribution, Effect, Event, Job, Phase
from edgert.federated.plan import Plan
from edgert.federated.round import step
from edgert.wire import topics
from edgert.wire.link import Fetcher, Link
from edgert.wire.messages.blob import Done, Get
from edgert.wire.messages.federated import Decline, Invite, Join, Offer, RoundOver, decode_up
from edgert.wire.transports.base import Delivery
from ota import keys
from ota.fleet import Fleet
from ota.operations.actor import job_actor
from ota.operations.release import publish
from ota.operations.spread import rollout_start
from ota.rebuild import Rebuilder, gate, rebuild
from ota.store import BundleRow, devices, jobs, releases
from ota.turns import Inbox
from ota.updates import Updates, excess

__all__ = ["Coordinator"]

logger = logging.getLogger(__name__)

_FAILED: Final = "the server failed at this job: its log says how"


class Coordinator:
    """Runs every job that is not finished.

    Args:
        fleet: the database, the stores, the keys.
        link: to the broker.
        rebuilder: turns a Source and weights into a bundle.
    """

    def __init__(self, fleet: Fleet, link: Link, rebuilder: Rebuilder = rebuild) -> None:
        self._fleet = fleet
        self._link = link
        self._rebuilder = rebuilder
        self._runs: dict[str, _Run] = {}
        self._fetchers: dict[str, Fetcher] = {}
        self._new: asyncio.Queue[_Run] = asyncio.Queue()
        fleet.home.updates.mkdir(mode=0o700, exist_ok=True)

    async def run(self) -> None:
        """Run jobs until cancelled."""
        async with asyncio.TaskGroup() as group:
            while True:
                run = await self._new.get()
                group.create_task(self._supervised(run), name=f"job {run.name}")

    async def reconcile(self, *, everything: bool) -> None:
        """Take up jobs that nobody runs yet.

        Args:
            everything: the broker may have lost what it kept.
        """
        if everything:
            for run in self._runs.values():
                run.put(words.Reconnected())
        for name, stopped_by, able in await asyncio.to_thread(self._unfinished):
            if name not in self._runs:
                self._runs[name] = run = _Run(name, self._fleet, self._link, self._fetcher, self._rebuilder)
                self._new.put_nowait(run)
            self._runs[name].able = able
            if stopped_by:
                self._runs[name].stop(stopped_by)

    def deliver(self, delivery: Delivery) -> None:
        """Hand in one frame of an update (``d/{id}/put``)."""
        try:
            device, _ = topics.device_of(delivery.topic)
        except MessageError:
            return
        fetcher = self._fetchers.get(device)
        if fetcher is not None:
            fetcher.deliver(delivery.payload)

    def hear(self, delivery: Delivery) -> None:
        """Take in what a participant says (``d/{id}/fl/out``); who it is comes from the topic."""
        try:
            device, _ = topics.device_of(delivery.topic)
            message = decode_up(delivery.payload)
        except MessageError as e:
            logger.warning("ignored a message on %s: %s", delivery.topic, e)
            return
        run = self._runs.get(message.job)
        if run is None:
            logger.debug("ignored a message of %s for job %s, which does not run", device, message.job)
        else:
            run.hear(device, message)

    async def _supervised(self, run: "_Run") -> None:
        try:
            await run.run()
        except Exception:
            logger.exception("job %s failed", run.name)
            await run.give_up()
        finally:
            self._runs.pop(run.name, None)

    def _fetcher(self, device: str) -> Fetcher:
        async def ask(get: Get) -> None:
            await self._link.send(topics.device(device, "ack"), get)

        return self._fetchers.setdefault(device, Fetcher(ask, self._link.clock))

    def _unfinished(self) -> list[tuple[str, str, frozenset[str]]]:
        with self._fleet.database.read() as session:
            return [
                (row.name, row.stopped_by, devices.names_of_model(session, Plan.model_validate_json(row.plan).base))
                for row in jobs.outside(session, [phase.value for phase in FINAL])
            ]


def _event(device: str, message: Join | Offer | Decline) -> Event:
    if isinstance(message, Join):
        return words.Joined(device)
    if isinstance(message, Decline):
        return words.Declined(device, message.round, message.reason)
    contribution = Contribution(
        digest=message.update, size_bytes=message.update_bytes, examples=message.examples, loss=message.loss
    )
    return words.Offered(device, message.round, contribution)


class _Run:
    """One job: an inbox of events, a state, and the tasks its effects have started.

    `able` are the devices that are to serve the job's base bundle; nobody else is heard.
    """

    def __init__(
        self, name: str, fleet: Fleet, link: Link, fetcher: Callable[[str], Fetcher], rebuilder: Rebuilder
    ) -> None:
        self.name = name
        self._fleet = fleet
        self._link = link
        self._fetcher = fetcher
        self._rebuilder = rebuilder
        self.able: frozenset[str] = frozenset()
        self._inbox = Inbox(name, fleet.clock)
        self._joined_with: dict[str, int] = {}
        self._updates = Updates(fleet.home.updates / name, fleet.store)
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._timed_round = -1
        self._deadline_s = 0.0
        self._asked_to_stop = False

    def stop(self, who: str) -> None:
        """Let an operator's wish to end it wait for its turn, once."""
        if not self._asked_to_stop:
            self.put(words.Stopped(f"stopped by {who}"))
            self._asked_to_stop = True

    def put(self, event: Event) -> None:
        """Let an event of the server itself wait for its turn."""
        self._inbox.put(event)

    def hear(self, device: str, message: Join | Offer | Decline) -> None:
        """Let what a device says wait for its turn, if the device may take part."""
        if device not in self.able:
            logger.debug("job %s: ignored %s, which is not to serve its base bundle", self.name, device)
            return
        if isinstance(message, Join):
            self._joined_with[device] = message.examples
        elif isinstance(message, Offer):
            most = self._joined_with.get(device, message.examples)
            message = message.model_copy(update={"examples": min(message.examples, most)})
        self._inbox.put_of(device, _event(device, message))

    async def run(self) -> None:
        """Go on with the job until it is published or aborted."""
        self._plan, self._job = await asyncio.to_thread(self._load)
        self.put(words.Started() if self._job.phase is Phase.PLANNED else words.Resumed())
        try:
            async with asyncio.TaskGroup() as self._group:
                while self._job.phase not in FINAL:
                    await self._take(*await self._inbox.take())
                for task in self._tasks.values():
                    task.cancel()
        finally:
            if self._job.phase in FINAL:
                await asyncio.to_thread(self._clean_up)

    async def give_up(self) -> None:
        """End a job at which the server itself failed.

        Raises:
            StoreError: not even that can be written down.
        """
        await asyncio.to_thread(self._abort)
        await asyncio.to_thread(self._clean_up)
        try:
            await self._perform(words.Withdraw())
        except LinkError as e:
            logger.warning("job %s: could not take back its announcement: %s", self.name, e)

    async def _take(self, device: str, event: Event) -> None:
        try:
            effects = await self._decide(event)
        except UsageError as e:
            logger.log(logging.DEBUG if device else logging.WARNING, "job %s: %s", self.name, e)
            return
        except Exception:
            if not device:
                raise
            logger.exception("job %s: ignored what %s said", self.name, device)
            return
        for effect in effects:
            try:
                await self._perform(effect)
            except LinkError as e:
                logger.warning("job %s: could not %s: %s", self.name, type(effect).__name__.lower(), e)

    async def _decide(self, event: Event) -> list[Effect]:
        after, effects = step(self._job, event)
        if after != self._job:
            await asyncio.to_thread(self._save, after)
        if after.phase is not self._job.phase:
            logger.info("job %s: %s%s", self.name, after.phase, f" ({after.reason})" if after.reason else "")
        self._job = after
        return effects

    async def _perform(self, effect: Effect) -> None:
        match effect:
            case words.Announce():
                key = keys.envelope_key(self._fleet.home.keys, "federation")
                envelope = sign(JOB_TYPE, self._plan.encode(), key)
                await self._link.send_raw(topics.job(self.name), envelope, retain=True)
            case words.Withdraw():
                await self._link.send_raw(topics.job(self.name), b"", retain=True)
            case words.StartTimer(number):
                self._start_timer(number)
            case words.Invite(device):
                await self._link.send(topics.device(device, "fl/in"), self._invitation())
            case words.Fetch(device, contribution):
                self._stop(f"fetch {device}")
                self._start(f"fetch {device}", self._fetch(device, contribution, self._job))
            case words.Confirm(device, digest):
                await self._link.send(topics.device(device, "ack"), Done(name=digest))
            case words.Close(device, number):
                self._stop(f"fetch {device}")
                await self._link.send(topics.device(device, "fl/in"), RoundOver(job=self.name, round=number))
            case words.Average():
                self._start("average", self._ended_by_errors(self._average(self._job)))
            case words.Rebuild():
                self._start("rebuild", self._ended_by_errors(self._rebuild()))
            case words.Publish():
                self._start("publish", self._ended_by_errors(self._publish()))

    def _start(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        if name in self._tasks and not self._tasks[name].done():
            work.close()
            return
        self._tasks[name] = self._group.create_task(work, name=f"job {self.name}: {name}")

    def _stop(self, name: str) -> None:
        task = self._tasks.pop(name, None)
        if task is not None:
            task.cancel()

    def _start_timer(self, number: int) -> None:
        if number != self._timed_round:
            self._timed_round = number
            self._deadline_s = self._fleet.clock.monotonic() + self._plan.deadline_s
            self._stop("timer")
            self._start("timer", self._wait(number))

    async def _wait(self, number: int) -> None:
        await asyncio.sleep(self._plan.deadline_s)
        self.put(words.Deadline(number))

    def _invitation(self) -> Invite:
        return Invite(
            job=self.name,
            round=self._job.round,
            weights=self._job.weights,
            weights_bytes=self._job.weights_bytes,
            deadline_s=max(0.1, self._deadline_s - self._fleet.clock.monotonic()),
        )

    async def _fetch(self, device: str, part: Contribution, job: Job) -> None:
        fault = excess(part, job)
        if fault:
            self.put(words.Refused(device, part.digest, fault))
            return
        try:
            store = await asyncio.to_thread(self._updates.shelf, device, part.digest)
            await self._fetcher(device).fetch_blob(store, part.digest, part.size_bytes)
        except (WireError, StoreError) as e:
            logger.warning("job %s: the update of %s did not arrive: %s", self.name, device, e)
            self.put(words.Lost(device, part.digest))
        except BundleError as e:
            self.put(words.Refused(device, part.digest, e.message))
        except Exception:
            logger.exception("job %s: lost the update of %s", self.name, device)
            self.put(words.Lost(device, part.digest))
        else:
            fault = await asyncio.to_thread(self._updates.fault, device, part, job)
            refused = words.Refused(device, part.digest, fault)
            self.put(refused if fault else words.Received(device, part.digest))

    async def _ended_by_errors(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except EdgeRTError as e:
            self.put(words.Aborted(f"{e.message} ({e.hint})" if e.hint else e.message))
        except OSError as e:
            self.put(words.Aborted(f"the disk of the server failed: {e}"))
        except Exception:
            logger.exception("job %s failed", self.name)
            self.put(words.Aborted(_FAILED))

    async def _average(self, job: Job) -> None:
        def average() -> words.Averaged:
            packed = self._updates.mean(self._plan.aggregator, job)
            return words.Averaged(self._fleet.store.add(packed), len(packed))

        self.put(await asyncio.to_thread(average))

    async def _rebuild(self) -> None:
        folder = self._folder()
        if folder.exists():
            await asyncio.to_thread(shutil.rmtree, folder)
        folder.mkdir(mode=0o700, parents=True)
        settings = self._fleet.home.settings
        weights = folder / "weights.npz"
        await asyncio.to_thread(shutil.copyfile, self._fleet.store.path(self._job.weights), weights)
        worst = 1.0
        for base in await asyncio.to_thread(self._base_bundles):
            if base.source is None or base.accuracy is None:
                raise CheckError(
                    f"the bundle for {base.profile} cannot be rebuilt or judged",
                    hint="publish it with a source that has labelled evaluation samples",
                )
            rebuilt = await self._rebuilder(
                self._fleet.sources.get(base.source),
                weights,
                folder / f"{base.profile}.edgert",
                timeout_s=settings.rebuild_timeout_s,
            )
            gate(rebuilt.accuracy, base.accuracy, settings.gate_points)
            worst = min(worst, rebuilt.accuracy)
        await asyncio.to_thread(self._note, accuracy=worst)
        self.put(words.Passed())

    async def _publish(self) -> None:
        version, rollout = await asyncio.to_thread(self._release)
        await asyncio.to_thread(self._note, release_version=version, rollout=rollout)
        self.put(words.Published())

    # In a thread

    def _release(self) -> tuple[int, int]:
        actor = job_actor(self.name)
        with self._fleet.database.read() as session:
            made = releases.of_job(session, self.name)
            profiles = {row.profile for row in self._base_bundles()}
            names = [
                row.id
                for row in devices.every(session)
                if row.profile in profiles and any(part.model == self._plan.model for part in row.assignments)
            ]
        if made is None:
            bundles = sorted(self._folder().glob("*.edgert"))
            version = int(publish(self._fleet, actor, bundles, job=self.name)["version"])
        else:
            version = made.version
        rollout = rollout_start(self._fleet, actor, self._plan.model, version=version, names=names)
        return version, int(rollout["rollout"])

    def _base_bundles(self) -> list[BundleRow]:
        with self._fleet.database.read() as session:
            row = jobs.get(session, self.name)
            return list(releases.get(session, row.model, row.base_version).bundles)

    def _load(self) -> tuple[Plan, Job]:
        with self._fleet.database.read() as session:
            row = jobs.get(session, self.name)
            return Plan.model_validate_json(row.plan), Job.model_validate_json(row.state)

    def _save(self, job: Job) -> None:
        with self._fleet.database.write() as session:
            row = jobs.get(session, self.name)
            row.state, row.phase, row.reason = job.model_dump_json(), job.phase.value, job.reason

    def _abort(self) -> None:
        _, job = self._load()
        self._save(job.model_copy(update={"phase": Phase.ABORTED, "reason": _FAILED}))

    def _note(self, **values: float) -> None:
        with self._fleet.database.write() as session:
            row = jobs.get(session, self.name)
            for name, value in values.items():
                setattr(row, name, value)

    def _folder(self) -> Path:
        return self._fleet.home.work / self.name

    def _clean_up(self) -> None:
        self._updates.drop()
        shutil.rmtree(self._folder(), ignore_errors=True)
