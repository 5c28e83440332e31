"""Real handwritten digits (scikit-learn's bundled set), split so that nobody trains on what is measured.

Source: Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, UCI; 1,797 images of 8x8 pixels.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgert.samples import save

__all__ = ["Split", "split"]

_START = 200
_EVALUATE = 300
_TEST = 397


@dataclass(frozen=True, slots=True)
class Split:
    """Where the parts are.

    Args:
        start: what the starting model is trained on; also calibrates the quantization.
        evaluate: what conversions and the gate are judged on; part of the Source.
        test: what the installed models are measured on at the end; nobody else sees it.
        examples: one folder per device.
    """

    start: Path
    evaluate: Path
    test: Path
    examples: tuple[Path, ...]


def split(folder: Path, devices: int, seed: int = 7) -> Split:
    """Write the parts as ``.npz`` files: `image` float32 [n, 1, 8, 8] in 0..1 and `labels` int64 [n].

    Each device holds digits in its own proportions (Dirichlet, alpha 1), as boxes in the field do.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = (digits.images / 16.0).astype(np.float32)[:, None]
    labels = digits.target.astype(np.int64)
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(labels))
    start, evaluate, test, rest = np.split(order, np.cumsum([_START, _EVALUATE, _TEST]))
    paths = []
    parts = {"start": start, "evaluate": evaluate, "test": test}
    for name, indices in parts.items():
        paths.append(folder / f"{name}.npz")
        save(paths[-1], {"image": images[indices], "labels": labels[indices]})
    examples = []
    for i, indices in enumerate(_uneven(labels, rest, devices, rng), start=1):
        examples.append(folder / f"box{i}")
        save(examples[-1] / "examples.npz", {"image": images[indices], "labels": labels[indices]})
    return Split(paths[0], paths[1], paths[2], tuple(examples))


def _uneven(
    labels: NDArray[np.int64], indices: NDArray[np.intp], devices: int, rng: np.random.Generator
) -> list[NDArray[np.intp]]:
    shares: list[list[NDArray[np.intp]]] = [[] for _ in range(devices)]
    for digit in range(10):
        mine = indices[labels[indices] == digit]
        cuts = (np.cumsum(rng.dirichlet(np.ones(devices)))[:-1] * len(mine)).astype(int)
        for share, part in zip(shares, np.split(mine, cuts), strict=True):
            share.append(part)
    return [np.concatenate(share) for share in shares]
