"""Who may call: a page of the open web must not reach this box through the visitor's browser.

A browser that was led here by a name of an attacker (DNS rebinding) says so in `Host`; a foreign page that posts
across says so in `Origin`. Welcome are the loopback names, the host the endpoint was bound to, and the very address
the connection came in on.
"""

import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import orjson

__all__ = ["Application", "HostGuard", "Receive", "Scope", "Send", "host_of", "origin_host"]

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_HOST = re.compile(r"(?:\[(?P<six>[0-9a-f:.]{2,45})\]|(?P<name>[a-z0-9._-]{1,253}))(?::[0-9]{1,5})?")


def host_of(header: str) -> str | None:
    """The host in a `Host` header, in lower case without port and brackets; None when it is malformed."""
    found = _HOST.fullmatch(header.strip().lower())
    return None if found is None else (found["six"] or found["name"]).rstrip(".")


def origin_host(header: str) -> str | None:
    """The host in an `Origin` header; None when it has none (``null``) or is malformed."""
    scheme, _, rest = header.strip().partition("://")
    return host_of(rest) if scheme.lower() in ("http", "https") else None


class HostGuard:
    """Refuses requests with a foreign `Host` or `Origin` with status 403.

    Args:
        app: who answers the others.
        host: what the endpoint was bound to.
    """

    def __init__(self, app: Application, host: str = "127.0.0.1") -> None:
        self._app = app
        self._welcome = _LOOPBACK | {host.lower()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or (reason := self._reason(scope)) is None:
            await self._app(scope, receive, send)
            return
        body = orjson.dumps({"error": reason, "hint": "use http://127.0.0.1 or http://localhost and the port"})
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 403, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def _reason(self, scope: Scope) -> str | None:
        server = scope.get("server") or ("", None)
        welcome = self._welcome | {str(server[0]).lower()}
        hosts = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
        if len(hosts) != 1 or host_of(hosts[0]) not in welcome:
            return f"host {', '.join(hosts)[:80]!r} is not this box"
        for name, value in scope["headers"]:
            if name == b"origin" and origin_host(value.decode("latin-1")) not in welcome:
                return f"origin {value.decode('latin-1')[:80]!r} may not call this box"
        return None
