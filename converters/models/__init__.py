"""Networks of the model library, one file each; see :mod:`converters.models.base`."""
