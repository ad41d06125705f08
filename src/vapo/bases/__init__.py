"""Base models for the built-in tasks: the folders of the shipped ones, and training of new ones (`vapo make-base`)."""
