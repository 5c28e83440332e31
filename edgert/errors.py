"""The one tree of errors; every one says what happened to which object, and a hint: what to do next.

::

    EdgeRTError
    |-- UsageError          the caller asked for something that does not exist or contradicts itself
    |   |-- ConfigError     a configuration, recipe or profile file has a wrong or unknown key
    |-- InputError          a file given by the user cannot be used
    |   |-- ModelError      ... a model
    |   |-- SamplesError    ... a samples file
    |   |-- BundleError     ... a bundle or a source
    |-- FaultError          something of this machine failed
    |   |-- BackendError    a runtime could not open or run an artifact
    |   |-- TrialError      the child process of a trial broke its limits or died
    |   |-- StoreError      a disk is full, read-only or lost data
    |   |-- ServeError      the inference endpoint could not start or swap
    |-- WireError           talk over the broker failed
    |   |-- LinkError       the broker is down, refused us, or a deadline passed
    |   |-- MessageError    a message cannot be understood
    |   |-- TransferError   a blob could not be fetched or sent
    |   |   |-- NotFoundError   ... because the sender does not have it
    |-- CheckError          a check failed: accuracy gate, parity, golden vectors
    |-- RefusedError        refused for safety: signature, expiry, rollback, foreign assignment, spent claim

Exit codes and HTTP statuses are given in ``cli`` and ``serving`` only.
"""

__all__ = [
    "BackendError",
    "BundleError",
    "CheckError",
    "ConfigError",
    "EdgeRTError",
    "FaultError",
    "InputError",
    "LinkError",
    "MessageError",
    "ModelError",
    "NotFoundError",
    "RefusedError",
    "SamplesError",
    "ServeError",
    "StoreError",
    "TransferError",
    "TrialError",
    "UsageError",
    "WireError",
]


class EdgeRTError(Exception):
    """What happened, and a hint.

    Args:
        message: one line, names the object concerned.
        hint: one line, what to do next; empty when nothing can be advised.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(EdgeRTError):
    """The caller asked for something that does not exist or contradicts itself."""


class ConfigError(UsageError):
    """A configuration, recipe or profile file has a wrong or unknown key."""


class InputError(EdgeRTError):
    """A file given by the user cannot be used."""


class ModelError(InputError):
    """A model file cannot be read, or holds something that cannot run."""


class SamplesError(InputError):
    """A samples file cannot be read or does not fit the model."""


class BundleError(InputError):
    """A bundle or source file is damaged or not one."""


class FaultError(EdgeRTError):
    """Something of this machine failed."""


class BackendError(FaultError):
    """A runtime could not open or run an artifact."""


class TrialError(FaultError):
    """The child process of a trial broke its limits or died."""


class StoreError(FaultError):
    """A disk is full, read-only, or lost data."""


class ServeError(FaultError):
    """The inference endpoint could not start or swap."""


class WireError(EdgeRTError):
    """Talk over the broker failed."""


class LinkError(WireError):
    """The broker is down, refused us, or a deadline passed."""


class MessageError(WireError):
    """A message cannot be understood."""


class TransferError(WireError):
    """A blob could not be fetched or sent."""


class NotFoundError(TransferError):
    """The sender does not have that blob."""


class CheckError(EdgeRTError):
    """A check failed: accuracy gate, parity, golden vectors."""


class RefusedError(EdgeRTError):
    """Refused for safety: signature, expiry, rollback, foreign assignment, spent claim."""
