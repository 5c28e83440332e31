"""The box's half of a federated job: join, train when invited, offer the update until the coordinator has it.

Only a plan that a fleet key signed is followed, only for the bundle that answers here, only with local examples; in
any other case the box is quiet. Examples stay where they are: differences of weights leave the box, and their number.
"""

import asyncio
import hashlib
import logging
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Protocol

from agents import examples, training
from agents.offers import Offers
from agents.update.box import Blobs, Keys
from edgert.bundle import Bundle
from edgert.clock import Clock
from edgert.envelope import JOB_TYPE, verify
from edgert.errors import BundleError, EdgeRTError, LinkError, MessageError, RefusedError
from edgert.federated.plan import Plan
from edgert.manifest import Manifest
from edgert.store import Store
from edgert.wire import topics
from edgert.wire.chunks import answer
from edgert.wire.messages.base import Message
from edgert.wire.messages.blob import Done, Get
from edgert.wire.messages.federated import Decline, Invite, Join, RoundOver, decode_down
from edgert.wire.transports.base import Delivery

__all__ = ["Participant", "Talk"]

logger = logging.getLogger(__name__)


_ROOM_BYTES = 1 << 20
_EARLY_LIMIT = 64
_TODO_LIMIT = 256


class Talk(Protocol):
    """The way to the coordinator (`agents.uplink`)."""

    @property
    def fetcher(self) -> Blobs: ...

    async def send(self, leaf: str, message: Message) -> None: ...

    async def send_frame(self, payload: bytes) -> None: ...


