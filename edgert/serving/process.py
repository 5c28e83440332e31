"""The inference process as its supervisor sees it: started with two sockets, asked, listened to, and ended.

:mod:`edgert.serving.child` is what runs inside.
"""

import asyncio
import logging
import socket
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from edgert.errors import MessageError, ServeError
from edgert.serving import control

__all__ = ["Process"]

logger = logging.getLogger(__name__)


class Process:
    """One inference process, and the talk with it; made by `spawn`.

    Args:
        process: the child.
        reader, writer: of the control socket.
    """

    def __init__(
        self, process: asyncio.subprocess.Process, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.process = process
        self._reader = reader
        self._writer = writer
        self._loop = asyncio.get_running_loop()
        self.born_s = self._heard_s = self._loop.time()
        self._hello: asyncio.Future[None] = self._loop.create_future()
        self._hello.add_done_callback(lambda hello: hello.cancelled() or hello.exception())
        self._asked: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._number = 0
        self._loads = 0
        self._listening = self._loop.create_task(self._listen())

    @classmethod
    async def spawn(cls, listener: socket.socket, store: Path, host: str, body_limit_bytes: int) -> "Process":
        """Start the child.

        Args:
            listener: the socket it answers on; stays ours.
            store: folder of the bundles.
            host: what the socket is bound to.
            body_limit_bytes: longer request bodies are refused.
        """
        ours, theirs = socket.socketpair()
        level = logging.getLevelName(logging.getLogger().getEffectiveLevel())
        with theirs:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-P", "-m", "edgert.serving.worker"),
                *("--control", str(theirs.fileno()), "--listen", str(listener.fileno())),
                *("--host", host, "--store", str(store), "--body-limit-bytes", str(body_limit_bytes)),
                *("--log-level", level),
                pass_fds=(theirs.fileno(), listener.fileno()),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for the supervisor, which then stops us in order
            )
        reader, writer = await asyncio.open_unix_connection(sock=ours, limit=control.LINE_LIMIT_BYTES)
        return cls(process, reader, writer)

    async def greeted(self, timeout_s: float) -> None:
        """Wait until the child runs.

        Raises:
            TimeoutError: it does not in time.
            ServeError: it died.
        """
        async with asyncio.timeout(timeout_s):
            await asyncio.shield(self._hello)

    async def ask(self, command: control.Command, timeout_s: float) -> dict[str, Any]:
        """What the child answers.

        Raises:
            TimeoutError: nothing in time.
            ServeError: it failed or died.
        """
        if self._listening.done():
            raise _died()
        self._number += 1
        number = self._number
        loads = isinstance(command, control.Open | control.Load)
        self._loads += loads
        answer = self._asked[number] = self._loop.create_future()
        try:
            self._writer.write(control.encode(command.model_copy(update={"number": number})))
            async with asyncio.timeout(timeout_s):
                result: dict[str, Any] = await answer
                return result
        finally:
            self._asked.pop(number, None)
            self._loads -= loads

    async def end(self, silence_s: float) -> str:
        """Wait until the child has ended or is silent for too long; says which. While it loads, it may be silent."""
        while True:
            heard_s = self._loop.time() if self._loads else self._heard_s
            left_s = heard_s + silence_s - self._loop.time()
            if left_s <= 0:
                return f"was silent for {silence_s:.0f} s"
            await asyncio.wait({self._listening}, timeout=left_s)
            if self._listening.done():
                return "died"

    async def exited(self, timeout_s: float) -> None:
        """Wait until the process is gone.

        Raises:
            TimeoutError: it is not in time.
        """
        async with asyncio.timeout(timeout_s):
            await self.process.wait()

    def kill(self) -> None:
        """End the process now."""
        with suppress(ProcessLookupError):
            self.process.kill()

    async def close(self) -> None:
        """End the process and the talk."""
        self.kill()
        await self.process.wait()
        self._listening.cancel()
        await asyncio.wait({self._listening})
        self._writer.close()

    async def _listen(self) -> None:
        try:
            while line := await self._reader.readline():
                self._heard_s = self._loop.time()
                self._receive(control.read_event(line))
        except (OSError, ValueError, MessageError) as e:
            logger.warning("the talk with the inference process broke: %s", e)
            self.kill()
        finally:
            if not self._hello.done():
                self._hello.set_exception(_died())
            for waiting in self._asked.values():
                if not waiting.done():
                    waiting.set_exception(_died())

    def _receive(self, event: control.Event) -> None:
        match event:
            case control.Hello():
                logger.info("the inference process runs on %s", event.loop)
                if not self._hello.done():
                    self._hello.set_result(None)
            case control.Done() | control.Failed():
                answer = self._asked.get(event.number)
                if answer is None or answer.done():
                    return
                if isinstance(event, control.Done):
                    answer.set_result(event.result)
                else:
                    answer.set_exception(ServeError(event.error, hint=event.hint))
            case control.Beat():
                pass


def _died() -> ServeError:
    return ServeError("the inference process died", hint="it is started again; the log may say why it died")
