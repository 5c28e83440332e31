"""Reverse-mode differentiation of a forward graph: finds what can be trained, emits the gradients."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import onnx

from converters.training.forward import Forward
from converters.training.rules.base import Family, Rule, Writer
from edgert import plugins
from edgert.errors import ModelError

__all__ = ["Trainables", "gradients", "rules", "trainables"]

_RULES = "converters.training.rules"


@cache
def rules() -> Mapping[str, Rule]:
    """Every gradient rule by operator type.

    Raises:
        ModelError: two files of the folder have a rule for the same operator.
    """
    found: dict[str, Rule] = {}
    for name in plugins.names(_RULES):
        family: Family = plugins.load(_RULES, name)
        twice = set(found).intersection(family.rules)
        if twice:
            raise ModelError(f"{', '.join(sorted(twice))}: a second gradient rule in {_RULES}.{name}")
        found.update(family.rules)
    return found


@dataclass(frozen=True, slots=True)
class Trainables:
    """What a forward graph can learn.

    Args:
        parameters: float32 initializers that get a gradient, in the order of the graph's initializers.
        active: every tensor whose value depends on a parameter, the parameters included.
    """

    parameters: tuple[str, ...]
    active: frozenset[str]


def trainables(forward: Forward) -> Trainables:
    """The trainable parameters of `forward`.

    Raises:
        ModelError: operators on the way have no gradient rule, or there is nothing to train.
    """
    known = rules()
    parameters: set[str] = set()
    active: set[str] = set()
    missing: set[str] = set()
    for node in forward.nodes:
        rule = known.get(node.op_type)
        if rule is None:
            if active.intersection(node.input) or _holds_weights(forward, node):
                missing.add(node.op_type)
                active.update(node.output)
            continue
        inputs = rule.differentiable(node)
        own = [name for name in inputs if name in forward.weights and _is_parameter(forward, rule, node, name, active)]
        parameters.update(own)
        active.update(own)
        if active.intersection(inputs):
            active.update(node.output)
    if missing:
        raise ModelError(
            f"no gradient rule for {', '.join(sorted(missing))}",
            hint=f"convert without --train, or use only: {', '.join(sorted(known))}",
        )
    if not parameters or forward.logits not in active:
        raise ModelError(
            "the model has nothing to train", hint="its weights must be float32 initializers, not Constant nodes"
        )
    return Trainables(tuple(name for name in forward.weights if name in parameters), frozenset(active))


def _holds_weights(forward: Forward, node: onnx.NodeProto) -> bool:
    return any(name in forward.weights and forward.weights[name].ndim > 1 for name in node.input)


def _is_parameter(forward: Forward, rule: Rule, node: onnx.NodeProto, name: str, active: set[str]) -> bool:
    if not rule.arithmetic or name in active:
        return True
    others = [other for other in node.input if other != name]
    return forward.weights[name].size > 1 and bool(active.intersection(others))


def gradients(w: Writer, forward: Forward, what: Trainables, seed: str) -> dict[str, str]:
    """Emit the gradients of every parameter; returns their names by parameter.

    Args:
        seed: name of the gradient of the logits.
    """
    known = rules()
    parts: dict[str, list[str]] = {forward.logits: [seed]}
    for node in reversed(forward.nodes):
        if node.output[0] not in parts or node.output[0] not in what.active:
            continue
        wanted = {name for name in known[node.op_type].differentiable(node) if name in what.active}
        grad = _added(w, parts.pop(node.output[0]))
        for name, part in zip(node.input, known[node.op_type].backward(w, node, grad), strict=False):
            if part is not None and name in wanted:
                parts.setdefault(name, []).append(part)
    return {name: _added(w, parts[name]) for name in what.parameters}


def _added(w: Writer, parts: list[str]) -> str:
    total = parts[0]
    for part in parts[1:]:
        total = w.add("Add", total, part)
    return total