class Participant:
    """See the module.

    Args:
        device: our name.
        store: of the bundles that answer.
        folder: keeps updates on offer.
        folders: local examples per model.
        proven: the time to judge expiry with.
        memory_bytes: of the training child.
    """

    def __init__(
        self,
        device: str,
        keys: Keys,
        store: Store,
        folder: Path,
        folders: Mapping[str, Path],
        talk: Talk,
        *,
        clock: Clock,
        proven: Callable[[], datetime],
        memory_bytes: int = 1 << 30,
    ) -> None:
        self._device = device
        self._keys = keys
        self._store = store
        self._folder = folder
        self._folders = folders
        self._talk = talk
        self._clock = clock
        self._proven = proven
        self._memory_bytes = memory_bytes
        self._offers = Offers(folder)
        self._plans: dict[str, Plan] = {}
        self._joined: set[str] = set()
        self._early: dict[str, Invite] = {}
        self._todo: asyncio.Queue[Plan | Invite] = asyncio.Queue()
        self._now: tuple[Invite, asyncio.Task[None]] | None = None
        self._asked_again = False

    # What arrives

    async def take_job(self, delivery: Delivery) -> None:
        """A federated job was announced, or (empty) taken back.

        Raises:
            RefusedError: nobody who may announced it.
            MessageError: it cannot be understood.
            WireError: the fleet's keys cannot be had.
        """
        job = delivery.topic.rpartition("/")[2]
        if not delivery.payload:
            self._plans.pop(job, None)
            self._joined.discard(job)
            self._over(job, None)
            return
        plan = Plan.decode(await self._verified(delivery.payload))
        if topics.job(plan.job) != delivery.topic:
            raise RefusedError(
                f"the plan of job {plan.job} was announced as {job[:80]}", hint="somebody repeats what is not theirs"
            )
        if self._proven() >= plan.expires:
            logger.info("job %s is over", plan.job)
            return
        self._plans[plan.job] = plan
        self._todo.put_nowait(plan)

    async def take_round(self, delivery: Delivery) -> None:
        """The coordinator invites to a round, or ends one.

        Raises:
            MessageError: it cannot be understood.
            RefusedError: too many wait already.
        """
        message = decode_down(delivery.payload)
        if isinstance(message, RoundOver):
            self._over(message.job, message.round)
        elif message.job not in self._plans:
            self._early.pop(message.job, None)
            self._early[message.job] = message
            while len(self._early) > _EARLY_LIMIT:
                del self._early[next(iter(self._early))]
        elif self._now is not None and self._now[0] == message:
            self._asked_again = True
        else:
            if self._now is not None and self._now[0].job == message.job:
                self._now[1].cancel()
            if self._todo.qsize() >= _TODO_LIMIT:
                raise RefusedError(
                    f"too many invitations wait; the one of job {message.job} was left out",
                    hint="somebody may stand in the coordinator's place",
                )
            self._todo.put_nowait(message)

    async def take_request(self, delivery: Delivery) -> None:
        """The server asks for a range of an update, or has all of it.

        Raises:
            MessageError: it cannot be understood.
            LinkError: the answer cannot be sent.
        """
        try:
            get = Get.decode(delivery.payload)
        except MessageError:
            self._offers.arrived(Done.decode(delivery.payload).name)
            return
        frame = await asyncio.to_thread(answer, get, self._offers)
        await self._talk.send_frame(frame.encode())

    async def connected(self) -> None:
        """Offer again what the coordinator may not have heard of.

        Raises:
            LinkError: the connection is gone again.
        """
        self._offers.expire(self._proven())
        for offer in self._offers.all():
            await self._talk.send("fl/out", offer)

    def activated(self, model: str) -> None:
        """Another bundle answers: a job that waits for it may be joined now."""
        for plan in self._plans.values():
            if plan.model == model:
                self._todo.put_nowait(plan)

    # What is done

    async def run(self) -> None:
        """Join and train, one thing at a time, until cancelled."""
        while True:
            item = await self._todo.get()
            try:
                if isinstance(item, Plan):
                    await self._join(item)
                else:
                    await self._round(item)
            except EdgeRTError as e:
                logger.warning("job %s: %s", item.job, e.message)

    async def _join(self, plan: Plan) -> None:
        if self._plans.get(plan.job) != plan or self._proven() >= plan.expires or self._bundle(plan) is None:
            return
        number = await asyncio.to_thread(examples.count, self._folders[plan.model])
        if number < 1:
            return
        self._joined.add(plan.job)
        await self._talk.send("fl/out", Join(job=plan.job, examples=number))
        logger.info("joined job %s with %s examples", plan.job, number)
        early = self._early.pop(plan.job, None)
        if early is not None:
            self._todo.put_nowait(early)

    async def _round(self, invite: Invite) -> None:
        plan = self._plans.get(invite.job)
        if plan is None or plan.job not in self._joined:
            return
        if self._proven() >= plan.expires or invite.round > plan.rounds:
            return
        self._asked_again = False
        task = asyncio.ensure_future(self._take_part(plan, invite))
        self._now = (invite, task)
        try:
            await asyncio.wait({task})
            if task.cancelled():
                logger.info("round %s of job %s went on without us", invite.round, invite.job)
                return
            task.result()
            offer = self._offers.find(invite)
            if self._asked_again and offer is not None:
                await self._talk.send("fl/out", offer)
        except LinkError as e:
            logger.warning("round %s of job %s: %s", invite.round, invite.job, e.message)
        except EdgeRTError as e:
            logger.warning("round %s of job %s: %s", invite.round, invite.job, e.message)
            reason = f"{type(e).__name__} on this box; its log says more"
            await self._talk.send("fl/out", Decline(job=invite.job, round=invite.round, reason=reason))
        finally:
            self._now = None
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _take_part(self, plan: Plan, invite: Invite) -> None:
        offer = self._offers.find(invite)
        if offer is None:
            bundle = self._bundle(plan)
            if bundle is None:
                raise RefusedError(
                    f"{plan.model} no longer answers from the bundle of job {plan.job}",
                    hint="start a new job for the bundle that answers",
                )
            deadline = self._clock.monotonic() + min(plan.deadline_s, invite.deadline_s)
            weights = await self._weights(bundle, invite, deadline)
            task = self._task(plan, invite, bundle, weights, deadline)
            result = await training.run(task)
            update = await asyncio.to_thread(task.update.read_bytes)
            offer = self._offers.keep(invite, update, examples=result.examples, loss=result.loss, expires=plan.expires)
            task.update.unlink(missing_ok=True)
            if weights.is_relative_to(self._folder):
                weights.unlink(missing_ok=True)
        await self._talk.send("fl/out", offer)
        logger.info("offered the update of round %s of job %s", invite.round, invite.job)

    async def _weights(self, bundle: Bundle, invite: Invite, deadline: float) -> Path:
        """The file of the weights to start from: the bundle's own, or the coordinator's."""
        ours = bundle.require("weights")
        if ours.digest == invite.weights:
            return self._store.path(invite.weights)
        if invite.weights_bytes > 2 * ours.size_bytes + _ROOM_BYTES:
            raise RefusedError(
                f"job {invite.job} names weights of {invite.weights_bytes} bytes, our own have {ours.size_bytes}",
                hint="invitations are not signed: who may publish to this box's fl/in?",
            )
        own = self._offers.store
        await asyncio.to_thread(self._offers.make_room, invite.weights)
        left_s = max(0.0, deadline - self._clock.monotonic())
        await self._talk.fetcher.fetch_blob(own, invite.weights, invite.weights_bytes, deadline_s=left_s)
        return own.path(invite.weights)

    def _task(self, plan: Plan, invite: Invite, bundle: Bundle, weights: Path, deadline: float) -> training.Task:
        manifest = bundle.manifest
        if manifest.training is None:
            raise BundleError(
                f"the bundle of {plan.model} cannot be trained", hint="convert the model with a training recipe"
            )
        ours = int.from_bytes(hashlib.sha256(self._device.encode()).digest()[:8])
        return training.Task(
            graph=self._store.path(bundle.require("train").digest).absolute(),
            training=manifest.training,
            weights=weights.absolute(),
            examples=self._folders[plan.model].absolute(),
            inputs=manifest.inputs,
            local=plan.local,
            seed=(invite.round, ours),
            update=(self._folder / f"{plan.job}.update").absolute(),
            memory_bytes=self._memory_bytes,
            deadline_s=max(0.1, deadline - self._clock.monotonic()),
        )

    # Parts

    def _bundle(self, plan: Plan) -> Bundle | None:
        """The bundle of the plan, if it answers here and can be trained here."""
        slot = self._store.active_slot(plan.model)
        if slot is None or slot.digest != plan.base or plan.model not in self._folders:
            return None
        bundle = self._store.bundle(slot)
        return bundle if _trainable(bundle.manifest) else None

    def _over(self, job: str, up_to: int | None) -> None:
        self._offers.drop(job, up_to)
        early = self._early.get(job)
        if early is not None and (up_to is None or early.round <= up_to):
            del self._early[job]
        if self._now is not None and self._now[0].job == job and (up_to is None or self._now[0].round <= up_to):
            self._now[1].cancel()

    async def _verified(self, payload: bytes) -> bytes:
        keys = await self._keys.known_keys()
        try:
            return verify(payload, JOB_TYPE, keys.for_federation())
        except RefusedError:
            keys = await self._keys.fleet_keys()  # the key may be newer than our last look
            return verify(payload, JOB_TYPE, keys.for_federation())


def _trainable(manifest: Manifest) -> bool:
    return (
        manifest.training is not None
        and manifest.artifact("train") is not None
        and manifest.artifact("weights") is not None
    )
