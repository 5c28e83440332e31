import asyncio
import json
import re
import threading
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from edgert.errors import BackendError
from edgert.serving.app import build
from edgert.serving.codecs import HEADER_LENGTH, Encoded, Wanted, decode_response, encode_request
from edgert.serving.dataplane import Dataplane, OpenModel
from edgert.values import Feeds, TensorSpec

DIGEST = "sha256:" + "0" * 64
X = np.array([[1, 2, 3]], np.float32)


class Doubling:
    """Output `y` is input `x` times a factor; `words` come back as they are."""

    inputs: Sequence[TensorSpec] = (TensorSpec("x", "float32", (None, 3)), TensorSpec("words", "str", (1,)))
    outputs: Sequence[TensorSpec] = (TensorSpec("y", "float32", (None, 3)), TensorSpec("said", "str", (1,)))

    def __init__(self, factor: float = 2) -> None:
        self.factor = np.float32(factor)
        self.closed = False
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()

    def run(self, feeds: Feeds) -> dict[str, NDArray[Any]]:
        self.entered.set()
        assert self.gate.wait(20)
        if np.isnan(feeds["x"]).any():
            raise BackendError("the runtime refused the feeds")
        return {"y": feeds["x"] * self.factor, "said": feeds["words"]}

    def nodes_by_provider(self) -> dict[str, int]:
        return {}

    def close(self) -> None:
        self.closed = True


class Stage:
    """A data plane with sessions of the test, and a client in the same process."""

    def __init__(self, **sessions: Doubling) -> None:
        self.sessions = sessions
        self.plane = Dataplane(self.open)
        app = build(self.plane, body_limit_bytes=100_000)
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        self.http = httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8080")

    def open(self, model: str, version: int, digest: str) -> OpenModel:
        name = f"v{version}"
        if name not in self.sessions:
            raise BackendError("that bundle is broken")
        example = encode_request({"x": X}).body
        return OpenModel(model, version, "test_test", self.sessions[name], example)

    async def send(self, encoded: Encoded, path: str = "/v2/models/m/infer") -> httpx.Response:
        headers = {} if encoded.header_length is None else {HEADER_LENGTH: str(encoded.header_length)}
        return await self.http.post(path, content=encoded.body, headers=headers)


def play(scene: Callable[[Stage], Awaitable[None]], **sessions: Doubling) -> None:
    async def whole() -> None:
        stage = Stage(**({"v1": Doubling()} | sessions))
        await stage.plane.load("m", 1, DIGEST)
        async with stage.http:
            await scene(stage)
        await stage.plane.close()

    asyncio.run(whole())


def inputs(x: NDArray[Any] = X) -> dict[str, NDArray[Any]]:
    return {"x": x, "words": np.array([b"gr\xc3\xbc\xc3\x9fe"], object)}


def problem(response: httpx.Response, status: int) -> str:
    assert response.status_code == status, response.text
    body = response.json()
    assert body.keys() == {"error", "hint"}
    assert body["error"]
    assert isinstance(body["hint"], str)
    return f"{body['error']} {body['hint']}"


def test_health_and_metadata_are_as_the_protocol_says() -> None:
    async def scene(stage: Stage) -> None:
        for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/m/ready", "/v2/models/m/versions/1/ready"):
            assert (await stage.http.get(path)).status_code == 200
        server = (await stage.http.get("/v2")).json()
        assert (server["name"], server["extensions"]) == ("edgert", ["binary_tensor_data"])
        for path in ("/v2/models/m", "/v2/models/m/versions/1"):
            assert (await stage.http.get(path)).json() == {
                "name": "m",
                "versions": ["1"],
                "platform": "test_test",
                "inputs": [
                    {"name": "x", "datatype": "FP32", "shape": [-1, 3]},
                    {"name": "words", "datatype": "BYTES", "shape": [1]},
                ],
                "outputs": [
                    {"name": "y", "datatype": "FP32", "shape": [-1, 3]},
                    {"name": "said", "datatype": "BYTES", "shape": [1]},
                ],
            }

    play(scene)


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("binary_outputs", [False, True])
@pytest.mark.parametrize("outputs", [None, [Wanted("y", True), Wanted("said")], [Wanted("said")]])
@pytest.mark.parametrize("path", ["/v2/models/m/infer", "/v2/models/m/versions/1/infer"])
def test_json_and_binary_give_the_same_answer(
    binary: bool, binary_outputs: bool, outputs: list[Wanted] | None, path: str
) -> None:
    async def scene(stage: Stage) -> None:
        encoded = encode_request(
            inputs(), binary=binary, binary_outputs=binary_outputs, outputs=outputs, request_id="a-1"
        )
        response = await stage.send(encoded, path)
        assert response.status_code == 200, response.text
        length = response.headers.get(HEADER_LENGTH)
        expects_binary = binary_outputs if outputs is None else any(row.binary for row in outputs)
        assert (length is not None) == expects_binary
        kind = "application/octet-stream" if expects_binary else "application/json"
        assert response.headers["content-type"] == kind
        answer = decode_response(response.content, length)
        assert (answer.model, answer.version, answer.id) == ("m", "1", "a-1")
        wanted = ["y", "said"] if outputs is None else [row.name for row in outputs]
        assert list(answer.outputs) == wanted
        assert answer.outputs["said"].tolist() == ["grüße".encode()]
        if "y" in wanted:
            assert np.array_equal(answer.outputs["y"], X * 2)

    play(scene)


