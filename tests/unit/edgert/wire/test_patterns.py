"""Which topics a pattern covers, and which patterns meet."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgert.wire.reconnect import overlap
from edgert.wire.transports.base import matches

_LEVELS = st.sampled_from(["a", "b", "+"])
_PATTERNS = st.builds(
    lambda levels, rest: "/".join([*levels, *(["#"] if rest else [])]),
    st.lists(_LEVELS, min_size=1, max_size=3),
    st.booleans(),
)
_TOPICS = st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=4).map("/".join)


@pytest.mark.parametrize(
    ("pattern", "topic", "covered"),
    [
        ("a/b", "a/b", True),
        ("a/b", "a/b/c", False),
        ("a/+", "a/b", True),
        ("a/+", "a", False),
        ("a/#", "a", True),
        ("a/#", "a/b/c", True),
        ("#", "a/b", True),
        ("#", "$SYS/x", False),
        ("+/x", "$SYS/x", False),
        ("+", "a/b", False),
    ],
)
def test_a_pattern_covers_what_the_standard_says(pattern: str, topic: str, covered: bool) -> None:
    assert matches(pattern, topic) == covered


@given(one=_PATTERNS, two=_PATTERNS, topic=_TOPICS)
def test_patterns_that_share_a_topic_overlap(one: str, two: str, topic: str) -> None:
    assert overlap(one, two) == overlap(two, one)
    if matches(one, topic) and matches(two, topic):
        assert overlap(one, two)


@pytest.mark.parametrize(("one", "two"), [("a/b", "a/c"), ("a/+", "a"), ("a/+/c", "a/b/d"), ("a/#", "b/#")])
def test_patterns_without_a_common_topic_do_not_overlap(one: str, two: str) -> None:
    assert not overlap(one, two)
