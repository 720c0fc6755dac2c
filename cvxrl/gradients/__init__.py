"""Measures of an objective's gradient: per token in logit space, in parameter space, and its curvature.

Pure functions on tensors (docs/gradients.md). Knows nothing of models, rollouts, runs or display. Shape suffixes as in
`cvxrl.objectives`: N response tokens, V vocabulary, S sequences; C a chunk of tokens, K candidate tokens.
"""
