"""Tiny random models of every family of causal language models in transformers, and what the package makes of them."""
