"""The policy: a causal language model and its tokenizer, loaded, run on responses, adapted and saved."""
