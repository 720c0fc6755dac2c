"""vLLM as the sampler: a server that is told the policy's weights, or an engine in this process."""
