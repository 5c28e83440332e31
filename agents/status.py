"""What a box is, read from its folder: works without network and beside a running agent."""

from pathlib import Path

from pydantic import BaseModel, Field, ValidationError

from agents.report import model_states
from agents.state import StateFolder
from agents.update import journal
from edgert.errors import UsageError
from edgert.store import Store
from edgert.values import is_name
from edgert.wire.fleet import Kit
from edgert.wire.twin import ModelState

__all__ = ["Status", "read"]


class Status(BaseModel):
    """A box.

    Args:
        device: its name; empty before it enrolled.
        running: whether an agent runs on the folder.
        revision: of the assignment it follows.
    """

    device: str = ""
    profile: str = ""
    running: bool = False
    revision: int = 0
    models: dict[str, ModelState] = Field(default_factory=dict)
    free_bytes: int = 0


def read(folder: Path) -> Status:
    """The box whose state is in `folder`.

    Raises:
        UsageError: that is no state folder.
    """
    if not (folder / "identity").is_dir():
        raise UsageError(f"{folder} is not the state folder of an agent", hint="see `edgert agent run --state`")
    state = StateFolder(folder)
    memory, store = state.memory(), Store(state.store)
    paths = (path for path in state.journal.glob("*.json") if is_name(path.stem))
    states = {path.stem: journal.read(path, path.stem) for path in paths}
    return Status(
        device=_device(state),
        profile=memory.profile,
        running=state.held(),
        revision=memory.revision,
        models=model_states(store, states),
        free_bytes=store.free_bytes(),
    )


def _device(state: StateFolder) -> str:
    if not (state.identity / "certificate.pem").is_file():
        return ""
    try:
        return Kit.model_validate_json((state.identity / "device.json").read_bytes()).device
    except (OSError, ValidationError):
        return ""
