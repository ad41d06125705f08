"""What keeps a run from losing work: atomic checkpoint folders, and a process that notices when the trainer hangs.

Nothing here knows what is saved: `vapo.trainer.snapshot` says what a run's state is.
"""
