"""Base models for the built-in tasks: the folders of the shipped ones, and training of new ones (`vapo make-base`)."""

from vapo.bases.base_model import BaseRecipe, builtin_model, make_base

__all__ = ["BaseRecipe", "builtin_model", "make_base"]
