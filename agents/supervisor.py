"""Owns everything on the box: the inference child, the way to the fleet, the update machines, the participant.

The box answers from its active slots before the broker is looked for, and goes on when any of the others breaks.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from datetime import datetime
from functools import partial

from agents.config import AgentConfig
from agents.control import Control
from agents.enroll import Identity, Transports
from agents.participant import Participant
from agents.report import model_states
from agents.state import StateFolder
from agents.update.assignments import Assignments
from agents.update.box import Box
from agents.update.group import Updates
from agents.update.machine import State
from agents.update.trust import Trust
from agents.uplink import Handler, Uplink
from edgert import __version__, host, trial
from edgert.clock import Clock
from edgert.errors import EdgeRTError, StoreError
from edgert.profiles import Profile
from edgert.serving.worker import Worker
from edgert.store import Slot, SlotName, Store
from edgert.wire import topics
from edgert.wire.transports.base import Delivery
from edgert.wire.twin import Desired, Reported

__all__ = ["Supervisor"]

logger = logging.getLogger(__name__)

_RESTART_S = 5.0
_SLOTS: tuple[SlotName, ...] = ("A", "B")


class Supervisor:
    """One box.

    Args:
        profile: what kind of box it is; it takes bundles of that profile only.
    """

    def __init__(
        self,
        config: AgentConfig,
        state: StateFolder,
        identity: Identity,
        *,
        profile: Profile,
        transports: Transports,
        clock: Clock,
    ) -> None:
        self._config = config
        self._state = state
        self._identity = identity
        self._profile = profile
        self._store = Store(state.store)
        self._worker = Worker(host=config.serve_host, port=config.serve_port, store=state.store)
        self._uplink = Uplink(identity, transports, clock)

        def proven() -> datetime:
            return state.memory().proven(clock.now())

        trust = Trust(state.tuf, identity.root, self._uplink.fetcher, self._store, proven)
        self._updates = Updates(self._box(trust, clock), state.journal)
        self._assignments = Assignments(
            identity.device,
            trust,
            state,
            follow=self._follow,
            changed=self._uplink.changed,
            now=clock.now,
        )
        self._participant = Participant(
            identity.device,
            trust,
            self._store,
            state.federated,
            config.examples,
            self._uplink,
            clock=clock,
            proven=proven,
            memory_bytes=config.training_memory_bytes,
        )
        self._control = Control(state.control, self._updates, lambda: state.memory().revision)

    def _box(self, trust: Trust, clock: Clock) -> Box:
        limits = self._profile.limits
        return Box(
            store=self._store,
            authority=trust,
            blobs=self._uplink.fetcher,
            loader=self._worker,
            trial=partial(
                trial.run_bundle,
                timeout_s=self._config.trial_timeout_s,
                memory_bytes=self._config.trial_memory_bytes or limits.trial_memory_bytes,
            ),
            profiles=(self._profile.name,),
            model_bytes=limits.model_bytes,
            socs=host.detect().boards,
            tell=self._uplink.tell,
            changed=self._uplink.changed,
            activated=self._activated,
            clock=clock,
        )

    async def run(self, stop: asyncio.Event, ready: Callable[[str], None] = lambda endpoint: None) -> None:
        """Serve, and follow the fleet, until `stop` is set.

        Args:
            ready: told the endpoint once the active models answer.

        Raises:
            ServeError: the inference endpoint cannot start (its port is busy).
        """
        await self._worker.start()
        try:
            await self._load_active()
            ready(self._worker.endpoint)
            async with asyncio.TaskGroup() as tasks:
                owned = [
                    tasks.create_task(self._kept(name, run))
                    for name, run in {
                        "inference": self._worker.run,
                        "updates": self._updates.run,
                        "assignments": self._assignments.run,
                        "participant": self._participant.run,
                        "control": self._control.run,
                        "uplink": lambda: self._uplink.run(self),
                    }.items()
                ]
                await stop.wait()
                logger.info("stopping")
                for task in owned:
                    task.cancel()
        finally:
            await self._worker.stop()

    # What the uplink asks of us

    def handlers(self) -> Mapping[str, Handler]:
        device = self._identity.device
        return {
            topics.device(device, "desired"): self._take_desired,
            topics.device(device, "fl/in"): self._participant.take_round,
            topics.device(device, "ack"): self._participant.take_request,
            topics.JOBS: self._participant.take_job,
        }

    def reported(self) -> Reported:
        memory = self._state.memory()
        received, sent = self._uplink.traffic
        models = model_states(self._store, self._updates.states())
        refusal = self._assignments.refusal
        if refusal.error:
            told = {"error": refusal.error, "hint": refusal.hint}
            models = {name: one if one.error else one.model_copy(update=told) for name, one in models.items()}
        return Reported(
            device=self._identity.device,
            agent=__version__,
            profile=self._profile.name,
            revision=memory.revision,
            endpoint=self._worker.endpoint,
            models=models,
            free_bytes=self._store.free_bytes(),
            received_bytes=received,
            sent_bytes=sent,
        )

    async def connected(self) -> None:
        self._updates.nudge()
        await self._participant.connected()

    # Parts

    async def _take_desired(self, delivery: Delivery) -> None:
        self._assignments.receive(delivery.payload)

    def _follow(self, desired: Desired) -> None:
        self._updates.assign(desired.models, desired.revision)

    def _activated(self, model: str) -> None:
        self._uplink.changed()
        self._participant.activated(model)

    async def _load_active(self) -> None:
        """Answer from the active slots; where one cannot be loaded, from the other."""
        for model in self._store.models():
            try:
                active = self._store.active(model)
            except StoreError as e:
                logger.error("%s", e.message)
                active = None
            name = active or self._proven_slot(model)
            other: SlotName = "B" if name == "A" else "A"
            if await self._loaded(model, name):
                answers = name
            elif await self._loaded(model, other):
                answers = other
            else:
                continue
            if answers != active:
                logger.error("%s answers from slot %s now: the active one is damaged", model, answers)
                await self._make_active(model, answers)

    def _proven_slot(self, model: str) -> SlotName:
        """The slot that answered last, by the journal of the model's update; the older when it does not say."""
        state = self._updates.states().get(model, State(model=model))
        settled = state.phase in ("IDLE", "COMMIT")
        if state.back is not None and not settled:
            return state.back
        slots: dict[SlotName, Slot] = {}
        for name in _SLOTS:
            with suppress(StoreError):
                slot = self._store.slot(model, name)
                slots |= {} if slot is None else {name: slot}
        for name, slot in slots.items():
            if settled and state.assignment is not None and state.assignment.digest == slot.digest:
                return name
        return min(slots, key=lambda name: slots[name].version, default="A")

    async def _make_active(self, model: str, name: SlotName) -> None:
        try:
            await asyncio.to_thread(self._store.switch, model, name)
        except StoreError as e:
            logger.error("slot %s of %s cannot be made the active one: %s", name, model, e.message)

    async def _loaded(self, model: str, name: SlotName) -> bool:
        try:
            slot = self._store.slot(model, name)
            if slot is None:
                return False
            await self._worker.load(model, slot.version, slot.digest)
        except EdgeRTError as e:
            logger.error("slot %s of %s cannot be loaded: %s", name, model, e.message)
            return False
        logger.info("%s %s answers from slot %s", model, slot.version, name)
        return True

    async def _kept(self, name: str, run: Callable[[], Awaitable[None]]) -> None:
        """Run a part for as long as the agent runs; one that breaks must not take the others down."""
        while True:
            try:
                await run()
            except EdgeRTError as e:
                logger.error("%s stopped: %s", name, e.message)
            except Exception:
                logger.exception("%s broke", name)
            await asyncio.sleep(_RESTART_S)
