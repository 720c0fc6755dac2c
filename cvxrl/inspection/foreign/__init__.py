"""Checkpoints and completions that other trainers wrote, ready to be inspected as our own are."""
