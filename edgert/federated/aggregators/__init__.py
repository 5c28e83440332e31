"""How many updates become one, one file each; see :mod:`edgert.federated.aggregators.base`."""
