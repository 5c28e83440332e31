"""What a device and the server say to each other about updates.

Down: an envelope around :class:`~edgert.wire.twin.Desired` (retained). Up: :class:`~edgert.wire.twin.Reported`
(retained), :class:`Online` (retained, also the last will), and an :class:`Event` for every phase.
"""

from pydantic import Field

from edgert.manifest import Name
from edgert.wire.messages.base import Count, Message, Text
from edgert.wire.twin import Phase

__all__ = ["Event", "Online"]


class Online(Message):
    """Presence; ``online=False`` is the last will."""

    online: bool


class Event(Message):
    """One phase of an update, as it begins or moves on.

    Args:
        model, version: what is being updated to what.
        revision: of the `Desired` that asked for it.
        phase: where the update stands.
        done_bytes, total_bytes: of a download.
        error, hint: why it failed.
    """

    model: Name
    version: Count = Field(ge=0)
    revision: Count = Field(ge=0)
    phase: Phase
    done_bytes: Count = 0
    total_bytes: Count = 0
    error: Text = ""
    hint: Text = ""