def test_mixed_json_and_binary_inputs_are_understood() -> None:
    async def scene(stage: Stage) -> None:
        rows = [
            {"name": "words", "datatype": "BYTES", "shape": [1], "data": ["hello"]},
            {"name": "x", "datatype": "FP32", "shape": [1, 3], "parameters": {"binary_data_size": 12}},
        ]
        head = json.dumps({"inputs": rows}).encode()
        response = await stage.send(Encoded(head + X.tobytes(), len(head)))
        assert response.json()["outputs"][0]["data"] == [2, 4, 6]

    play(scene)


@pytest.mark.parametrize(
    ("sent", "complaint"),
    [
        ({"x": X}, "'words' is missing"),
        (inputs() | {"z": X}, "no input 'z'"),
        (inputs(X.astype(np.float64)), "is FP64, the model takes FP32"),
        (inputs(X[0]), "has shape 3, the model takes ?x3"),
        (inputs(np.zeros((1, 4), np.float32)), "has shape 1x4"),
        (inputs(np.zeros((0, 3), np.float32)), "has shape 0x3"),
        (inputs() | {"words": np.array([b"\xff"], object)}, "not UTF-8"),
        (inputs(np.array([[np.nan, 1, 2]], np.float32)), "the runtime refused"),
    ],
)
def test_feeds_that_do_not_fit_are_refused_with_400(sent: dict[str, NDArray[Any]], complaint: str) -> None:
    async def scene(stage: Stage) -> None:
        assert complaint in problem(await stage.send(encode_request(sent, binary=True)), 400)

    play(scene)


def test_free_axis_takes_any_size() -> None:
    async def scene(stage: Stage) -> None:
        response = await stage.send(encode_request(inputs(np.ones((5, 3), np.float32))))
        assert response.json()["outputs"][0]["shape"] == [5, 3]

    play(scene)


def test_unknown_output_is_refused_before_the_model_runs() -> None:
    async def scene(stage: Stage) -> None:
        response = await stage.send(encode_request(inputs(), outputs=[Wanted("z")]))
        assert "no output 'z'" in problem(response, 400)
        assert not stage.sessions["v1"].entered.is_set()

    play(scene)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing/here", 404),
        ("GET", "/v2/models/other", 404),
        ("GET", "/v2/models/other/ready", 404),
        ("GET", "/v2/models/m/versions/2", 404),
        ("GET", "/v2/models/m/versions/one/ready", 404),
        ("POST", "/v2/models/other/infer", 404),
        ("POST", "/v2/models/m/versions/7/infer", 404),
        ("GET", "/v2/models/m/infer", 405),
        ("DELETE", "/v2", 405),
        ("POST", "/v2/models/m/infer", 400),
    ],
)
def test_every_error_has_an_error_and_a_hint(method: str, path: str, status: int) -> None:
    async def scene(stage: Stage) -> None:
        problem(await stage.http.request(method, path), status)

    play(scene)


def test_too_long_body_is_refused_with_413() -> None:
    async def parts() -> Any:
        for _ in range(3):
            yield b"x" * 40_000

    async def scene(stage: Stage) -> None:
        assert "100000 bytes" in problem(await stage.http.post("/v2/models/m/infer", content=b"x" * 100_001), 413)
        problem(await stage.http.post("/v2/models/m/infer", content=parts()), 413)

    play(scene)


def test_compressed_body_is_refused_with_415() -> None:
    async def scene(stage: Stage) -> None:
        headers = {"content-encoding": "gzip"}
        problem(await stage.http.post("/v2/models/m/infer", content=b"x", headers=headers), 415)

    play(scene)


@pytest.mark.parametrize("headers", [{"host": "evil.example"}, {"origin": "http://evil.example"}])
def test_foreign_page_is_refused_with_403(headers: dict[str, str]) -> None:
    async def scene(stage: Stage) -> None:
        problem(await stage.http.get("/v2", headers=headers), 403)

    play(scene)


def test_unexpected_failure_is_500_without_details() -> None:
    class Broken(Doubling):
        def run(self, feeds: Feeds) -> dict[str, NDArray[Any]]:
            raise ZeroDivisionError("secret")

    async def scene(stage: Stage) -> None:
        assert "secret" not in problem(await stage.send(encode_request(inputs())), 500)
        assert stage.plane.stats()["m"]["errors"] == 1

    play(scene, v1=Broken())


