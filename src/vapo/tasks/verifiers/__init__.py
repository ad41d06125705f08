"""Verifiers: what judges a response, and the worker processes that it runs in.

Begin with `functions.load_verifier` (a verifier by its name) and `pool.VerifierPool` (verdicts from killable workers
under limits of time and memory). Nothing here knows where problems come from: `vapo.tasks` gives it prompts.
"""
