"""The endpoint as real processes: `edgert serve`, its inference child, crashes, swaps, and what they leave behind."""

import asyncio
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from edgert.bundle import Bundle
from edgert.errors import ServeError
from edgert.runtime import open_bundle
from edgert.serving.codecs import HEADER_LENGTH, Wanted, decode_response, encode_request
from edgert.serving.worker import Worker
from edgert.store import Store
from tests.support.models import bundle_file, mlp, mlp_answer
from tests.support.oip import Client

pytestmark = [pytest.mark.journey, pytest.mark.xdist_group("serve")]

X = np.array([[0.5, -1.0, 2.0, 0.25]], np.float32)


class Served(NamedTuple):
    """A running `edgert serve`."""

    process: subprocess.Popen[str]
    url: str
    bundle: Bundle


@contextmanager
def serving(bundle: Path) -> Iterator[Served]:
    command = [sys.executable, "-m", "edgert", "serve", str(bundle), "--port", "0", "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())
        assert ready["models"] == ["tiny"]
        yield Served(process, ready["url"], Bundle.open(bundle))
    finally:
        process.kill()
        process.communicate(timeout=20)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(bundle_file(tmp_path_factory.mktemp("serve") / "tiny.edgert")) as running:
        yield running


@pytest.fixture
def client(served: Served) -> Iterator[Client]:
    with Client(served.url) as talking:
        yield talking


def children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in text.split()]


