"""Faults on the way: a TCP relay that counts and cuts, and a transport that loses QoS 0 messages."""

import random
import socket
import threading
from types import TracebackType
from typing import Self

from edgert.wire.transports.base import Subscription, Transport, Will

__all__ = ["Lossy", "Relay"]

_BLOCK_BYTES = 64 << 10


class Relay:
    """Passes TCP connections on to a port of the loopback interface, in threads of its own.

    Args:
        target_port: where to.
    """

    def __init__(self, target_port: int) -> None:
        self.up_bytes = 0
        self.down_bytes = 0
        self._target_port = target_port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._closed = False

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed = True
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
        for thread in self._threads:
            thread.join(10)

    def cut(self) -> None:
        """Break every connection, as a lost network does: neither side says good-bye."""
        with self._lock:
            sockets, self._sockets = self._sockets, []
        for one in sockets:
            try:
                one.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue  # its other side broke first

    def _accept(self) -> None:
        while not self._closed:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(("127.0.0.1", self._target_port), timeout=10)
            except OSError:
                near.close()
                continue
            far.settimeout(None)
            for one in (near, far):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self._sockets += [near, far]
            back = threading.Thread(target=self._pump, args=(far, near, "down_bytes"), daemon=True)
            self._start(self._both, near, far, back)

    def _both(self, near: socket.socket, far: socket.socket, back: threading.Thread) -> None:
        back.start()
        self._pump(near, far, "up_bytes")
        back.join(10)
        near.close()
        far.close()

    def _pump(self, source: socket.socket, target: socket.socket, counter: str) -> None:
        try:
            while data := source.recv(_BLOCK_BYTES):
                with self._lock:
                    setattr(self, counter, getattr(self, counter) + len(data))
                target.sendall(data)
        except OSError:
            pass  # the connection broke: so does the other half
        for one in (source, target):
            try:
                one.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue

    def _start(self, target: object, *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()


class Lossy:
    """A transport that loses a part of the QoS 0 messages it should publish.

    Args:
        transport: does everything else.
        loss: fraction of the messages, 0..1.
        seed: of the choice.
    """

    def __init__(self, transport: Transport, loss: float, seed: int = 0) -> None:
        self.transport = transport
        self.lost = 0
        self._loss = loss
        self._chance = random.Random(seed)

    @property
    def generation(self) -> int:
        return self.transport.generation

    @property
    def received_bytes(self) -> int:
        return self.transport.received_bytes

    @property
    def sent_bytes(self) -> int:
        return self.transport.sent_bytes

    async def connect(self, will: Will | None = None, timeout_s: float = 10.0) -> None:
        await self.transport.connect(will, timeout_s)

    async def wait_generation(self, after: int) -> int:
        return await self.transport.wait_generation(after)

    async def publish(self, topic: str, payload: bytes, *, retain: bool = False, qos: int = 1) -> None:
        if qos == 0 and self._chance.random() < self._loss:
            self.lost += 1
        else:
            await self.transport.publish(topic, payload, retain=retain, qos=qos)

    async def subscribe(self, pattern: str, *, qos: int = 1) -> Subscription:
        return await self.transport.subscribe(pattern, qos=qos)

    async def close(self) -> None:
        await self.transport.close()
