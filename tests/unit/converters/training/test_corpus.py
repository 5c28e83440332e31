"""Training graphs of real models (found through EDGERT_CASES) pass their gradient check."""

import os
from pathlib import Path

import onnx
import pytest

from converters.training.build import build, check

_CASES = os.environ.get("EDGERT_CASES", "")


@pytest.mark.skipif(not _CASES, reason="EDGERT_CASES names no corpus of real models")
@pytest.mark.parametrize(
    ("file", "parameters"),
    [
        ("anomaly_toycar_autoencoder/ad_float.onnx", 20),
        ("audio_kws_dscnn/kws_float.onnx", 20),
        ("vision_resnet8_cifar10/resnet8_float.onnx", 20),
        ("vision_mnist/mnist_cntk_opset8.onnx", 6),
    ],
)
def test_gradients_of_a_real_model_are_right(file: str, parameters: int) -> None:
    made = build(onnx.load(Path(_CASES) / file), batch_size=4)
    assert len(made.training.parameters) == parameters
    assert check(made, rows=2, directions=1) < 2e-5
