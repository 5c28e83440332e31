"""How to turn one model into one bundle, and what was chosen on the way."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from edgert.manifest import Digest, Name
from edgert.profiles import Profile
from edgert.values import canonical_json, digest

__all__ = ["Lock", "Recipe", "Wanted"]

Wanted = Literal["auto", "float32", "int8"]


class Recipe(BaseModel):
    """What the user asked for; with the model it settles the bundle.

    Args:
        model: name of the model; becomes part of topics, URLs and file names.
        profile: name of the device profile it is made for.
        precision: ``auto`` takes int8 when it keeps the accuracy budget and pays.
        scheme: name of the quantization scheme, a plug-in in ``converters/quantize``.
        max_drop_points: accuracy budget in points of top-1 (or of 100 x cosine similarity without labels).
        train: whether the bundle carries a training graph.
        batch_size: rows of a training batch.
        calibrate, evaluate: digests of the samples.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    format: Literal[1] = 1
    model: Name
    profile: Name
    precision: Wanted = "auto"
    scheme: Name = "static-int8"
    max_drop_points: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)] = 1.0
    train: bool = False
    batch_size: int = Field(default=16, ge=1, le=4096)
    calibrate: Digest | None = None
    evaluate: Digest | None = None

    def digest(self) -> str:
        """The identity of this recipe."""
        return digest(canonical_json(self.model_dump(mode="json")))


class Lock(BaseModel):
    """What was chosen when the recipe was followed: the same recipe with the same lock gives the same bytes.

    Args:
        profile: as it was when it was read: a rebuild does not depend on the file.
        precision: of the artifact in the bundle.
        scheme: that made it, or empty for float32.
        weight_bits: 7 on CPUs whose 8-bit kernels saturate.
        tools: versions of everything that shaped the bytes.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")
    format: Literal[1] = 1
    profile: Profile
    precision: str
    scheme: str = ""
    observer: str = ""
    weight_bits: int | None = None
    tools: dict[str, str] = {}