def test_swap_waits_for_nobody_and_cuts_nobody() -> None:
    old, new = Doubling(2), Doubling(3)

    async def scene(stage: Stage) -> None:
        old.gate.clear()
        slow = asyncio.create_task(stage.send(encode_request(inputs())))
        assert await asyncio.to_thread(old.entered.wait, 20)
        await stage.plane.load("m", 2, DIGEST)
        assert not old.closed
        fresh = await stage.send(encode_request(inputs()))
        assert fresh.json()["model_version"] == "2"
        assert fresh.json()["outputs"][0]["data"] == [3, 6, 9]
        problem(await stage.send(encode_request(inputs()), "/v2/models/m/versions/1/infer"), 404)
        old.gate.set()
        assert (await slow).json()["outputs"][0]["data"] == [2, 4, 6]
        await stage.plane.close()
        assert old.closed

    play(scene, v1=old, v2=new)


def test_failed_load_leaves_the_old_version_answering() -> None:
    async def scene(stage: Stage) -> None:
        with pytest.raises(BackendError, match="broken"):
            await stage.plane.load("m", 9, DIGEST)
        assert (await stage.send(encode_request(inputs()))).json()["model_version"] == "1"
        assert (await stage.http.get("/v2/health/ready")).status_code == 200

    play(scene)


def test_model_that_never_loaded_is_503_with_the_reason() -> None:
    async def scene(stage: Stage) -> None:
        with pytest.raises(BackendError):
            await stage.plane.load("other", 9, DIGEST)
        assert "broken" in problem(await stage.http.get("/v2/models/other/ready"), 503)
        response = await stage.http.get("/v2/health/ready")
        problem(response, 503)
        assert response.headers["retry-after"] == "1"

    play(scene)


def test_slow_model_does_not_hold_up_health_or_other_models() -> None:
    slow = Doubling()

    async def scene(stage: Stage) -> None:
        await stage.plane.load("other", 2, DIGEST)
        slow.gate.clear()
        waiting = asyncio.create_task(stage.send(encode_request(inputs())))
        assert await asyncio.to_thread(slow.entered.wait, 20)
        assert (await stage.http.get("/v2/health/live")).status_code == 200
        assert (await stage.send(encode_request(inputs()), "/v2/models/other/infer")).status_code == 200
        assert not waiting.done()
        slow.gate.set()
        assert (await waiting).status_code == 200

    play(scene, v1=slow, v2=Doubling())


def test_stats_count_requests_and_errors() -> None:
    async def scene(stage: Stage) -> None:
        await stage.send(encode_request(inputs()))
        await stage.send(Encoded(b"nonsense"))
        row = stage.plane.stats()["m"]
        assert (row["version"], row["requests"], row["errors"]) == (1, 2, 1)
        assert 0 < row["latency_ms"] <= row["latency_max_ms"]

    play(scene)


def test_documentation_needs_no_network() -> None:
    async def scene(stage: Stage) -> None:
        for page in ("/docs", "/redoc"):
            html = (await stage.http.get(page)).text
            links = re.findall(r"""(?:src|href|url)\s*[=:]\s*["']([^"']+)["']""", html)
            assert links
            for link in links:
                assert link.startswith("/"), link
                assert not link.startswith("//")
                assert (await stage.http.get(link)).status_code == 200, link

    play(scene)


def test_openapi_shows_the_infer_body_with_an_example_per_model() -> None:
    async def scene(stage: Stage) -> None:
        document = (await stage.http.get("/openapi.json")).json()
        for path in ("/v2/models/{model}/infer", "/v2/models/{model}/versions/{version}/infer"):
            content = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]
            assert content["schema"] == {"$ref": "#/components/schemas/InferRequest"}
            assert content["examples"]["m"]["value"]["inputs"][0]["data"] == [1, 2, 3]
        references = set(re.findall(r'"\$ref":\s*"#/components/schemas/([^"]+)"', json.dumps(document)))
        assert references <= document["components"]["schemas"].keys()
        assert "HTTPValidationError" not in references

    play(scene)


def test_bodies_in_flight_share_a_budget_and_what_comes_beyond_is_told_to_wait() -> None:
    """The limit of one body is 100,000 bytes here, so all together may hold 400,000."""
    path = "/v2/models/m/infer"

    async def scene(stage: Stage) -> None:
        held, go = asyncio.Semaphore(0), asyncio.Event()

        async def slowly() -> Any:
            yield b" " * 99_000
            held.release()
            await go.wait()

        waiting = [asyncio.create_task(stage.http.post(path, content=slowly())) for _ in range(4)]
        for _ in waiting:
            await held.acquire()
        refused = await stage.http.post(path, content=b" " * 50_000)
        assert "at once" in problem(refused, 503)
        assert refused.headers["retry-after"] == "1"
        assert (await stage.send(encode_request(inputs()))).status_code == 200
        go.set()
        for answer in await asyncio.gather(*waiting):
            problem(answer, 400)
        problem(await stage.http.post(path, content=b" " * 99_000), 400)

    play(scene)
