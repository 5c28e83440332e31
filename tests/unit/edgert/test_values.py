"""Digests, canonical JSON, names."""

import hashlib
import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgert.values import DIGEST_PATTERN, TensorSpec, canonical_json, digest, digest_file, is_name, show_shape

_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


def test_digest_of_a_file_is_the_digest_of_its_content(tmp_path: Path) -> None:
    data = b"edge" * 300_000
    (tmp_path / "f").write_bytes(data)
    assert digest_file(tmp_path / "f") == digest(data) == "sha256:" + hashlib.sha256(data).hexdigest()
    assert re.fullmatch(DIGEST_PATTERN, digest(data))


@given(_JSON)
def test_canonical_json_says_the_same(value: object) -> None:
    assert json.loads(canonical_json(value)) == value


@given(st.dictionaries(st.text(), st.integers()))
def test_canonical_json_does_not_depend_on_the_order(value: dict[str, int]) -> None:
    assert canonical_json(dict(reversed(value.items()))) == canonical_json(value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {"a": [float("-inf")]}])
def test_canonical_json_refuses_what_json_cannot_say(value: object) -> None:
    with pytest.raises(ValueError, match="JSON"):
        canonical_json(value)


@pytest.mark.parametrize("text", ["a", "digits-cnn", "box-7.lab_2", "0", "a" * 63])
def test_plain_words_are_names(text: str) -> None:
    assert is_name(text)


@pytest.mark.parametrize(
    "text", ["", "A", "a/b", "../a", ".a", "-a", "a b", "a\n", "a+", "#", "é", "a" * 64, "$SYS", "a\0"]
)
def test_what_is_unsafe_in_a_path_or_topic_is_no_name(text: str) -> None:
    assert not is_name(text)


def test_a_shape_fits_where_rank_and_fixed_sizes_agree() -> None:
    spec = TensorSpec("x", "float32", (None, 3))
    assert spec.fits((1, 3))
    assert spec.fits((7, 3))
    assert not any(map(spec.fits, [(1, 4), (3,), (1, 1, 3), ()]))
    assert (show_shape(spec.shape), show_shape(())) == ("?x3", "scalar")
