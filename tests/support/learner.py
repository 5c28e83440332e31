"""A bundle that can be trained, made of a tiny network, and examples it can learn from."""

from pathlib import Path

from converters.training.build import build
from edgert.bundle import Bundle, create
from edgert.manifest import Artifact, Golden, Manifest, Provenance, Tensor
from edgert.samples import pack_arrays
from edgert.values import digest
from tests.support.models import CLASSES, cnn
from tests.support.training import stripes

__all__ = ["MODEL", "examples_folder", "trainable_bundle"]

MODEL = "stripes"


def trainable_bundle(path: Path) -> Bundle:
    """Input `image` [N, 1, 8, 8], three classes, with training graph and weights."""
    graph = build(cnn(), batch_size=8)
    infer, train = cnn().SerializeToString(), graph.model.SerializeToString()
    golden = pack_arrays({})
    parts = [
        ("infer", "onnx", "model.onnx", infer, "float32"),
        ("train", "onnx", "train.onnx", train, ""),
        ("weights", "npz", "weights.npz", pack_arrays(graph.weights), ""),
        ("golden", "npz", "golden.npz", golden, ""),
    ]
    artifacts = [
        {"role": role, "format": kind, "file": file, "digest": digest(data), "size_bytes": len(data), "precision": how}
        for role, kind, file, data, how in parts
    ]
    manifest = Manifest(
        model=MODEL,
        profile="generic-cpu",
        inputs=(Tensor(name="image", dtype="float32", shape=(None, 1, 8, 8)),),
        outputs=(Tensor(name="scores", dtype="float32", shape=(None, CLASSES)),),
        artifacts=tuple(Artifact.model_validate(row) for row in artifacts),
        golden=Golden(count=1, tolerance={}),
        training=graph.training,
        provenance=Provenance(source=digest(infer), recipe=digest(b"recipe"), tools={}),
    )
    create(path, manifest, {digest(data): data for _, _, _, data, _ in parts})
    return Bundle.open(path)


def examples_folder(folder: Path, counts: tuple[int, ...] = (30, 11)) -> Path:
    """One ``.npz`` file per count."""
    folder.mkdir(parents=True)
    for number, count in enumerate(counts):
        samples, _ = stripes(count, seed=number)
        assert samples.labels is not None
        (folder / f"{number}.npz").write_bytes(pack_arrays({**samples.inputs, "labels": samples.labels}))
    return folder
