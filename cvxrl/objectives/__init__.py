"""Objectives: pure functions from tensors to per-token losses. Nothing here knows models, runs or display.

Shape suffixes: N response tokens of a micro-batch, flattened (no padding); V vocabulary; S sequences.
"""
