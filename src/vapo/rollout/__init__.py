"""Sampling from the policy: one protocol, several engines."""
