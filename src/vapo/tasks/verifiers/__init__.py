"""Verifiers that cannot hang or lie: answers are read here and judged in worker processes.

`answers` finds the answer in a response, `maths` compares it with the gold one, `pool` and `worker` keep
whatever judges in processes with limits, `functions` finds verifiers by name.
"""
