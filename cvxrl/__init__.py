"""Logits-convex policy optimization of language models: train, evaluate, compare, inspect."""

__version__ = "0.2.0"
