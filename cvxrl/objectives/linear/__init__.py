"""Objectives straight from hidden states and the output matrix, in chunks: no [tokens, vocabulary] tensor."""
