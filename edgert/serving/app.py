"""The HTTP routes of the endpoint: Open Inference Protocol v2, and a documentation page that works offline.

Every error is ``{"error": ..., "hint": ...}`` with a status from `STATUS`; a `Content-Type` is never asked for.
"""

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.openapi.utils import get_openapi
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from edgert import __version__
from edgert.errors import BackendError, EdgeRTError, InputError, RefusedError, ServeError, UsageError
from edgert.serving import dataplane, openapi
from edgert.serving.codecs import HEADER_LENGTH
from edgert.serving.control import BODY_LIMIT_BYTES
from edgert.serving.dataplane import Dataplane
from edgert.serving.hosts import Application, HostGuard

__all__ = ["STATUS", "build", "routes"]

logger = logging.getLogger(__name__)

_BODY_TIMEOUT_S: Final = 60.0
_BODIES: Final = 4
STATUS: Final[tuple[tuple[type[EdgeRTError], int], ...]] = (
    (RefusedError, 403),
    (UsageError, 404),  # there is no such model or version
    (InputError, 400),
    (BackendError, 400),  # the runtime refused feeds that have the right shapes and types
    (ServeError, 503),
)
_EXTENSIONS = ["binary_tensor_data"]
_BINARY = "application/octet-stream"


class _Room:
    """Bytes of request bodies that are held at one time, all requests together."""

    def __init__(self, limit_bytes: int) -> None:
        self._left_bytes = limit_bytes

    @contextmanager
    def share(self) -> Iterator[Callable[[int], None]]:
        """Takes more bytes for one request, which are given back at its end.

        The function raises `ServeError` when they do not fit beside the other requests.
        """
        taken = 0

        def take(size: int) -> None:
            nonlocal taken
            if size > self._left_bytes:
                raise ServeError("too many large requests at once", hint="ask again in a moment, or send smaller ones")
            self._left_bytes -= size
            taken += size

        try:
            yield take
        finally:
            self._left_bytes += taken


def build(plane: Dataplane, *, host: str = "127.0.0.1", body_limit_bytes: int = BODY_LIMIT_BYTES) -> Application:
    """The whole endpoint as one ASGI callable.

    Args:
        plane: the models.
        host: what the endpoint is bound to; see :class:`~edgert.serving.hosts.HostGuard`.
        body_limit_bytes: longer request bodies are refused with 413; of all bodies together no more than four times
            as much is held, what comes beyond that is refused with 503.
    """
    return HostGuard(routes(plane, body_limit_bytes=body_limit_bytes), host)


def routes(plane: Dataplane, *, body_limit_bytes: int = BODY_LIMIT_BYTES) -> FastAPI:
    """The FastAPI application behind the guard."""
    app = FastAPIOffline(
        title="EdgeRT inference endpoint",
        version=__version__,
        description="Open Inference Protocol v2. Every error is `{error, hint}`.",
        swagger_ui_parameters={"validatorUrl": "none"},  # the page must not ask the open web for a badge
        responses={"4XX": {"model": openapi.Problem, "description": "What went wrong, and what to do about it."}},
    )
    _health(app, plane)
    _models(app, plane)
    _inference(app, plane, body_limit_bytes, _Room(_BODIES * body_limit_bytes))
    _errors(app)

    def described() -> dict[str, Any]:
        plain = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        return openapi.document(plain, plane.models())

    app.openapi = described  # type: ignore[method-assign]
    return app


def _health(app: FastAPI, plane: Dataplane) -> None:
    @app.get("/v2/health/live", tags=["health"])
    async def live() -> Response:
        """Whether the process answers."""
        return _json({"live": True})

    @app.get("/v2/health/ready", tags=["health"])
    async def ready() -> Response:
        """Whether every model answers."""
        if plane.ready():
            return _json({"ready": True})
        return _problem(503, "not every model answers", "ask again in a moment; /v2/models/M/ready tells about one")

    @app.get("/v2", tags=["health"])
    async def server() -> Response:
        """What this server is."""
        return _json({"name": "edgert", "version": __version__, "extensions": _EXTENSIONS})


