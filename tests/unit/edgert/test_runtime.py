"""From a bundle to a session, or to every reason why not."""

from pathlib import Path

import numpy as np
import pytest

from edgert import runtime
from edgert.bundle import Bundle, create
from edgert.errors import BackendError, BundleError, SamplesError
from edgert.manifest import Artifact
from edgert.samples import Samples
from edgert.store import Store
from edgert.values import digest
from tests.support import tflite_models
from tests.support.models import bundle_file, mlp, mlp_answer


def with_artifacts(path: Path, *parts: dict[str, object], data: dict[str, bytes]) -> Bundle:
    """The tiny bundle with other `infer` artifacts; `data` by file name."""
    bundle = Bundle.open(bundle_file(path))
    golden = bundle.require("golden")
    infer = tuple(
        Artifact.model_validate(
            {"role": "infer", "digest": digest(data[str(part["file"])]), "size_bytes": len(data[str(part["file"])])}
            | part
        )
        for part in parts
    )
    manifest = bundle.manifest.model_copy(update={"artifacts": (*infer, golden)})
    blobs = {digest(content): content for content in data.values()} | {golden.digest: bundle.read(golden)}
    create(path, manifest, blobs)
    return Bundle.open(path)


X = np.random.default_rng(0).random((6, 4), dtype=np.float32)
ONNX = {"format": "onnx", "file": "m.onnx"}
TFLITE = {"format": "tflite", "file": "m.tflite"}


@pytest.fixture
def both() -> dict[str, bytes]:
    return {"m.onnx": mlp().SerializeToString(), "m.tflite": tflite_models.mlp()}


def test_each_format_finds_its_backend() -> None:
    assert runtime.backend_for("onnx")[0] == "onnxruntime"
    assert runtime.backend_for("tflite")[0] == "tflite"


def test_a_format_nobody_opens_is_refused() -> None:
    with pytest.raises(BackendError, match="'rknn'") as caught:
        runtime.backend_for("rknn")
    assert "doctor" in caught.value.hint


def test_a_bundle_file_answers(tmp_path: Path) -> None:
    opened = runtime.open_bundle(Bundle.open(bundle_file(tmp_path / "m.edgert")))
    assert (opened.backend, opened.artifact.file) == ("onnxruntime", "model.onnx")
    np.testing.assert_allclose(opened.session.run({"x": X})["scores"], mlp_answer(X), atol=1e-5)
    opened.session.close()


