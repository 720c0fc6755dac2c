"""The shared training engine: prompts, rollouts, rewards, advantages, objective, optimizer step."""
