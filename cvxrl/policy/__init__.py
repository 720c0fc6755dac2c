"""The policy: loading it, its logits, and saving it as a plain Hugging Face directory."""
