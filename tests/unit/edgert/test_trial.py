"""Trials: what an artifact does in its child process is its verdict, never an exception."""

from pathlib import Path

import numpy as np
import pytest

from edgert import samples, trial
from edgert.bundle import Bundle
from edgert.errors import UsageError
from edgert.store import Store
from edgert.trial import Contender
from tests.support import models, tflite_models

X = np.random.default_rng(0).random((9, 4), dtype=np.float32)


@pytest.fixture
def good(tmp_path: Path) -> Contender:
    return Contender(label="good", path=models.write(models.mlp(), tmp_path / "good.onnx"), format="onnx")


@pytest.fixture
def golden(tmp_path: Path) -> Path:
    path = tmp_path / "golden.npz"
    vectors = X[:3, None]
    samples.save(path, {"input.x": vectors, "output.scores": np.stack([models.mlp_answer(x) for x in vectors])})
    return path


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    samples.save(tmp_path / "samples.npz", {"x": X})
    return tmp_path / "samples.npz"


def stored(folder: Path, **options: object) -> tuple[Store, Bundle]:
    bundle = Bundle.open(models.bundle_file(folder / "m.edgert", **options))  # type: ignore[arg-type]
    store = Store(folder / "store")
    store.ingest(bundle)
    return store, Bundle.load(store, bundle.digest)


def test_contenders_are_checked_run_and_measured_side_by_side(
    tmp_path: Path, good: Contender, golden: Path, inputs: Path
) -> None:
    lite = Contender(
        label="lite", path=tflite_models.write(tflite_models.mlp(), tmp_path / "m.tflite"), format="tflite"
    )
    other = Contender(label="other", path=models.write(models.mlp(seed=5), tmp_path / "other.onnx"), format="onnx")
    verdicts = trial.run(
        [good, lite, other], golden=golden, tolerance={"scores": 1e-4}, samples=inputs, outputs=tmp_path, rounds=5
    )
    assert [(verdict.label, verdict.passed) for verdict in verdicts] == [
        ("good", True),
        ("lite", True),
        ("other", False),
    ]
    for verdict, backend in zip(verdicts[:2], ("onnxruntime", "tflite"), strict=True):
        assert (verdict.stage, verdict.backend) == ("done", backend)
        assert verdict.version
        assert verdict.golden_error["scores"] < 1e-4
        assert verdict.latency_ms is not None
        assert verdict.cpu_ms is not None
        assert 0 < verdict.latency_ms < 50
        assert 0 < verdict.cpu_ms < 50
        assert verdict.load_ms > 0
        assert 10 << 20 < verdict.peak_rss_bytes < 1 << 30
        assert sum(verdict.nodes.values()) > 0
        answers = samples.load_arrays(tmp_path / f"{verdict.label}.npz")["scores"]
        np.testing.assert_allclose(answers, models.mlp_answer(X), atol=1e-5)
    wrong = verdicts[2]
    assert (wrong.stage, wrong.latency_ms) == ("golden", None)
    assert "off the golden vectors" in wrong.reason
    assert wrong.golden_error["scores"] > 0.1
    assert not (tmp_path / "other.npz").exists()


def test_a_crash_is_the_verdict_of_the_one_that_crashed(tmp_path: Path, good: Contender) -> None:
    data = tflite_models.mlp(quantized_io=True, zero_point=2**31)
    bad = Contender(label="bad", path=tflite_models.write(data, tmp_path / "bad.tflite"), format="tflite")
    verdicts = trial.run([bad, good], rounds=2)
    assert [verdict.passed for verdict in verdicts] == [False, True]
    assert verdicts[0].stage == "load"
    assert "crashed (SIGSEGV)" in verdicts[0].reason
    assert verdicts[1].latency_ms is not None


def test_a_hang_is_a_verdict(good: Contender) -> None:
    (verdict,) = trial.run([good], timeout_s=0.01)
    assert (verdict.passed, verdict.stage) == (False, "load")
    assert verdict.reason == "the runtime took longer than 0.01 s"


def test_a_run_without_end_is_a_verdict_with_its_stage(tmp_path: Path) -> None:
    endless = Contender(label="endless", path=models.write(models.endless(), tmp_path / "e.onnx"), format="onnx")
    samples.save(tmp_path / "s.npz", {"x": np.ones(1, np.float32)})
    (verdict,) = trial.run([endless], samples=tmp_path / "s.npz", timeout_s=2.5)
    assert (verdict.passed, verdict.stage) == (False, "samples")
    assert "took longer than 2.5 s" in verdict.reason


