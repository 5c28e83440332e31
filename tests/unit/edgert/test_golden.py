"""Golden vectors: what is packed comes back as feeds and expected outputs."""

import io

import numpy as np
import pytest

from edgert import golden, samples
from edgert.errors import CheckError
from edgert.values import TensorSpec

_SPEC = TensorSpec("a.b", "float32", (None, 2))
_X = np.arange(6, dtype=np.float32).reshape(3, 1, 2)


def test_what_is_packed_comes_back() -> None:
    arrays = samples.load_arrays(io.BytesIO(golden.pack({"a.b": _X}, {"y": _X + 1})))
    np.testing.assert_array_equal(golden.inputs(arrays)["a.b"], _X)
    np.testing.assert_array_equal(golden.outputs(arrays)["y"], _X + 1)
    assert [feed["a.b"].tolist() for feed in golden.feeds(arrays, [_SPEC])] == _X.tolist()


def test_vectors_that_differ_in_number_or_lack_an_input_give_no_feeds() -> None:
    with pytest.raises(CheckError, match="differ in number"):
        list(golden.feeds({"input.a.b": _X, "output.y": _X[:2]}, [_SPEC]))
    with pytest.raises(CheckError, match="no input"):
        list(golden.feeds({"output.y": _X}, [_SPEC]))
