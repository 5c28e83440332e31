"""What every backend promises, tried with one small network in its own format."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgert import plugins
from edgert.backends.base import Backend, Session, SessionOptions
from edgert.errors import BackendError
from tests.support import models, tflite_models

# The same network, batch axis free and fixed, for each format that the backends name.
FREE: dict[str, Callable[[], bytes]] = {
    "onnx": lambda: models.mlp().SerializeToString(),
    "tflite": tflite_models.mlp,
}
FIXED: dict[str, Callable[[], bytes]] = {
    "onnx": lambda: models.mlp(batch=1).SerializeToString(),
    "tflite": lambda: tflite_models.mlp(dynamic=False),
}
X = np.random.default_rng(0).random((7, 4), dtype=np.float32)


@pytest.fixture(params=plugins.names("edgert.backends"))
def backend(request: pytest.FixtureRequest) -> Backend:
    loaded: Backend = plugins.load("edgert.backends", request.param)
    return loaded


@pytest.fixture
def path(backend: Backend, tmp_path: Path) -> Path:
    format_ = backend.formats[0]
    (tmp_path / f"m.{format_}").write_bytes(FREE[format_]())
    return tmp_path / f"m.{format_}"


@pytest.fixture
def session(backend: Backend, path: Path) -> Iterator[Session]:
    opened = backend.open(path)
    yield opened
    opened.close()


def test_it_works_here_and_says_which_version(backend: Backend) -> None:
    found = backend.probe()
    assert found.available, found.reason
    assert found.version.rpartition(" ")[2][0].isdigit()


def test_inputs_and_outputs_are_described(session: Session) -> None:
    (taken,), (given,) = session.inputs, session.outputs
    assert (taken.name, taken.dtype, taken.shape) == ("x", "float32", (None, 4))
    assert (given.name, given.dtype, given.shape) == ("scores", "float32", (None, 3))


@pytest.mark.parametrize("rows", [1, 7, 2])
def test_a_free_batch_axis_takes_any_number_of_rows(session: Session, rows: int) -> None:
    answer = session.run({"x": X[:rows]})
    assert list(answer) == ["scores"]
    assert answer["scores"].dtype == np.float32
    np.testing.assert_allclose(answer["scores"], models.mlp_answer(X[:rows]), atol=1e-5)


def test_batches_of_different_size_may_follow_each_other(session: Session) -> None:
    for rows in (1, 5, 5, 2, 7, 1):
        np.testing.assert_allclose(session.run({"x": X[:rows]})["scores"], models.mlp_answer(X[:rows]), atol=1e-5)


def test_answers_are_not_overwritten_by_the_next_run(session: Session) -> None:
    first = session.run({"x": X[:1]})["scores"]
    kept = first.copy()
    session.run({"x": X[1:2]})
    np.testing.assert_array_equal(first, kept)


def test_the_same_feed_gives_the_same_bits(session: Session) -> None:
    np.testing.assert_array_equal(session.run({"x": X})["scores"], session.run({"x": X.copy()})["scores"])


def test_an_array_in_any_memory_order_is_understood(session: Session) -> None:
    turned = np.asfortranarray(X)
    np.testing.assert_allclose(session.run({"x": turned[::-1]})["scores"], models.mlp_answer(X[::-1]), atol=1e-5)


@pytest.mark.parametrize(
    ("feeds", "words"),
    [
        ({}, "x"),
        ({"y": X}, "x"),
        ({"x": X, "y": X}, "y"),
        ({"x": X.astype(np.float64)}, "float32"),
        ({"x": X[:, :3]}, "x"),
        ({"x": X[0]}, "x"),
        ({"x": X[None]}, "x"),
        ({"x": X[:0, :2]}, "x"),
    ],
    ids=["nothing", "another name", "one too many", "type", "width", "rank 1", "rank 3", "nothing inside"],
)
def test_a_feed_that_does_not_fit_is_refused_by_name(session: Session, feeds: dict[str, Any], words: str) -> None:
    with pytest.raises(BackendError, match=words) as caught:
        session.run(feeds)
    assert "\n" not in caught.value.message
    np.testing.assert_allclose(session.run({"x": X})["scores"], models.mlp_answer(X), atol=1e-5)


def test_a_fixed_axis_takes_that_size_only(backend: Backend, tmp_path: Path) -> None:
    path = tmp_path / "fixed"
    path.write_bytes(FIXED[backend.formats[0]]())
    session = backend.open(path)
    np.testing.assert_allclose(session.run({"x": X[:1]})["scores"], models.mlp_answer(X[:1]), atol=1e-5)
    with pytest.raises(BackendError):
        session.run({"x": X})
    session.close()


def test_every_node_is_accounted_for(session: Session) -> None:
    nodes = session.nodes_by_provider()
    assert sum(nodes.values()) in (2, 3)  # two layers; the activation is a node of its own or part of the first
    assert all(count > 0 for count in nodes.values())


def test_more_threads_give_the_same_answer(backend: Backend, path: Path) -> None:
    session = backend.open(path, SessionOptions(threads=2))
    np.testing.assert_allclose(session.run({"x": X})["scores"], models.mlp_answer(X), atol=1e-5)
    session.close()


def test_a_provider_that_is_not_there_is_refused_with_those_that_are(backend: Backend, path: Path) -> None:
    with pytest.raises(BackendError, match="Imaginary") as caught:
        backend.open(path, SessionOptions(providers=("ImaginaryNpu",)))
    assert "CPU" in caught.value.hint


@pytest.mark.parametrize("content", [b"", b"\0" * 100, b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n"])
def test_a_file_that_is_no_model_is_refused(backend: Backend, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad").write_bytes(content)
    with pytest.raises(BackendError, match="cannot open bad") as caught:
        backend.open(tmp_path / "bad")
    assert "\n" not in caught.value.message


def test_a_file_that_does_not_exist_is_refused(backend: Backend, tmp_path: Path) -> None:
    with pytest.raises(BackendError):
        backend.open(tmp_path / "none")


def test_many_sessions_live_side_by_side(backend: Backend, path: Path) -> None:
    sessions = [backend.open(path) for _ in range(4)]
    for session in sessions:
        np.testing.assert_allclose(session.run({"x": X})["scores"], models.mlp_answer(X), atol=1e-5)
    for session in sessions:
        session.close()
