"""Evaluation of a policy on a task: samples, their verdicts, and what can be concluded from them."""
