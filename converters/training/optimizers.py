"""Optimizers: how a gradient moves a parameter."""

from converters.training.rules.base import Writer

__all__ = ["sgd_momentum"]


def sgd_momentum(
    w: Writer, parameter: str, grad: str, velocity: str, *, lr: str, momentum: str, names: tuple[str, str]
) -> None:
    """Stochastic gradient descent: v' = momentum * v + grad; p' = p - lr * v'.

    Args:
        names: what to call p' and v'.

    Source: Sutskever et al., On the importance of initialization and momentum in deep learning, 2013; the form with
        the rate outside the velocity.
    """
    moved, carried = names
    w.add("Add", w.add("Mul", momentum, velocity), grad, out=carried)
    w.add("Sub", parameter, w.add("Mul", lr, carried), out=moved)
