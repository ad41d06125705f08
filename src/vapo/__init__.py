"""Reinforcement learning with a critic for reasoning language models."""
