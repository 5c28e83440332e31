"""The training graph: forward pass, loss, gradients and optimizer as one ONNX graph of standard operators.

Names are fixed: data inputs and parameters keep theirs; the rest is ``labels``, ``sample_weight``, ``lr``,
``momentum``, ``loss``, ``correct``, and for a parameter ``p`` its state ``p.velocity`` and the results ``p.next`` and
``p.velocity.next``. With a velocity of zero ``p.velocity.next`` is the gradient.
"""

from dataclasses import replace
from typing import Final

import onnx
from onnx import TensorProto, checker, helper, numpy_helper

from converters.training.artifact import TrainingGraph
from converters.training.autodiff import Trainables, gradients, trainables
from converters.training.forward import Forward, prepare
from converters.training.losses import softmax_cross_entropy
from converters.training.optimizers import sgd_momentum
from converters.training.rules.base import Writer
from converters.training.verify import check
from edgert.errors import ModelError
from edgert.manifest import Training

__all__ = ["BATCH_SIZE", "TrainingGraph", "build", "check"]

BATCH_SIZE: Final = 16
_IR_VERSION: Final = 10
_LABELS, _SAMPLE_WEIGHT, _LR, _MOMENTUM, _LOSS, _CORRECT = (
    "labels", "sample_weight", "lr", "momentum", "loss", "correct",
)  # fmt: skip


def build(model: onnx.ModelProto, *, batch_size: int = BATCH_SIZE) -> TrainingGraph:
    """The training graph of an inference graph; the same model gives the same bytes.

    Args:
        model: float32; the first axis of every input is the batch, the first output holds one row of scores per
            sample. Statistics of batch normalisation stay frozen, `Dropout` does nothing.
        batch_size: rows of every training batch.

    Raises:
        ModelError: operators without a gradient rule (named), nothing to train, or shapes that are not static.
    """
    forward = _without_clashes(prepare(model, batch_size))
    what = trainables(forward)
    classes = _classes(forward, batch_size)
    training = Training(
        batch_size=batch_size,
        inputs=tuple(info.name for info in forward.inputs),
        labels=_LABELS,
        sample_weight=_SAMPLE_WEIGHT,
        scalars=(_LR, _MOMENTUM),
        parameters=what.parameters,
        state=tuple(f"{name}.velocity" for name in what.parameters),
        loss=_LOSS,
        correct=_CORRECT,
        classes=classes,
    )
    writer = _write(forward, what, training, classes)
    weights = {name: forward.weights[name] for name in what.parameters}
    return TrainingGraph(_assemble(forward, training, writer), training, weights, model)


def _classes(forward: Forward, batch_size: int) -> int:
    shape = forward.shapes[forward.logits]
    wide = [size for size in shape[1:] if size != 1]
    if len(shape) < 2 or shape[0] != batch_size or len(wide) != 1:
        raise ModelError(
            f"the first output has shape {shape} for a batch of {batch_size}",
            hint="training needs one row of at least two scores per sample",
        )
    return wide[0]


def _without_clashes(forward: Forward) -> Forward:
    """The same graph with intermediate tensors renamed that have one of the names a training graph uses.

    Raises:
        ModelError: an input or a parameter has such a name.
    """
    fixed = {_LABELS, _SAMPLE_WEIGHT, _LR, _MOMENTUM, _LOSS, _CORRECT}
    fixed |= {f"{name}{suffix}" for name in forward.weights for suffix in (".velocity", ".next", ".velocity.next")}
    clash = fixed & {*forward.weights, *forward.constants, *(info.name for info in forward.inputs)}
    if clash:
        raise ModelError(
            f"the model uses the name {min(clash)!r}, which the training graph needs", hint="rename that tensor"
        )
    new = {name: f"{name}_" for name in fixed}
    while set(new.values()) & (fixed | set(forward.shapes)):
        new = {name: f"{other}_" for name, other in new.items()}
    for node in forward.nodes:
        for names in (node.input, node.output):
            for i, name in enumerate(names):
                names[i] = new.get(name, name)
    shapes = {new.get(name, name): shape for name, shape in forward.shapes.items()}
    return replace(forward, shapes=shapes, logits=new.get(forward.logits, forward.logits))


def _write(forward: Forward, what: Trainables, training: Training, classes: int) -> Writer:
    frozen = {name: value for name, value in forward.weights.items() if name not in what.active}
    fixed = {*training.scalars, training.labels, training.sample_weight, training.loss, training.correct}
    fixed |= {*training.state, *training.next_parameters, *training.next_state}
    w = Writer(forward.shapes, forward.constants | frozen, fixed | set(forward.shapes))
    scores = forward.logits
    flat = scores
    if forward.shapes[scores] != (training.batch_size, classes):
        flat = w.reshape(scores, [training.batch_size, classes])
    loss = softmax_cross_entropy(
        w,
        flat,
        classes,
        labels=training.labels,
        sample_weight=training.sample_weight,
        names=(training.loss, training.correct),
    )
    seed = loss.grad if flat == scores else w.reshape(loss.grad, forward.shapes[scores])
    grads = gradients(w, forward, what, seed)
    lr, momentum = training.scalars
    results = zip(training.next_parameters, training.next_state, strict=True)
    for parameter, velocity, names in zip(training.parameters, training.state, results, strict=True):
        sgd_momentum(w, parameter, grads[parameter], velocity, lr=lr, momentum=momentum, names=names)
    return w


def _assemble(forward: Forward, training: Training, w: Writer) -> onnx.ModelProto:
    shapes = {name: forward.weights[name].shape for name in training.parameters}
    states = dict(zip(training.state, shapes.values(), strict=True))
    inputs = [
        *forward.inputs,
        helper.make_tensor_value_info(training.labels, TensorProto.INT64, [training.batch_size]),
        helper.make_tensor_value_info(training.sample_weight, TensorProto.FLOAT, [training.batch_size]),
        *(_float(name, ()) for name in training.scalars),
        *(_float(name, shape) for name, shape in shapes.items()),
        *(_float(name, shape) for name, shape in states.items()),
    ]
    results = (*training.next_parameters, *training.next_state)
    outputs = [
        _float(training.loss, ()),
        _float(training.correct, ()),
        *(_float(name, shape) for name, shape in zip(results, [*shapes.values()] * 2, strict=True)),
    ]
    nodes = _needed([*forward.nodes, *w.nodes], {info.name for info in outputs})
    used = {name for node in nodes for name in node.input}
    frozen = {name: value for name, value in forward.weights.items() if name not in shapes}
    constants = {name: value for name, value in (forward.constants | frozen | w.constants).items() if name in used}
    graph = helper.make_graph(nodes, "train", inputs, outputs)
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", forward.opset)], producer_name="edgert")
    model.ir_version = _IR_VERSION
    checker.check_model(model, full_check=True)
    return model


def _needed(nodes: list[onnx.NodeProto], outputs: set[str]) -> list[onnx.NodeProto]:
    """The nodes that `outputs` depend on, named by their place so that the bytes depend on nothing else."""
    kept = []
    for node in reversed(nodes):
        if outputs.intersection(node.output):
            outputs.update(node.input)
            kept.append(node)
    kept.reverse()
    for number, node in enumerate(kept):
        node.name = f"{number}/{node.op_type}"
        node.ClearField("doc_string")
    return kept


def _float(name: str, shape: tuple[int, ...]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape))
