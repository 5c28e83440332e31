"""The training child: one round of local training in a process of its own, that dies before anything else does.

``python -m agents.training``: one `Task` (JSON) on standard input, one `Result` or `Trouble` (JSON) on standard output.
The update is written to a file. `run` is the parent's half; it never imports a runtime. Neither half prints examples,
weights or gradients.
"""

import asyncio
import math
import os
import resource
import signal
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edgert.errors import EdgeRTError, TrialError
from edgert.federated.plan import LocalTraining
from edgert.manifest import Tensor, Training

__all__ = ["Result", "Task", "run"]

_NICE = 10
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


class Task(BaseModel):
    """What the child is to do.

    Args:
        graph: the artifact of role `train`.
        weights: ``.npz`` of the weights to start from.
        examples: folder of local examples.
        inputs: of the inference graph.
        seed: joins the seed of `local`.
        update: where the ``.npz`` of weight differences is written.
        memory_bytes: of data the child may hold.
        deadline_s: for everything.
    """

    model_config = ConfigDict(frozen=True)
    graph: Path
    training: Training
    weights: Path
    examples: Path
    inputs: tuple[Tensor, ...]
    local: LocalTraining
    seed: tuple[int, ...]
    update: Path
    memory_bytes: int = Field(gt=0)
    deadline_s: float = Field(gt=0)


class Result(BaseModel):
    """What came of it: number of examples and mean loss of the last epoch."""

    model_config = ConfigDict(frozen=True)
    examples: int = Field(ge=1)
    loss: float = Field(allow_inf_nan=False)


class Trouble(BaseModel):
    """Why nothing came of it."""

    error: str
    hint: str = ""


async def run(task: Task, environment: Mapping[str, str] | None = None) -> Result:
    """Train in a child; cancelling ends the child.

    Raises:
        TrialError: the child failed, died, or broke its deadline; a half-written update is removed.
    """
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",
        "-m",
        "agents.training",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        start_new_session=True,
        env={**os.environ, **_ONE_THREAD, **(environment or {})},
    )
    try:
        async with asyncio.timeout(task.deadline_s):
            said, _ = await child.communicate(task.model_dump_json().encode())
    except TimeoutError as e:
        raise TrialError(
            f"training took longer than {task.deadline_s:g} s", hint="give rounds more time, or fewer epochs"
        ) from e
    finally:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)
        await child.wait()
    if child.returncode == 0:
        with suppress(ValidationError):
            return Result.model_validate_json(said)
    task.update.unlink(missing_ok=True)
    raise _told(said, child.returncode)


def _told(said: bytes, code: int | None) -> TrialError:
    try:
        trouble = Trouble.model_validate_json(said)
    except ValidationError:
        how = "was killed" if code == -signal.SIGKILL else f"ended with code {code}"
        return TrialError(f"the training child {how}", hint="is there enough memory for training?")
    return TrialError(trouble.error, hint=trouble.hint)


# The child


def _train(task: Task) -> Result:
    from agents import examples
    from edgert.backends.onnxruntime import plugin
    from edgert.federated.training import train
    from edgert.federated.update import difference, unpack_weights
    from edgert.files import write_durable

    start = unpack_weights(task.weights.read_bytes())
    samples = examples.read(task.examples)
    session = plugin.open_training(task.graph, task.training)
    specs = [tensor.spec() for tensor in task.inputs]
    trained = train(session, task.training, samples, specs, start, task.local, seed=task.seed)
    update = difference(trained.weights, start, trained.examples)
    write_durable(task.update, update.pack(), mode=0o600)
    return Result(examples=trained.examples, loss=trained.losses[-1])


def _be_modest(task: Task) -> None:
    os.nice(_NICE)
    resource.setrlimit(resource.RLIMIT_DATA, (task.memory_bytes, task.memory_bytes))
    seconds = math.ceil(task.deadline_s) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    signal.alarm(seconds + 1)  # a child whose parent was killed ends by itself
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")


def _main() -> int:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a runtime prints cannot pass for an answer
    task = Task.model_validate_json(sys.stdin.buffer.read())
    _be_modest(task)
    answer: Result | Trouble
    try:
        answer = _train(task)
    except EdgeRTError as e:
        answer = Trouble(error=e.message, hint=e.hint)
    except MemoryError:
        answer = Trouble(error="not enough memory for training", hint="raise training_memory_bytes")
    except Exception as e:  # the edge of the process
        answer = Trouble(error=f"training failed: {type(e).__name__}")
    answers.write(answer.model_dump_json())
    answers.flush()
    return 0 if isinstance(answer, Result) else 1


if __name__ == "__main__":
    status = _main()
    sys.stderr.flush()
    os._exit(status)  # no tear-down: a runtime that crashes there would spoil an answer already given
