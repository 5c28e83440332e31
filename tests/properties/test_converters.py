"""Algebra of the converters: quantization covers its range, packing is a round trip."""

from typing import Literal

import hypothesis.extra.numpy as numpy_strategies
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from converters import data
from converters.quantize.base import Range
from converters.quantize.static_int8 import affine
from edgert.samples import Samples
from edgert.values import TensorSpec

_VALUES = st.floats(-(2.0**60), 2.0**60, allow_nan=False, width=32)


@given(_VALUES, _VALUES, st.floats(0, 1))
def test_quantization_covers_its_range_with_an_exact_zero(a: float, b: float, part: float) -> None:
    low, high = min(a, b), max(a, b)
    stored = affine(Range(low, high))
    assert 0 <= stored.zero_point <= 255
    assert stored.scale * (stored.zero_point - stored.zero_point) == 0
    value = low + (high - low) * part
    code = min(max(round(value / stored.scale) + stored.zero_point, 0), 255)
    error = abs(stored.scale * (code - stored.zero_point) - value)
    assert error <= stored.scale * 1.001 or stored.scale == 1.0


@settings(max_examples=30)
@given(
    numpy_strategies.arrays(np.float32, st.tuples(st.integers(1, 4), st.just(3)), elements=st.floats(-9, 9, width=32)),
    st.sampled_from(["row", "whole"]),
)
def test_both_forms_of_samples_become_the_same_whole_inputs(
    rows: NDArray[np.float32], form: Literal["row", "whole"]
) -> None:
    spec = TensorSpec("x", "float32", (None, 3))
    given_form = rows if form == "row" else rows[:, None, :]
    made = data.whole(Samples({"x": given_form, "unused": rows}), [spec])
    assert made.inputs.keys() == {"x"}
    np.testing.assert_array_equal(made.inputs["x"], rows[:, None, :])
    again = data.whole(made, [spec])
    np.testing.assert_array_equal(again.inputs["x"], made.inputs["x"])


@given(st.lists(st.one_of(st.none(), st.integers(1, 4)), min_size=1, max_size=4), st.sampled_from(["float32", "int64"]))
def test_made_up_inputs_fit_and_repeat(shape: list[int | None], dtype: str) -> None:
    spec = TensorSpec("x", dtype, tuple(shape))
    first, second = data.made_up([spec], 3), data.made_up([spec], 3)
    np.testing.assert_array_equal(first.inputs["x"], second.inputs["x"])
    assert len(list(first.feeds([spec]))) == 3
    assert first.inputs["x"].dtype == np.dtype(dtype)
