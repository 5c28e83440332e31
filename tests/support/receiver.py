"""A receiving process for tests: ``python -m tests.support.receiver PORT DEVICE STORE DIGEST SIZE``."""

import asyncio
import sys
from pathlib import Path

from edgert.clock import SystemClock
from edgert.store import Store
from edgert.wire import topics
from edgert.wire.link import Link
from edgert.wire.transports.base import Broker, Subscription, Transport
from edgert.wire.transports.mqtt import MqttTransport

__all__ = ["fetch"]


async def fetch(
    transport: Transport, device: str, store: Store, digest: str, size_bytes: int, timeout_s: float = 0.5
) -> None:
    """Bring one blob into the store, as a device does."""
    link = Link(transport, SystemClock())
    frames = await link.listen(topics.device(device, "data"), qos=0)
    fetcher = link.fetcher(topics.device(device, "get"), timeout_s=timeout_s)

    async def take(frames: Subscription) -> None:
        async for delivery in frames:
            fetcher.deliver(delivery.payload)

    async def again() -> None:
        generation = transport.generation
        while True:
            generation = await transport.wait_generation(generation)
            fetcher.lose()

    tasks = [asyncio.create_task(take(frames)), asyncio.create_task(again())]
    try:
        await fetcher.fetch_blob(store, digest, size_bytes)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await frames.aclose()


async def _main(port: int, device: str, folder: Path, digest: str, size_bytes: int) -> None:
    transport = MqttTransport(Broker("127.0.0.1", port, device, insecure=True))
    await transport.connect()
    await fetch(transport, device, Store(folder), digest, size_bytes)
    await transport.close()


if __name__ == "__main__":
    asyncio.run(_main(int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), sys.argv[4], int(sys.argv[5])))
