"""The one topic tree, written by direction; `{id}` is the common name of the device's certificate.

Down (the server writes, the device reads)::

    d/{id}/desired  retained, envelope around Desired      d/{id}/data   frames of blobs the device asked for
    d/{id}/ack      what the server asks of an upload      d/{id}/cmd    commands
    d/{id}/fl/in    federated rounds                       j/{job}       retained, envelope around a Plan

Up (the device writes, the server reads)::

    d/{id}/state    retained, Reported                     d/{id}/online retained, last will
    d/{id}/get      ranges of blobs the device asks for    d/{id}/put    frames of an upload
    d/{id}/event    phases of an update                    d/{id}/reply  answers to commands
    d/{id}/metrics  telemetry                              d/{id}/fl/out federated rounds

Enrolment: ``claim/{name}/request`` up, ``claim/{name}/reply`` down. Everything is under ``edgert/v1/``.
"""

from typing import Final

from edgert.errors import MessageError
from edgert.values import is_name

__all__ = [
    "CLAIM_REQUESTS",
    "DOWN",
    "JOBS",
    "ROOT",
    "UP",
    "claim",
    "claim_of",
    "device",
    "device_of",
    "every_device",
    "job",
]

ROOT: Final = "edgert/v1"
DOWN: Final = ("desired", "data", "ack", "cmd", "fl/in")
UP: Final = ("state", "online", "get", "put", "event", "metrics", "reply", "fl/out")
JOBS: Final = f"{ROOT}/j/+"
CLAIM_REQUESTS: Final = f"{ROOT}/claim/+/request"


def device(device_id: str, leaf: str) -> str:
    """The topic of one device, for example ``edgert/v1/d/box1/fl/in``."""
    if leaf not in DOWN and leaf not in UP:
        raise MessageError(f"there is no device topic {leaf!r}")
    return f"{ROOT}/d/{_name(device_id)}/{leaf}"


def every_device(leaf: str) -> str:
    """The pattern that matches that topic of every device."""
    return f"{ROOT}/d/+/{leaf}"


def device_of(topic: str) -> tuple[str, str]:
    """Device and leaf of a device topic: the only way to learn who speaks.

    Raises:
        MessageError: not a device topic.
    """
    prefix = f"{ROOT}/d/"
    device_id, _, leaf = topic.removeprefix(prefix).partition("/")
    if not topic.startswith(prefix) or not is_name(device_id) or (leaf not in DOWN and leaf not in UP):
        raise MessageError(f"{topic[:120]!r} is not a device topic")
    return device_id, leaf


def job(job_id: str) -> str:
    """Where a federated job is announced."""
    return f"{ROOT}/j/{_name(job_id)}"


def claim(name: str, leaf: str) -> str:
    """The enrolment topic of one claim; leaf is ``request`` or ``reply``."""
    if leaf not in ("request", "reply"):
        raise MessageError(f"there is no claim topic {leaf!r}")
    return f"{ROOT}/claim/{_name(name)}/{leaf}"


def claim_of(topic: str) -> str:
    """The claim a request was sent under.

    Raises:
        MessageError: not the topic of a claim request.
    """
    name = topic.removeprefix(f"{ROOT}/claim/").removesuffix("/request")
    if topic != f"{ROOT}/claim/{name}/request" or not is_name(name):
        raise MessageError(f"{topic[:120]!r} is not a claim topic")
    return name


def _name(text: str) -> str:
    if not is_name(text):
        raise MessageError(f"{text[:80]!r} cannot be part of a topic")
    return text
