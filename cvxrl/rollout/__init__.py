"""From prompts to episodes: keyed random streams, the generator seam, and decoding on this machine."""
