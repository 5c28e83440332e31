"""What travels: the manifest of a bundle says what is inside, for whom, how to check it, where it came from.

The manifest is the *config* blob of an OCI image layout (see :mod:`edgert.bundle`). It holds nothing measured and no
time of day: the same recipe with the same recorded choice gives the same bytes.
"""

from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from edgert.values import DIGEST_PATTERN, TensorSpec

__all__ = [
    "FORMAT",
    "Artifact",
    "CompiledFor",
    "Digest",
    "Golden",
    "Manifest",
    "Name",
    "Provenance",
    "Role",
    "Tensor",
    "Training",
]

FORMAT: Final = 1

Digest = Annotated[str, StringConstraints(pattern=rf"^{DIGEST_PATTERN}$")]
Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]
FileName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
Role = Literal["infer", "train", "weights", "golden", "baseline", "index", "labels", "pipeline", "sbom"]


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Tensor(_Value):
    """An input or output; a size of None is free (the batch axis included)."""

    name: str = Field(min_length=1, max_length=500)
    dtype: str = Field(pattern=r"^[a-z][a-z0-9_]{1,15}$")
    shape: tuple[Annotated[int, Field(ge=0)] | None, ...]

    @classmethod
    def of(cls, spec: TensorSpec) -> "Tensor":
        """The same description as a value of the manifest."""
        return cls(name=spec.name, dtype=spec.dtype, shape=spec.shape)

    def spec(self) -> TensorSpec:
        """The same description as the backends give it."""
        return TensorSpec(self.name, self.dtype, tuple(self.shape))


class CompiledFor(_Value):
    """What a vendor-compiled artifact runs on; checked before it is downloaded."""

    soc: str
    sdk: str
    min_driver: str = ""
    max_driver: str = ""


class Artifact(_Value):
    """One file of the bundle.

    Args:
        role: what it is for; several `infer` artifacts are alternatives in order of preference.
        format: ``onnx``, ``tflite``, ``npz``, ``json`` or ``txt``.
        file: a plain file name, used by ``edgert unpack``.
        precision: of an `infer` artifact: ``float32``, ``int8``, ...
        min_runtime: lowest version of each runtime that opens it, by backend name.
    """

    role: Role
    format: str = Field(pattern=r"^[a-z0-9]{2,10}$")
    file: FileName
    digest: Digest
    size_bytes: int = Field(ge=0)
    precision: str = ""
    min_runtime: dict[str, str] = {}
    compiled_for: CompiledFor | None = None


class Golden(_Value):
    """Input and output vectors that every box must reproduce, kept in the artifact of role `golden`.

    The ``.npz`` file holds ``input.<name>`` and ``output.<name>``, first axis = vectors (each a whole input).

    Args:
        count: number of vectors.
        tolerance: largest allowed absolute difference per output; 8-bit kernels differ by a step between CPUs.
    """

    count: int = Field(ge=1)
    tolerance: dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]]


class Training(_Value):
    """How the artifact of role `train` is fed; its starting point is the artifact of role `weights`.

    Args:
        batch_size: rows of every batch; rows with weight 0 are padding.
        inputs: names of the data inputs, as in the inference graph.
        labels: name of the label input, int64 [batch].
        sample_weight: name of the row weights, float32 [batch].
        scalars: names of the scalar inputs (``lr``, ``momentum``), float32 [].
        parameters: trainable initializers in the order of the graph's inputs.
        state: optimizer state inputs, same order and shapes as `parameters`; start at zero.
        loss: name of the loss output, float32 [].
        correct: name of the output that counts right answers (weighted), float32 [].
        classes: labels are 0 <= label < classes; None = unknown.

    The results of a step are outputs named after their inputs: `next_parameters` and `next_state`. With a state of zero
    the new state is the gradient of the loss.
    """

    batch_size: int = Field(ge=1)
    inputs: tuple[str, ...]
    labels: str
    sample_weight: str
    scalars: tuple[str, ...]
    parameters: tuple[str, ...]
    state: tuple[str, ...]
    loss: str
    correct: str
    classes: int | None = Field(default=None, ge=2)

    @property
    def next_parameters(self) -> tuple[str, ...]:
        """Outputs with the new parameters: ``<parameter>.next``."""
        return tuple(f"{name}.next" for name in self.parameters)

    @property
    def next_state(self) -> tuple[str, ...]:
        """Outputs with the new optimizer state: ``<state>.next``."""
        return tuple(f"{name}.next" for name in self.state)


class Provenance(_Value):
    """Where it came from.

    Args:
        source: digest of the float graph it was converted from, with the weights it holds.
        recipe: digest of the recipe.
        weights: digest of the weights that were put in by ``--weights``, or None.
        tools: versions of everything that shaped the bytes.
    """

    source: Digest
    recipe: Digest
    weights: Digest | None = None
    tools: dict[str, str]


class Manifest(_Value):
    """What is inside a bundle, for whom, how to check it, where it came from."""

    format: Literal[1] = FORMAT
    model: Name
    profile: Name
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    artifacts: tuple[Artifact, ...]
    golden: Golden
    training: Training | None = None
    provenance: Provenance

    def artifact(self, role: Role) -> Artifact | None:
        """The first artifact of that role, the preferred one, or None."""
        return next((artifact for artifact in self.artifacts if artifact.role == role), None)
