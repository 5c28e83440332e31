"""Every aggregator: averages of updates with the algebra that a federated round relies on."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgert import plugins
from edgert.errors import CheckError
from edgert.federated.aggregators.base import Factory
from edgert.federated.update import Update, difference, moved
from edgert.values import Weights

_PACKAGE = "edgert.federated.aggregators"
_SHAPES = {"w": (2, 3), "b": (3,), "scale": ()}


@pytest.fixture(params=plugins.names(_PACKAGE), scope="module")
def factory(request: pytest.FixtureRequest) -> Factory:
    plugin: Factory = plugins.load(_PACKAGE, request.param)
    return plugin


def _weights(seed: int, scale: float = 1.0) -> Weights:
    random = np.random.default_rng(seed)
    return {name: np.asarray(scale * random.standard_normal(shape), np.float32) for name, shape in _SHAPES.items()}


def _result(factory: Factory, updates: Sequence[Update], current: Weights | None = None) -> Weights:
    aggregator = factory()
    for update in updates:
        aggregator.add(update)
    return aggregator.result(_weights(99) if current is None else current)


def _close(one: Weights, other: Weights, *, atol: float = 1e-6) -> bool:
    return one.keys() == other.keys() and all(np.allclose(one[name], other[name], rtol=1e-5, atol=atol) for name in one)


_UPDATES = st.lists(
    st.builds(Update, st.integers(0, 1000).map(_weights), st.integers(1, 10_000)), min_size=1, max_size=6
)


@settings(max_examples=25, deadline=None)
@given(updates=_UPDATES, order=st.randoms(use_true_random=False))
def test_the_order_of_the_updates_does_not_matter(factory: Factory, updates: list[Update], order: object) -> None:
    shuffled = list(updates)
    order.shuffle(shuffled)  # type: ignore[attr-defined]
    assert _close(_result(factory, updates), _result(factory, shuffled))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), count=st.integers(1, 6))
def test_equal_updates_give_that_update(factory: Factory, seed: int, count: int) -> None:
    current, delta = _weights(1), _weights(seed)
    updates = [Update(delta, 10 + i) for i in range(count)]
    assert _close(_result(factory, updates, current), moved(current, delta))


def test_a_single_update_leads_to_the_weights_it_was_made_from(factory: Factory) -> None:
    start, trained = _weights(1), _weights(2)
    assert _close(_result(factory, [difference(trained, start, 7)], start), trained)


@settings(max_examples=25, deadline=None)
@given(updates=_UPDATES)
def test_no_parameter_leaves_the_range_of_the_updates(factory: Factory, updates: list[Update]) -> None:
    current = _weights(99)
    for name, value in _result(factory, updates).items():
        ends: NDArray[np.float32] = np.stack([current[name] + update.delta[name] for update in updates])
        assert (value >= ends.min(axis=0) - 1e-4).all()
        assert (value <= ends.max(axis=0) + 1e-4).all()


@settings(max_examples=25, deadline=None)
@given(updates=_UPDATES, factor=st.integers(2, 9))
def test_a_linear_one_weighs_updates_by_their_examples(factory: Factory, updates: list[Update], factor: int) -> None:
    if not factory.linear:
        pytest.skip("not linear")
    first, *rest = updates
    once = _result(factory, [Update(first.delta, first.examples * factor), *rest])
    assert _close(once, _result(factory, [first] * factor + rest), atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(updates=_UPDATES)
def test_a_linear_one_needs_only_the_weighted_sum(factory: Factory, updates: list[Update]) -> None:
    if not factory.linear:
        pytest.skip("not linear")
    examples = sum(update.examples for update in updates)
    mean = {
        name: np.asarray(
            sum(update.delta[name].astype(np.float64) * update.examples for update in updates) / examples, np.float32
        )
        for name in _SHAPES
    }
    assert _close(_result(factory, updates), _result(factory, [Update(mean, examples)]))


def test_the_kind_and_its_instances_agree_on_being_linear(factory: Factory) -> None:
    assert factory().linear == factory.linear


def test_a_fresh_one_knows_nothing_of_an_earlier_round(factory: Factory) -> None:
    alone = _result(factory, [Update(_weights(1), 5)])
    _result(factory, [Update(_weights(2), 500)])
    assert _close(alone, _result(factory, [Update(_weights(1), 5)]))


def test_weights_and_updates_are_left_alone(factory: Factory) -> None:
    current, update = _weights(1), Update(_weights(2), 3)
    result = _result(factory, [update], current)
    for value in result.values():
        value[...] = 7
    assert _close(current, _weights(1))
    assert _close(update.delta, _weights(2))


def test_results_are_float32_of_the_same_shapes(factory: Factory) -> None:
    result = _result(factory, [Update(_weights(2), 3), Update(_weights(3), 4)])
    assert {name: (value.shape, value.dtype) for name, value in result.items()} == {
        name: (shape, np.float32) for name, shape in _SHAPES.items()
    }


def test_many_large_rounds_lose_no_precision(factory: Factory) -> None:
    delta = _weights(3, scale=1e-3)
    updates = [Update(delta, 1_000_000 + i) for i in range(200)]
    current = _weights(1)
    assert _close(_result(factory, updates, current), moved(current, delta), atol=1e-7)


def test_nothing_to_aggregate_is_an_error(factory: Factory) -> None:
    with pytest.raises(CheckError, match="no update"):
        factory().result(_weights(1))


def test_updates_of_another_model_are_refused(factory: Factory) -> None:
    other = {"w": np.zeros((2, 3), np.float32)}
    aggregator = factory()
    aggregator.add(Update(_weights(1), 1))
    with pytest.raises(CheckError):
        aggregator.add(Update(other, 1))
    with pytest.raises(CheckError):
        _result(factory, [Update(_weights(1), 1)], other)
    shaped = _weights(1) | {"b": np.zeros(4, np.float32)}
    with pytest.raises(CheckError):
        aggregator.add(Update(shaped, 1))
    with pytest.raises(CheckError):
        _result(factory, [Update(_weights(1), 1)], shaped)


def test_a_refused_update_does_not_spoil_the_round(factory: Factory) -> None:
    aggregator = factory()
    aggregator.add(Update(_weights(1), 5))
    with pytest.raises(CheckError):
        aggregator.add(Update(_weights(2) | {"scale": np.zeros((2,), np.float32)}, 500))
    assert _close(aggregator.result(_weights(99)), _result(factory, [Update(_weights(1), 5)]))
