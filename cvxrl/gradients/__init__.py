"""What an objective's gradient looks like: in logit space per token, in parameter space, and its curvature.

Pure functions on tensors (docs/gradients.md). Knows nothing of models, rollouts, runs or display. Shape suffixes as in
`cvxrl.objectives`: N response tokens, V vocabulary, S sequences; C a chunk of tokens, K candidate tokens.
"""
