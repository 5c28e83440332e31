"""Training graphs: forward pass, loss, gradients and optimizer as one graph of standard operators.

`build` makes one and `check` proves it (:mod:`converters.training.build`), ``rules/`` holds the gradients by operator
family, `fit` trains on this machine (:mod:`converters.training.fit`). See the README beside this file.
"""
