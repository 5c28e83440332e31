"""Ways to carry messages, one file each; the contract is :mod:`edgert.wire.transports.base`."""
