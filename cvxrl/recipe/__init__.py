"""Recipes: strict, frozen descriptions of an experiment. Nothing in this package imports torch."""
