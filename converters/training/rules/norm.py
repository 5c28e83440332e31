"""Gradients of batch normalisation with frozen statistics.

The running mean and variance are constants: an edge box trains on small, skewed batches, which would spoil them.
Scale and bias are trained.
"""

from collections.abc import Sequence

import numpy as np
import onnx

from converters.training.rules.base import Family, Rule, Writer, attributes
from edgert.errors import ModelError

__all__ = ["plugin"]


def _batch_normalization(w: Writer, node: onnx.NodeProto, grad: str) -> Sequence[str | None]:
    attrs = attributes(node)
    if attrs.get("training_mode", 0):
        raise ModelError(
            "BatchNormalization with training_mode=1 has no gradient rule", hint="export the model in inference mode"
        )
    x, scale, _, mean_name, variance_name = node.input
    mean, variance = w.value(mean_name), w.value(variance_name)
    if mean is None or variance is None:
        raise ModelError("BatchNormalization needs constant running statistics")
    rank = len(w.shape(x))
    channels = [1, -1, *([1] * (rank - 2))]
    spread = np.sqrt(variance.astype(np.float64) + float(attrs.get("epsilon", 1e-5)))
    inverse = w.constant((1 / spread).astype(np.float32).reshape(channels))
    scaled = w.add("Mul", inverse, w.reshape(scale, channels))
    others = [axis for axis in range(rank) if axis != 1]
    centred = w.add("Sub", x, w.constant(mean.astype(np.float32).reshape(channels)))
    normal = w.add("Mul", centred, inverse)
    return [w.add("Mul", grad, scaled), w.total(w.add("Mul", grad, normal), others), w.total(grad, others), None, None]


plugin = Family({"BatchNormalization": Rule(_batch_normalization, inputs=(0, 1, 2))})
