"""The supervisor of the inference child: it owns the listening socket, starts the child, and starts it again.

The socket is bound here and handed over, so it stays open when the child dies: clients wait a moment instead of being
refused. What must answer is remembered here and loaded again. This module imports neither the web framework nor a
runtime; ``python -m edgert.serving.worker`` is the child (:mod:`edgert.serving.child`).
"""

import asyncio
import errno
import ipaddress
import logging
import socket
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from edgert.config import explain
from edgert.errors import ServeError, UsageError
from edgert.serving import control
from edgert.serving.process import Process

__all__ = ["Worker", "is_loopback"]

logger = logging.getLogger(__name__)
_BACKLOG = 2048
_GRACE_S = 8.0
_ASK_TIMEOUT_S = 10.0
_FIRST_DELAY_S = 0.05
_LONGEST_DELAY_S = 10.0
_CALM_S = 30.0


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


class Worker:
    """An inference endpoint in a supervised child process.

    Args:
        host: address to listen on; anything but loopback must be the caller's decision.
        port: 0 takes any that is free.
        store: folder of the :class:`~edgert.store.Store` that holds the bundles.
        ready_timeout_s: how long the child may take to start.
        load_timeout_s: how long one load may take; then the child is killed and starts again with the old models.
        silence_s: a child that says nothing for so long is killed.
        body_limit_bytes: longer request bodies are refused.
    """

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        store: Path,
        ready_timeout_s: float = 20,
        load_timeout_s: float = 120,
        silence_s: float = 15,
        body_limit_bytes: int = control.BODY_LIMIT_BYTES,
    ) -> None:
        self.host = host
        self.port = port
        self.restarts = 0
        self._store = store
        self._ready_timeout_s = ready_timeout_s
        self._load_timeout_s = load_timeout_s
        self._silence_s = silence_s
        self._body_limit_bytes = body_limit_bytes
        self._models: dict[str, control.Model] = {}
        self._listener: socket.socket | None = None
        self._child: Process | None = None
        self._up = asyncio.Event()
        self._stopped = asyncio.Event()

    @property
    def endpoint(self) -> str:
        """``http://127.0.0.1:8080``; the port is known after `start`."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    @property
    def pid(self) -> int | None:
        """Process id of the child, None while there is none."""
        return None if self._child is None else self._child.process.pid

    async def start(self) -> None:
        """Listen, and start the child.

        Raises:
            ServeError: the port is taken, or the child does not start.
        """
        self._listener = _bind(self.host, self.port)
        self.port = self._listener.getsockname()[1]
        try:
            await self._spawn()
        except BaseException:
            await self.stop()
            raise

    async def load(self, model: str, version: int, digest: str) -> None:
        """Let a version of a model answer; until then, and when that fails, the old one does.

        Args:
            digest: of a bundle whose blobs are all in the store.

        Raises:
            ServeError: the version cannot be loaded, or the child is down.
        """
        try:
            what = control.Model(model=model, version=version, digest=digest)
        except ValidationError as e:
            raise UsageError(f"model {model!r} cannot be loaded: {explain(e)}") from e
        child = await self._running()
        try:
            await child.ask(control.Load(what=what), self._load_timeout_s)
        except TimeoutError as e:
            child.kill()  # run() starts it again with the old models
            raise ServeError(
                f"model {model} version {version} was not loaded within {self._load_timeout_s:.0f} s",
                hint="the older version answers again in a moment",
            ) from e
        self._models[model] = what

    async def unload(self, model: str) -> None:
        """Forget a model.

        Raises:
            ServeError: the child is down.
        """
        self._models.pop(model, None)
        await self._ask(control.Unload(model=model))

    async def stats(self) -> dict[str, Any]:
        """``pid``, ``restarts`` and ``models``: version, requests, errors and latency of each since the child started.

        Raises:
            ServeError: the child is down.
        """
        return await self._ask(control.Stats()) | {"restarts": self.restarts}

    async def run(self) -> None:
        """Supervise until cancelled or stopped: a dead or silent child is started again with its models."""
        delay_s = _FIRST_DELAY_S
        loop = asyncio.get_running_loop()
        while not self._stopped.is_set():
            if self._child is not None:
                reason = await self._child.end(self._silence_s)
                if self._stopped.is_set():
                    return
                self._up.clear()
                logger.warning("the inference process %s; starting it again", reason)
                calm = loop.time() - self._child.born_s > _CALM_S
                delay_s = _FIRST_DELAY_S if calm else min(delay_s * 2, _LONGEST_DELAY_S)
                await self._child.close()
                self._child = None
            with suppress(TimeoutError):
                async with asyncio.timeout(delay_s):
                    await self._stopped.wait()
                    return
            await self._restart()

    async def stop(self) -> None:
        """Answer what is in flight, end the child, and stop listening."""
        self._stopped.set()
        self._up.clear()
        child, self._child = self._child, None
        if child is not None:
            with suppress(ServeError, TimeoutError):
                await child.ask(control.Stop(), _GRACE_S)
                await child.exited(_GRACE_S)
            await child.close()
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    async def _restart(self) -> None:
        self.restarts += 1
        try:
            await self._spawn()
        except ServeError as e:
            logger.error("the inference process does not start: %s", e.message)
            if self._child is not None:
                self._child.kill()

    async def _spawn(self) -> None:
        if self._listener is None:
            raise ServeError("the endpoint was not started")
        self._child = child = await Process.spawn(self._listener, self._store, self.host, self._body_limit_bytes)
        try:
            await child.greeted(self._ready_timeout_s)
            models = tuple(self._models.values())
            patience_s = self._ready_timeout_s + self._load_timeout_s * len(models)
            result = await child.ask(control.Open(models=models), patience_s)
        except TimeoutError as e:
            raise ServeError(
                f"the inference process was not ready within {self._ready_timeout_s:.0f} s",
                hint="this machine may be overloaded; the log may say more",
            ) from e
        for model, reason in result.get("failed", {}).items():
            logger.error("model %s could not be loaded again: %s", model, reason)
        self._up.set()

    async def _running(self) -> Process:
        with suppress(TimeoutError):
            async with asyncio.timeout(self._ready_timeout_s):
                await self._up.wait()
        if self._child is None or not self._up.is_set():
            raise ServeError("the inference process is down", hint="it is being started again; see the log")
        return self._child

    async def _ask(self, command: control.Command) -> dict[str, Any]:
        child = await self._running()
        try:
            return await child.ask(command, _ASK_TIMEOUT_S)
        except TimeoutError as e:
            raise ServeError(
                "the inference process does not answer", hint="it is started again when it stays silent"
            ) from e


def _bind(host: str, port: int) -> socket.socket:
    listener = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except (OSError, OverflowError) as e:
        if listener is not None:
            listener.close()
        if getattr(e, "errno", None) == errno.EADDRINUSE:
            raise ServeError(
                f"port {port} is taken", hint="stop the program that uses it, or choose another with --port (0 = any)"
            ) from e
        raise ServeError(
            f"cannot listen on {host} port {port}: {getattr(e, 'strerror', None) or e}",
            hint="choose an address of this machine, and a port from 1024 to 65535 (0 = any)",
        ) from e
    return listener


if __name__ == "__main__":
    from edgert.serving.child import main

    main()
