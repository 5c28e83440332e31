import asyncio
from typing import Any

import pytest

from edgert.serving.hosts import HostGuard, host_of, origin_host


@pytest.mark.parametrize(
    ("header", "host"),
    [
        ("127.0.0.1:8080", "127.0.0.1"),
        ("LocalHost", "localhost"),
        ("localhost.:80", "localhost"),
        ("[::1]:8080", "::1"),
        ("box.local", "box.local"),
        ("::1", None),
        ("", None),
        ("a b", None),
        ("localhost:80:80", None),
        ("localhost@evil.example", None),
        ("[::1", None),
    ],
)
def test_host_is_taken_out_of_the_header(header: str, host: str | None) -> None:
    assert host_of(header) == host


@pytest.mark.parametrize(
    ("header", "host"),
    [("http://localhost:3000", "localhost"), ("https://[::1]", "::1"), ("null", None), ("file://", None)],
)
def test_host_is_taken_out_of_the_origin(header: str, host: str | None) -> None:
    assert origin_host(header) == host


def status(headers: list[tuple[bytes, bytes]], *, bound: str = "127.0.0.1", server: str = "127.0.0.1") -> int:
    sent: list[Any] = []

    async def welcome(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200})

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> dict[str, Any]:
        return {}

    scope = {"type": "http", "headers": headers, "server": (server, 8080)}
    asyncio.run(HostGuard(welcome, bound)(scope, receive, send))
    return int(sent[0]["status"])


@pytest.mark.parametrize("host", [b"127.0.0.1:8080", b"localhost", b"[::1]:8080"])
def test_loopback_names_are_welcome(host: bytes) -> None:
    assert status([(b"host", host)]) == 200
    assert status([(b"host", host), (b"origin", b"http://" + host)]) == 200


@pytest.mark.parametrize("host", [b"evil.example", b"127.0.0.1.evil.example", b"localhost.evil.example:8080", b""])
def test_foreign_names_are_refused(host: bytes) -> None:
    assert status([(b"host", host)]) == 403
    assert status([(b"host", b"localhost"), (b"origin", b"http://" + host)]) == 403


def test_missing_or_doubled_host_is_refused() -> None:
    assert status([]) == 403
    assert status([(b"host", b"localhost"), (b"host", b"evil.example")]) == 403


def test_origin_without_a_name_is_refused() -> None:
    assert status([(b"host", b"localhost"), (b"origin", b"null")]) == 403


def test_bound_host_and_own_address_are_welcome() -> None:
    assert status([(b"host", b"box.local:80")], bound="box.local") == 200
    assert status([(b"host", b"192.0.2.7:8080")], bound="0.0.0.0", server="192.0.2.7") == 200
    assert status([(b"host", b"192.0.2.8:8080")], bound="0.0.0.0", server="192.0.2.7") == 403
