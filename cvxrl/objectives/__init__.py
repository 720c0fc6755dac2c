"""The mathematics: pure functions from tensors to per-token losses. Knows nothing of models, runs or display.

Shape suffixes: N response tokens of a micro-batch, flattened (no padding); V vocabulary; S sequences.
"""