def gone(pid: int, timeout_s: float = 20) -> bool:
    """Whether that process, of whomever it is a child, ends in time."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        import select

        return bool(select.select([handle], [], [], timeout_s)[0])
    finally:
        os.close(handle)


# What a client of the protocol does


def test_json_and_binary_answers_equal_a_direct_run(served: Served, client: Client) -> None:
    opened = open_bundle(served.bundle)
    direct = opened.session.run({"x": X})["scores"]
    opened.session.close()
    for binary in (False, True):
        assert np.array_equal(client.infer("tiny", {"x": X}, binary=binary)["scores"], direct)


@pytest.mark.parametrize(
    ("binary", "binary_outputs", "outputs"),
    [
        pytest.param(False, False, [Wanted("scores")], id="json in, json out"),
        pytest.param(True, False, [Wanted("scores", True)], id="binary in, binary out"),
        pytest.param(True, True, None, id="binary in, default out"),
        pytest.param(False, True, None, id="json in, binary out"),
        pytest.param(True, False, [Wanted("scores")], id="binary in, json out"),
    ],
)
def test_every_mixture_of_encodings_is_answered(
    client: Client, binary: bool, binary_outputs: bool, outputs: list[Wanted] | None
) -> None:
    encoded = encode_request({"x": X}, binary=binary, binary_outputs=binary_outputs, outputs=outputs, request_id="7")
    answer = client.send("tiny", encoded, version=1)
    assert answer.status == 200
    length = answer.headers.get(HEADER_LENGTH)
    assert (length is not None) == (binary_outputs or bool(outputs and outputs[0].binary))
    decoded = decode_response(answer.body, length)
    assert (decoded.model, decoded.version, decoded.id) == ("tiny", "1", "7")
    np.testing.assert_allclose(decoded.outputs["scores"], mlp_answer(X), rtol=1e-4, atol=1e-5)


def test_health_and_metadata_are_answered(client: Client) -> None:
    for path in ("health/live", "health/ready", "models/tiny/ready", "models/tiny/versions/1/ready"):
        assert client.ask("GET", f"/v2/{path}").status == 200
    assert client.ask("GET", "/v2").json()["name"] == "edgert"
    about = client.ask("GET", "/v2/models/tiny").json()
    assert about["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}]
    assert about["outputs"] == [{"name": "scores", "datatype": "FP32", "shape": [-1, 3]}]


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "status"),
    [
        ("GET", "/v2/models/other", None, {}, 404),
        ("POST", "/v2/models/tiny/infer", b"", {}, 400),
        ("POST", "/v2/models/tiny/infer", b"{}", {HEADER_LENGTH: "77"}, 400),
        ("POST", "/v2/models/tiny/infer", None, {"Content-Length": str(1 << 40)}, 413),
        ("GET", "/v2", None, {"Host": "evil.example"}, 403),
        ("GET", "/v2", None, {"Origin": "https://evil.example"}, 403),
    ],
)
def test_errors_have_an_error_and_a_hint(
    client: Client, method: str, path: str, body: bytes | None, headers: dict[str, str], status: int
) -> None:
    answer = client.ask(method, path, body, headers)
    assert answer.status == status
    assert answer.json().keys() == {"error", "hint"}


def test_documentation_is_served_from_this_machine(client: Client) -> None:
    page = client.ask("GET", "/docs").body.decode()
    links = re.findall(r"""(?:src|href)=["']([^"']+)["']""", page)
    assert links
    for link in links:
        assert link.startswith("/static-offline-docs/")
        assert client.ask("GET", link).status == 200


# The verb


def test_serve_prints_a_curl_line_that_works_and_ends_cleanly(tmp_path: Path) -> None:
    bundle = bundle_file(tmp_path / "tiny.edgert")
    command = [sys.executable, "-m", "edgert", "serve", str(bundle), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().split()[0]
            line = shlex.split(process.stdout.readline())
            child = children(process.pid)[0]
            with Client(url) as client:
                assert line[:2] == ["curl", "-s"]
                assert line[2] == f"{url}/v2/models/tiny/infer"
                answer = client.ask("POST", line[2].removeprefix(url), line[line.index("-d") + 1].encode())
                assert answer.status == 200
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 0
            assert gone(child)
        finally:
            process.kill()


def verb(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edgert", "serve", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_busy_port_is_one_error_and_one_hint(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        done = verb(str(bundle_file(tmp_path / "tiny.edgert")), "--port", str(port))
    assert done.returncode == 1
    assert done.stdout == ""
    error, hint = done.stderr.splitlines()
    assert error == f"error: port {port} is taken"
    assert hint.startswith("hint: ")


def test_address_that_others_reach_is_refused(tmp_path: Path) -> None:
    done = verb(str(bundle_file(tmp_path / "tiny.edgert")), "--host", "0.0.0.0")
    assert done.returncode == 3
    assert "--insecure" in done.stderr


def test_bundle_that_does_not_open_is_one_error_and_leaves_no_process(tmp_path: Path) -> None:
    done = verb(str(bundle_file(tmp_path / "tiny.edgert", model=b"no model")), "--port", "0")
    assert done.returncode == 1
    assert done.stderr.splitlines()[0].startswith("error: ")


def test_dead_supervisor_leaves_no_orphan(tmp_path: Path) -> None:
    with serving(bundle_file(tmp_path / "tiny.edgert")) as running:
        (child,) = children(running.process.pid)
        running.process.kill()
        assert gone(child)


# The supervisor


class Box:
    """A worker with three versions of one model in its store: 1, 2 and a broken 3."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self.store = Store(folder / "store")
        models = {1: mlp(1).SerializeToString(), 2: mlp(2).SerializeToString(), 3: b"no model"}
        self.digests: dict[int, str] = {}
        for version, model in models.items():
            bundle = Bundle.open(bundle_file(folder / f"{version}.edgert", model=model))
            self.store.ingest(bundle)
            self.digests[version] = bundle.digest
        self.worker = Worker(store=self.store.root, **options)

    async def load(self, version: int, seed: int | None = None) -> None:
        await self.worker.load("tiny", version, self.digests[seed or version])

    def ask(self) -> int:
        """One fresh connection; the version that answered, and rightly."""
        with Client(self.worker.endpoint) as client:
            return rightly(client)


def rightly(client: Client) -> int:
    answer = client.send("tiny", encode_request({"x": X}))
    assert answer.status == 200, answer.body
    decoded = decode_response(answer.body)
    version = int(decoded.version)
    np.testing.assert_allclose(decoded.outputs["scores"], mlp_answer(X, 2 - version % 2), rtol=1e-4, atol=1e-5)
    return version


