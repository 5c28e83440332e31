"""A small convolutional network for 8x8 handwritten digits."""

import onnx

from converters.models.base import Layers

__all__ = ["plugin"]


class _DigitsCnn:
    summary = "image [N,1,8,8] in 0..1 - 2 convolutions, 2 dense layers, 38 thousand parameters - scores [N,10]"

    def make(self, seed: int) -> onnx.ModelProto:
        layers = Layers("digits-cnn", ("image", (1, 8, 8)), seed)
        layers.conv("conv1", 1, 16, 3)
        layers.apply("Relu", "relu1")
        layers.apply("MaxPool", "pool1", kernel_shape=[2, 2], strides=[2, 2])
        layers.conv("conv2", 16, 32, 3)
        layers.apply("Relu", "relu2")
        layers.apply("Flatten", "flat", axis=1)
        layers.dense("dense1", 32 * 4 * 4, 64)
        layers.apply("Relu", "relu3")
        layers.dense("dense2", 64, 10)
        return layers.finish("scores", 10)


plugin = _DigitsCnn()
