"""Verifiers, which judge responses, and the worker processes in which they run.

Start with `functions.load_verifier`, which finds a verifier by its name, and `pool.VerifierPool`, which runs it in
worker processes with limits on time and memory. This package gets its prompts from `vapo.tasks` and does not import it.
"""
