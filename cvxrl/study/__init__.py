"""Studies: plans whose runs are trained stage by stage, and what their own rules say of them."""