def _models(app: FastAPI, plane: Dataplane) -> None:
    @app.get("/v2/models/{model}/ready", tags=["models"])
    async def model_ready(model: str) -> Response:
        """Whether a model answers."""
        plane.opened(model)
        return _json({"name": model, "ready": True})

    @app.get("/v2/models/{model}/versions/{version}/ready", tags=["models"])
    async def version_ready(model: str, version: str) -> Response:
        """Whether a version of a model answers."""
        plane.opened(model, version)
        return _json({"name": model, "ready": True})

    @app.get("/v2/models/{model}", tags=["models"], responses={200: {"model": openapi.ModelMetadata}})
    async def model_metadata(model: str) -> Response:
        """What a model takes and gives."""
        return _json(dataplane.metadata(plane.opened(model)))

    @app.get(
        "/v2/models/{model}/versions/{version}", tags=["models"], responses={200: {"model": openapi.ModelMetadata}}
    )
    async def version_metadata(model: str, version: str) -> Response:
        """What a version of a model takes and gives."""
        return _json(dataplane.metadata(plane.opened(model, version)))


def _inference(app: FastAPI, plane: Dataplane, limit: int, room: _Room) -> None:
    described: dict[str, Any] = {
        "tags": ["inference"],
        "openapi_extra": openapi.INFER,
        "responses": {200: {"model": openapi.InferResponse}},
    }

    @app.post("/v2/models/{model}/infer", **described)
    async def infer(model: str, request: Request) -> Response:
        """Ask a model."""
        with room.share() as take:
            return await _infer(plane, model, None, request, limit, take)

    @app.post("/v2/models/{model}/versions/{version}/infer", **described)
    async def infer_version(model: str, version: str, request: Request) -> Response:
        """Ask a version of a model."""
        with room.share() as take:
            return await _infer(plane, model, version, request, limit, take)


async def _infer(
    plane: Dataplane, model: str, version: str | None, request: Request, limit: int, take: Callable[[int], None]
) -> Response:
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        return _problem(415, "compressed bodies are not supported", "send the body without Content-Encoding")
    try:
        async with asyncio.timeout(_BODY_TIMEOUT_S):
            body = await _read(request, limit, take)
    except TimeoutError:
        return _problem(408, f"the body did not arrive within {_BODY_TIMEOUT_S:.0f} s", "send it again")
    if body is None:
        return _problem(413, f"the body is longer than {limit} bytes", "send fewer samples at once, or binary tensors")
    encoded = await plane.infer(model, version, body, request.headers.get(HEADER_LENGTH))
    if encoded.header_length is None:
        return Response(encoded.body, media_type="application/json")
    return Response(encoded.body, media_type=_BINARY, headers={HEADER_LENGTH: str(encoded.header_length)})


async def _read(request: Request, limit: int, take: Callable[[int], None]) -> bytes | None:
    """The body, or None when it is longer than `limit`; no more than that is ever held, and `take` is asked first."""
    announced = request.headers.get("content-length", "0")
    if announced.isdigit() and int(announced) > limit:
        return None
    parts: list[bytes] = []
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > limit:
            return None
        take(len(part))
        parts.append(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _errors(app: FastAPI) -> None:
    @app.exception_handler(EdgeRTError)
    async def ours(request: Request, error: EdgeRTError) -> Response:
        status = next((status for kind, status in STATUS if isinstance(error, kind)), 500)
        if status == 500:
            logger.error("%s failed: %s", request.url.path, error.message)
        return _problem(status, error.message, error.hint)

    @app.exception_handler(HTTPException)
    async def routing(request: Request, error: HTTPException) -> Response:
        hints = {404: "the API is described at /docs", 405: "the API is described at /docs"}
        message = f"{request.method} {request.url.path[:200]}: {error.detail}"
        return _problem(error.status_code, message, hints.get(error.status_code, ""), error.headers)

    @app.exception_handler(ClientDisconnect)
    async def gone(request: Request, error: ClientDisconnect) -> Response:
        return _problem(400, "the client went away", "")

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> Response:
        return _problem(500, "the endpoint failed unexpectedly", "its log has the details")


def _json(value: Any) -> Response:
    return Response(orjson.dumps(value), media_type="application/json")


def _problem(status: int, error: str, hint: str, headers: Any = None) -> Response:
    body = orjson.dumps({"error": error, "hint": hint})
    extra = dict(headers or {}) | ({"retry-after": "1"} if status == 503 else {})
    return Response(body, status_code=status, media_type="application/json", headers=extra)
