"""A multi-layer perceptron for 64 numbers, the smallest network that learns handwritten digits."""

import onnx

from converters.models.base import Layers

__all__ = ["plugin"]


class _Mlp:
    summary = "features [N,64] - 2 dense layers, 2.4 thousand parameters - scores [N,10]"

    def make(self, seed: int) -> onnx.ModelProto:
        layers = Layers("mlp", ("features", (64,)), seed)
        layers.dense("dense1", 64, 32)
        layers.apply("Relu", "relu1")
        layers.dense("dense2", 32, 10)
        return layers.finish("scores", 10)


plugin = _Mlp()
