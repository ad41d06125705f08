"""Atomic checkpoint folders, and a watchdog process that reports when the trainer hangs.

`vapo.trainer.snapshot` defines the content of a checkpoint.
"""
