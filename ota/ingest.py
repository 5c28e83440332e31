"""What comes up from devices: state, presence and events, written in batches; and requests for enrolment."""

import asyncio
import logging
from collections import deque
from typing import Final

from edgert.errors import LinkError, MessageError, StoreError
from edgert.wire import topics
from edgert.wire.link import Link
from edgert.wire.messages.claim import ClaimReply, ClaimRequest
from edgert.wire.messages.device import Event, Online
from edgert.wire.transports.base import Delivery, Subscription
from edgert.wire.twin import Reported
from ota import claims
from ota.devices import note_state
from ota.fleet import Fleet
from ota.rollouts import engine
from ota.store import Session, devices

__all__ = ["LEAVES", "Enrolment", "Ingest", "Unwritten"]

logger = logging.getLogger(__name__)

LEAVES: Final = ("state", "online", "event")
_BATCH: Final = 500
_EVENTS_PER_DEVICE: Final = 32


class Unwritten:
    """What devices said and nobody has written down yet, taken in turn.

    Of state and presence only the newest of each device is kept, of events the newest few: a device that floods
    replaces its own words and nobody else's.

    Args:
        events: how many events of one device may wait.
    """

    def __init__(self, events: int = _EVENTS_PER_DEVICE) -> None:
        self._events = events
        self._waiting: dict[str, deque[Delivery]] = {}
        self._some = asyncio.Event()

    def put(self, delivery: Delivery) -> None:
        """Let a message wait; it may push out an older one of the same topic."""
        queue = self._waiting.get(delivery.topic)
        if queue is None:
            limit = self._events if delivery.topic.endswith("/event") else 1
            queue = self._waiting[delivery.topic] = deque(maxlen=limit)
        elif len(queue) == self._events:
            logger.warning("too many messages on %s: the oldest was dropped", delivery.topic)
        queue.append(delivery)
        self._some.set()

    async def take(self, limit: int) -> list[Delivery]:
        """At least one message, at most `limit`: one of every topic, then the next of every topic, and so on."""
        await self._some.wait()
        batch: list[Delivery] = []
        while self._waiting and len(batch) < limit:
            topic = next(iter(self._waiting))
            queue = self._waiting.pop(topic)
            batch.append(queue.popleft())
            if queue:
                self._waiting[topic] = queue
        if not self._waiting:
            self._some.clear()
        return batch


class Ingest:
    """Writes what devices say into the database; who speaks is taken from the topic.

    Each message has a savepoint of its own: one that cannot be written is logged and costs nobody else's.

    Args:
        fleet: the database, the broker's files.
    """

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._unwritten = Unwritten()

    async def listen(self, subscription: Subscription) -> None:
        """Take messages from one subscription until it ends."""
        async for delivery in subscription:
            self._unwritten.put(delivery)

    async def run(self) -> None:
        """Write until cancelled."""
        while True:
            batch = await self._unwritten.take(_BATCH)
            if await asyncio.to_thread(self._write, batch):
                await asyncio.to_thread(claims.update_broker, self._fleet)

    def _write(self, batch: list[Delivery]) -> bool:
        spent = False
        with self._fleet.database.write() as session:
            for delivery in batch:
                try:
                    with session.begin_nested():
                        found = self._take(session, delivery)
                except MessageError as e:
                    logger.warning("ignored a message on %s: %s", delivery.topic, e)
                except Exception:
                    logger.exception("ignored a message on %s that could not be written", delivery.topic)
                else:
                    spent |= found
        return spent

    def _take(self, session: Session, delivery: Delivery) -> bool:
        device, leaf = topics.device_of(delivery.topic)
        row = devices.find(session, device)
        if row is None:
            logger.debug("ignored %s of unknown device %s", leaf, device)
            return False
        now = self._fleet.clock.now()
        if leaf == "online":
            row.online, row.seen = Online.decode(delivery.payload).online, now
            return False
        if leaf == "event":
            engine.observe_event(session, device, Event.decode(delivery.payload))
            return False
        state = Reported.decode(delivery.payload)
        note_state(row, state, now)
        engine.observe_state(session, device, state.revision, state.models)
        return claims.settle(session, device)


class Enrolment:
    """Answers requests for certificates, one after the other.

    Args:
        fleet: the database and the certificate authority.
        link: to the broker.
    """

    def __init__(self, fleet: Fleet, link: Link) -> None:
        self._fleet = fleet
        self._link = link
        self._authority = fleet.authority()

    async def run(self, requests: Subscription) -> None:
        """Answer until the subscription ends."""
        async for delivery in requests:
            try:
                name = topics.claim_of(delivery.topic)
                request = ClaimRequest.decode(delivery.payload)
                reply = await asyncio.to_thread(self._admit, name, request)
                await self._link.send(topics.claim(name, "reply"), reply)
            except MessageError as e:
                logger.warning("ignored a claim on %s: %s", delivery.topic, e)
            except LinkError as e:
                logger.warning("could not answer a claim on %s, the box will ask again: %s", delivery.topic, e)
            except Exception:
                logger.exception("ignored a claim on %s", delivery.topic)

    def _admit(self, name: str, request: ClaimRequest) -> ClaimReply:
        days = self._fleet.home.settings.device_days
        try:
            with self._fleet.database.write() as session:
                return claims.admit(session, self._fleet.clock, self._authority, name, request, days)
        except StoreError:
            raise
        except Exception:
            logger.exception("could not admit claim %s", name)
            return ClaimReply(error="the server failed at this request", hint="the log of the server says how")
