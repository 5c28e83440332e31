"""From a trained graph to a bundle: import, clean up, quantize, measure, package.

Start at :mod:`converters.stages`, which reads top to bottom as the journey of one model. Stages pass a
:class:`~converters.work.Work` along; importers, schemes and emitters are plug-ins. Graphs from outside are parsed and
rewritten in a child process (:mod:`converters.isolate`) and run in others (:mod:`edgert.trial`).
"""
