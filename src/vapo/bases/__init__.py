"""Base models for the built-in tasks: where the shipped ones lie, and how one is made (`vapo make-base`)."""