def supervised(folder: Path, story: Callable[[Box], Awaitable[None]], **options: Any) -> None:
    async def whole() -> None:
        box = Box(folder, **options)
        await box.worker.start()
        supervision = asyncio.create_task(box.worker.run())
        try:
            async with asyncio.timeout(90):
                await story(box)
        finally:
            supervision.cancel()
            await asyncio.wait({supervision})
            await box.worker.stop()

    asyncio.run(whole())


def test_clients_wait_while_a_killed_child_starts_again(tmp_path: Path) -> None:
    async def story(box: Box) -> None:
        await box.load(1)
        pid = box.worker.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        assert gone(pid)
        assert await asyncio.to_thread(box.ask) == 1
        assert box.worker.pid != pid
        assert (await box.worker.stats())["restarts"] == 1

    supervised(tmp_path, story)


def test_silent_child_is_replaced(tmp_path: Path) -> None:
    async def story(box: Box) -> None:
        await box.load(1)
        pid = box.worker.pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        assert await asyncio.to_thread(box.ask) == 1
        assert box.worker.pid != pid

    supervised(tmp_path, story, silence_s=2.5)


def test_swaps_under_load_fail_no_request(tmp_path: Path) -> None:
    seen: list[int] = []
    failures: list[BaseException] = []
    stop = threading.Event()

    def caller(endpoint: str) -> None:
        try:
            with Client(endpoint) as client:
                while not stop.is_set():
                    seen.append(rightly(client))
        except (OSError, AssertionError) as e:
            failures.append(e)

    async def story(box: Box) -> None:
        await box.load(1)
        callers = [threading.Thread(target=caller, args=(box.worker.endpoint,)) for _ in range(3)]
        for thread in callers:
            thread.start()
        for version in range(2, 8):
            await box.load(version, seed=2 - version % 2)
            assert await asyncio.to_thread(box.ask) == version
        stop.set()
        for thread in callers:
            await asyncio.to_thread(thread.join, 30)
        assert not failures
        row = (await box.worker.stats())["models"]["tiny"]
        assert (row["version"], row["errors"]) == (7, 0)
        assert row["requests"] == len(seen) + 6

    supervised(tmp_path, story)
    assert len(set(seen)) > 1


def test_version_that_cannot_be_loaded_leaves_the_old_one_answering(tmp_path: Path) -> None:
    async def story(box: Box) -> None:
        await box.load(1)
        with pytest.raises(ServeError):
            await box.load(3)
        with pytest.raises(ServeError, match="lacks blob"):
            await box.worker.load("tiny", 4, "sha256:" + "0" * 64)
        with pytest.raises(ServeError, match="holds model tiny"):
            await box.worker.load("other", 1, box.digests[1])
        assert await asyncio.to_thread(box.ask) == 1
        await box.load(2)
        assert await asyncio.to_thread(box.ask) == 2

    supervised(tmp_path, story)


def test_unloaded_model_is_unknown_and_stays_so_after_a_restart(tmp_path: Path) -> None:
    def status(endpoint: str) -> int:
        with Client(endpoint) as client:
            return client.ask("GET", "/v2/models/tiny").status

    async def story(box: Box) -> None:
        await box.load(1)
        assert status(box.worker.endpoint) == 200
        await box.worker.unload("tiny")
        assert status(box.worker.endpoint) == 404
        pid = box.worker.pid
        assert pid is not None
        os.kill(pid, signal.SIGTERM)
        assert gone(pid)
        assert await asyncio.to_thread(status, box.worker.endpoint) == 404, "only the next process can have said that"
        assert (await box.worker.stats())["restarts"] == 1

    supervised(tmp_path, story)


def test_child_that_dies_at_its_start_is_a_clean_error(tmp_path: Path) -> None:
    async def story() -> None:
        worker = Worker(store=tmp_path / "file" / "store")
        (tmp_path / "file").write_text("in the way")
        with pytest.raises(ServeError, match="died"):
            await worker.start()

    asyncio.run(story())


def test_supervisor_is_light() -> None:
    program = (
        "import sys, edgert.serving.worker, edgert.serving.cli\n"
        "heavy = {'fastapi', 'starlette', 'uvicorn', 'uvloop', 'onnxruntime', 'ai_edge_litert'} & set(sys.modules)\n"
        "sys.exit(', '.join(sorted(heavy)) or 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
