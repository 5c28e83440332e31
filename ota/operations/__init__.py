"""Every action, once, for command line, REST and console: takes the actor, checks its right, writes the audit line.

`actor` (who) - `release` (publish) - `spread` (rollouts) - `enrol` (claims, devices) - `learn` (federated jobs).
"""
