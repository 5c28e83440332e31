"""The inference process: a control loop and an HTTP server on one event loop.

It inherits two sockets and opens no other connection. When the control socket closes, the supervisor is gone and this
process ends at once, so that nothing is ever left behind.
"""

import argparse
import asyncio
import logging
import os
import socket
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import uvicorn

from edgert import logs
from edgert.errors import EdgeRTError, MessageError
from edgert.serving import control
from edgert.serving.app import build
from edgert.serving.dataplane import Dataplane, open_from
from edgert.store import Store

__all__ = ["main"]

logger = logging.getLogger(__name__)
_GRACE_S = 5
_KEEP_ALIVE_S = 75
_BACKLOG = 2048
_CONNECTIONS = 256


def main() -> None:
    """Run until told to stop, or until the supervisor is gone; never returns."""
    parser = argparse.ArgumentParser(prog="edgert.serving.worker")
    parser.add_argument("--control", type=int, required=True)
    parser.add_argument("--listen", type=int, required=True)
    parser.add_argument("--host", required=True)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--body-limit-bytes", type=int, required=True)
    parser.add_argument("--log-level", default="WARNING")
    options = parser.parse_args()
    logs.setup(options.log_level, process="inference")
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    code = 1
    try:
        _run(_serve(options))
        code = 0
    except Exception:
        logger.exception("the inference process failed")
    finally:
        # A lane may hang inside a runtime: the interpreter would wait for its thread for ever.
        logging.shutdown()
        os._exit(code)


def _run(work: Coroutine[Any, Any, None]) -> None:
    try:
        import uvloop
    except ImportError:
        asyncio.run(work)
    else:
        uvloop.run(work)


async def _serve(options: argparse.Namespace) -> None:
    plane = Dataplane(open_from(Store(options.store)))
    app = build(plane, host=options.host, body_limit_bytes=options.body_limit_bytes)
    config = uvicorn.Config(
        app,
        loop="none",
        http="httptools",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        backlog=_BACKLOG,
        limit_concurrency=_CONNECTIONS,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=_GRACE_S,
    )
    reader, writer = await asyncio.open_unix_connection(
        sock=socket.socket(fileno=options.control), limit=control.LINE_LIMIT_BYTES
    )
    half = _ControlHalf(plane, uvicorn.Server(config), socket.socket(fileno=options.listen), reader, writer)
    await half.run()


class _ControlHalf:
    """Carries out commands, each in a task of its own so that a slow load does not stop the heart."""

    def __init__(
        self,
        plane: Dataplane,
        server: uvicorn.Server,
        listener: socket.socket,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self._plane = plane
        self._server = server
        self._listener = listener
        self._reader = reader
        self._writer = writer
        self._opened = asyncio.Event()

    async def run(self) -> None:
        """Until told to stop, until a signal asks for it, or until the supervisor is gone."""
        tasks = {asyncio.create_task(self._beat()), asyncio.create_task(self._listen())}
        accept = asyncio.create_task(self._accept())
        done, _ = await asyncio.wait({*tasks, accept}, return_when=asyncio.FIRST_COMPLETED)
        self._server.should_exit = True
        if self._opened.is_set():
            await asyncio.wait({accept}, timeout=_GRACE_S + 1)
        for task in done:
            task.result()

    async def _accept(self) -> None:
        await self._opened.wait()
        await self._server.serve(sockets=[self._listener])

    async def _beat(self) -> None:
        loop = asyncio.get_running_loop()
        self._say(control.Hello(loop=f"{type(loop).__module__}.{type(loop).__name__}"))
        while True:
            await asyncio.sleep(control.BEAT_S)
            self._say(control.Beat())

    async def _listen(self) -> None:
        """Returns at the end of the talk."""
        async with asyncio.TaskGroup() as running:
            while line := await self._reader.readline():
                command = control.read_command(line)
                if isinstance(command, control.Stop):
                    self._say(control.Done(number=command.number))
                    return
                running.create_task(self._carry_out(command))
            # End without waiting for anybody: whoever would wait for us is gone.
            logger.info("the supervisor is gone")
            logging.shutdown()
            os._exit(0)

    async def _carry_out(self, command: control.Command) -> None:
        try:
            result = await self._perform(command)
        except EdgeRTError as e:
            self._say(control.Failed(number=command.number, error=e.message, hint=e.hint))
        except Exception as e:
            logger.exception("a command failed unexpectedly")
            self._say(control.Failed(number=command.number, error=f"unexpected: {type(e).__name__}: {e}"))
        else:
            self._say(control.Done(number=command.number, result=result))

    async def _perform(self, command: control.Command) -> dict[str, Any]:
        match command:
            case control.Open():
                failed = {}
                for row in command.models:
                    try:
                        await self._plane.load(row.model, row.version, row.digest)
                    except EdgeRTError as e:
                        failed[row.model] = e.message
                self._opened.set()
                return {"failed": failed}
            case control.Load():
                await self._plane.load(command.what.model, command.what.version, command.what.digest)
                return {}
            case control.Unload():
                self._plane.unload(command.model)
                return {}
            case control.Stats():
                return {"pid": os.getpid(), "models": self._plane.stats()}
            case control.Stop():
                raise MessageError("stop is carried out by the reader")

    def _say(self, event: control.Event) -> None:
        if not self._writer.is_closing():
            self._writer.write(control.encode(event))