def test_a_memory_blow_up_is_a_verdict(tmp_path: Path) -> None:
    huge = Contender(label="huge", path=models.write(models.huge(1 << 29), tmp_path / "h.onnx"), format="onnx")
    (verdict,) = trial.run([huge], rounds=1, memory_bytes=300 << 20)
    assert (verdict.passed, verdict.stage) == (False, "latency")
    assert "more memory than the limit of 300 MiB" in verdict.reason
    assert verdict.peak_rss_bytes > 300 << 20


@pytest.mark.parametrize(
    "content",
    [b"", b"garbage", b"version https://git-lfs.github.com/spec/v1\n", models.mlp().SerializeToString()[:200]],
)
def test_a_file_that_is_no_model_is_a_verdict(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.onnx").write_bytes(content)
    (verdict,) = trial.run([Contender(label="m", path=tmp_path / "m.onnx", format="onnx")])
    assert (verdict.passed, verdict.stage) == (False, "load")
    assert "cannot open" in verdict.reason
    assert "\n" not in verdict.reason


def test_a_format_nobody_opens_is_a_verdict(good: Contender) -> None:
    (verdict,) = trial.run([good.model_copy(update={"format": "rknn"})])
    assert (verdict.passed, verdict.stage) == (False, "load")
    assert "no backend here opens" in verdict.reason


def test_without_anything_to_feed_the_latency_is_measured_all_the_same(good: Contender) -> None:
    (verdict,) = trial.run([good], rounds=3)
    assert verdict.passed
    assert verdict.latency_ms is not None


def test_an_output_without_a_tolerance_is_measured_not_judged(tmp_path: Path, golden: Path) -> None:
    other = Contender(label="other", path=models.write(models.mlp(seed=5), tmp_path / "o.onnx"), format="onnx")
    (verdict,) = trial.run([other], golden=golden)
    assert verdict.passed
    assert verdict.golden_error["scores"] > 0.1


@pytest.mark.parametrize("labels", [["a", "a"], ["../a"], [""], ["a b"]])
def test_labels_that_are_no_distinct_names_are_refused(good: Contender, labels: list[str]) -> None:
    with pytest.raises(UsageError, match="labels"):
        trial.run([good.model_copy(update={"label": label}) for label in labels])


def test_nobody_on_trial_is_no_verdict() -> None:
    assert trial.run([], rounds=5) == []


def test_a_staged_bundle_passes(tmp_path: Path) -> None:
    verdict = trial.run_bundle(*stored(tmp_path), rounds=3)
    assert verdict.passed, verdict.reason
    assert (verdict.label, verdict.stage, verdict.file) == ("tiny", "done", "model.onnx")
    assert verdict.latency_ms is not None


def test_a_staged_bundle_that_answers_otherwise_than_promised_fails(tmp_path: Path) -> None:
    verdict = trial.run_bundle(*stored(tmp_path, shift=0.5))
    assert (verdict.label, verdict.passed, verdict.stage) == ("tiny", False, "golden")
    assert verdict.golden_error["scores"] == pytest.approx(0.5, abs=1e-4)


def test_a_staged_bundle_that_crashes_fails(tmp_path: Path) -> None:
    data = tflite_models.mlp(quantized_io=True, zero_point=2**31)
    verdict = trial.run_bundle(*stored(tmp_path, model=data, format_="tflite"))
    assert (verdict.label, verdict.passed, verdict.stage) == ("tiny", False, "load")
    assert "SIGSEGV" in verdict.reason


def test_a_staged_bundle_with_a_damaged_blob_fails(tmp_path: Path) -> None:
    store, bundle = stored(tmp_path)
    store.path(bundle.require("infer").digest).write_bytes(b"?")
    verdict = trial.run_bundle(store, bundle)
    assert (verdict.passed, verdict.stage) == (False, "load")
    assert "damaged" in verdict.reason


def test_a_bundle_file_answers_samples_in_a_child(tmp_path: Path, inputs: Path) -> None:
    verdict = trial.infer(models.bundle_file(tmp_path / "m.edgert"), inputs, tmp_path, rounds=2)
    assert verdict.passed, verdict.reason
    answers = samples.load_arrays(tmp_path / "bundle.npz")["scores"]
    np.testing.assert_allclose(answers, models.mlp_answer(X), atol=1e-5)


def test_backends_are_probed_in_a_child() -> None:
    assert trial.probe("onnxruntime").available
    assert trial.probe("tflite").version.startswith("ai-edge-litert")
    assert "took longer" in trial.probe("tflite", timeout_s=0.01).reason
    with pytest.raises(UsageError, match="no backend"):
        trial.probe("cuda")
