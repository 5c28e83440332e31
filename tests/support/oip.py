"""A small client of the inference endpoint for tests: keeps its connection, waits at most `timeout_s`."""

import http.client
import json
import urllib.parse
from types import TracebackType
from typing import Any, NamedTuple, Self

from numpy.typing import NDArray

from edgert.serving.codecs import HEADER_LENGTH, Encoded, decode_response, encode_request

__all__ = ["Answer", "Client"]


class Answer(NamedTuple):
    """Status, headers in lower case, body."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)


class Client:
    """Talks to one endpoint; sends no Content-Type, as the client of the protocol's authors does not."""

    def __init__(self, endpoint: str, *, timeout_s: float = 30) -> None:
        parts = urllib.parse.urlsplit(endpoint)
        self._connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._connection.close()

    def ask(self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> Answer:
        """One request."""
        try:
            self._connection.request(method, path, body, headers or {})
            response = self._connection.getresponse()
            found = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, found, response.read())
        except (OSError, http.client.HTTPException):
            self._connection.close()
            raise

    def send(self, model: str, encoded: Encoded, *, version: int | None = None) -> Answer:
        """An encoded inference request."""
        part = "" if version is None else f"/versions/{version}"
        headers = {} if encoded.header_length is None else {HEADER_LENGTH: str(encoded.header_length)}
        return self.ask("POST", f"/v2/models/{model}{part}/infer", encoded.body, headers)

    def infer(self, model: str, inputs: dict[str, NDArray[Any]], *, binary: bool = False) -> dict[str, NDArray[Any]]:
        """The outputs for some inputs; fails on any other status than 200."""
        answer = self.send(model, encode_request(inputs, binary=binary, binary_outputs=binary))
        if answer.status != 200:
            raise AssertionError(f"{answer.status}: {answer.body[:500]!r}")
        return decode_response(answer.body, answer.headers.get(HEADER_LENGTH)).outputs
