"""Base models for the built-in tasks: where the shipped ones lie, and how one is made (`vapo make-base`)."""

from vapo.bases.base_model import BaseRecipe, builtin_model, make_base

__all__ = ["BaseRecipe", "builtin_model", "make_base"]
