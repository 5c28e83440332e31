"""What values the tensors of a float graph take on real samples, observed in a child process."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from converters import graph
from converters.quantize.base import Range, Ranges
from edgert import samples as samples_file
from edgert import trial
from edgert.errors import CheckError
from edgert.samples import Samples

__all__ = ["observe"]

_LABEL = "ranges"


def observe(
    model: onnx.ModelProto, names: tuple[str, ...], samples: Samples, folder: Path, *, timeout_s: float
) -> Ranges:
    """Smallest and largest value of each named tensor over all samples; tensors that were never finite are left out.

    Args:
        names: float32 tensors of the main graph.
        folder: a scratch folder.

    Raises:
        CheckError: the observing graph could not be run.
    """
    path, feeds = folder / f"{_LABEL}.onnx", folder / "calibrate.npz"
    path.write_bytes(graph.serialize(_observing(model, names)))
    feeds.write_bytes(samples_file.pack_arrays(samples.inputs))
    contender = trial.Contender(label=_LABEL, path=path, format="onnx")
    (verdict,) = trial.run([contender], samples=feeds, outputs=folder, timeout_s=timeout_s)
    if not verdict.passed:
        raise CheckError(f"the calibration run failed at {verdict.stage}: {verdict.reason}")
    found = samples_file.load_arrays(folder / f"{_LABEL}.npz")
    ranges = {}
    for i, name in enumerate(names):
        low, high = found[f"low.{i}"].astype(np.float64), found[f"high.{i}"].astype(np.float64)
        finite = np.isfinite(low) & np.isfinite(high)
        if finite.any():
            ranges[name] = Range(float(low[finite].min()), float(high[finite].max()))
    return ranges


def _observing(model: onnx.ModelProto, names: tuple[str, ...]) -> onnx.ModelProto:
    observing = onnx.ModelProto()
    observing.CopyFrom(model)
    del observing.graph.output[:]
    for i, name in enumerate(names):
        for operator, result in (("ReduceMin", f"low.{i}"), ("ReduceMax", f"high.{i}")):
            observing.graph.node.append(helper.make_node(operator, [name], [result], keepdims=0, name=f"{result}.node"))
            observing.graph.output.append(helper.make_tensor_value_info(result, TensorProto.FLOAT, []))
    return observing