def test_a_bundle_in_a_store_answers_from_its_blobs(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    bundle = Bundle.open(bundle_file(tmp_path / "m.edgert"))
    store.ingest(bundle)
    stored = Bundle.load(store, bundle.digest)
    artifact = stored.require("infer")
    with runtime.materialized(stored, artifact) as path:
        assert path == store.path(artifact.digest)
    opened = runtime.open_bundle(stored)
    np.testing.assert_allclose(opened.session.run({"x": X})["scores"], mlp_answer(X), atol=1e-5)


def test_a_temporary_copy_lives_as_long_as_the_block(tmp_path: Path) -> None:
    bundle = Bundle.open(bundle_file(tmp_path / "m.edgert"))
    with runtime.materialized(bundle, bundle.require("infer")) as path:
        assert digest(path.read_bytes()) == bundle.require("infer").digest
    assert not path.parent.exists()


@pytest.mark.parametrize("change", ["damaged", "gone"])
def test_a_blob_that_changed_in_the_store_is_not_opened(tmp_path: Path, change: str) -> None:
    store = Store(tmp_path / "store")
    bundle = Bundle.open(bundle_file(tmp_path / "m.edgert"))
    store.ingest(bundle)
    blob = store.path(bundle.require("infer").digest)
    blob.write_bytes(blob.read_bytes()[:-1] + b"?") if change == "damaged" else blob.unlink()
    with pytest.raises(BundleError, match=r"damaged|lacks"):
        runtime.open_bundle(Bundle.load(store, bundle.digest))


def test_the_first_artifact_that_works_is_chosen(tmp_path: Path, both: dict[str, bytes]) -> None:
    npu = {"format": "rknn", "file": "m.rknn"}
    bundle = with_artifacts(tmp_path / "m", npu, TFLITE, ONNX, data=both | {"m.rknn": b"npu"})
    opened = runtime.open_bundle(bundle)
    assert (opened.backend, opened.artifact.file) == ("tflite", "m.tflite")
    np.testing.assert_allclose(opened.session.run({"x": X})["scores"], mlp_answer(X), atol=1e-5)


def test_an_artifact_asked_for_by_name_is_the_one(tmp_path: Path, both: dict[str, bytes]) -> None:
    bundle = with_artifacts(tmp_path / "m", TFLITE, ONNX, data=both)
    assert runtime.open_bundle(bundle, artifact=bundle.manifest.artifacts[1]).backend == "onnxruntime"


@pytest.mark.parametrize(
    ("minimum", "chosen"),
    [
        ({}, "m.onnx"),
        ({"onnxruntime": "1.2"}, "m.onnx"),
        ({"onnxruntime": "99"}, "m.tflite"),
        ({"other": "9"}, "m.onnx"),
    ],
)
def test_a_runtime_that_is_too_old_is_passed_over(
    tmp_path: Path, both: dict[str, bytes], minimum: dict[str, str], chosen: str
) -> None:
    bundle = with_artifacts(tmp_path / "m", ONNX | {"min_runtime": minimum}, TFLITE, data=both)
    assert runtime.open_bundle(bundle).artifact.file == chosen


@pytest.mark.parametrize(("runtime_name", "works"), [("ai-edge-litert", False), ("tflite-runtime", True)])
def test_the_two_tflite_runtimes_are_told_apart(
    tmp_path: Path, both: dict[str, bytes], runtime_name: str, works: bool
) -> None:
    bundle = with_artifacts(tmp_path / "m", TFLITE | {"min_runtime": {runtime_name: "2.14"}}, ONNX, data=both)
    assert (runtime.open_bundle(bundle).artifact.file == "m.tflite") is works


def test_what_was_compiled_for_another_chip_is_passed_over(tmp_path: Path, both: dict[str, bytes]) -> None:
    compiled = ONNX | {"compiled_for": {"soc": "rk3588", "sdk": "rknn"}}
    assert runtime.open_bundle(with_artifacts(tmp_path / "m", compiled, TFLITE, data=both)).backend == "tflite"


def test_when_nothing_works_every_reason_is_told(tmp_path: Path, both: dict[str, bytes]) -> None:
    old = ONNX | {"min_runtime": {"onnxruntime": "99.1"}}
    bundle = with_artifacts(tmp_path / "m", old, TFLITE, data=both | {"m.tflite": b"version https://git-lfs"})
    with pytest.raises(
        BackendError, match=r"m\.onnx: needs onnxruntime 99\.1.*m\.tflite: TFLite cannot open"
    ) as caught:
        runtime.open_bundle(bundle)
    assert "generic-cpu" in caught.value.hint


def test_a_bundle_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no artifact of role 'infer'"):
        runtime.open_bundle(with_artifacts(tmp_path / "m", data={}))


def test_answers_have_one_entry_per_sample(tmp_path: Path) -> None:
    session = runtime.open_bundle(Bundle.open(bundle_file(tmp_path / "m.edgert"))).session
    done: list[int] = []
    rows = runtime.answer(session, Samples({"x": X}), done.append)
    assert rows.outputs["scores"].shape == (6, 3)
    assert (len(rows.run_ms), done[-1]) == (6, 6)
    whole = runtime.answer(session, Samples({"x": X.reshape(3, 2, 4)}))
    assert whole.outputs["scores"].shape == (3, 2, 3)
    np.testing.assert_allclose(whole.outputs["scores"].reshape(6, 3), rows.outputs["scores"], atol=1e-6)
    with pytest.raises(SamplesError):
        runtime.answer(session, Samples({"y": X}))
