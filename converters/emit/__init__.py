"""Writers of artifacts, one file per format; the contract is :mod:`converters.emit.base`."""
