"""A grid of methods, seeds and base models, run as ordinary runs and compared."""
