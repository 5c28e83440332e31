"""Learning on devices: what a job is (`plan`), what a participant does (`training`), what it sends (`update`).

``round`` decides a round as a table, ``aggregators/`` make many updates one.
"""
