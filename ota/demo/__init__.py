"""The whole loop on one machine: `data` (real handwritten digits, split), `processes` (children and their logs),
`broker` (Mosquitto, or the embedded one where it is missing), `story` (what happens), `cli` (the verb and its table).

It only drives the other verbs of the command line as child processes: what it does, an operator can do by hand.
"""
