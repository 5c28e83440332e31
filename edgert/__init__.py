"""EdgeRT core: the nouns, the wire, the runtime and the federated maths that every application shares.

Start reading at :mod:`edgert.manifest` (what travels), then :mod:`edgert.wire.messages.device` (what is said).
"""

__all__ = ["__version__"]

__version__ = "0.1.0"
