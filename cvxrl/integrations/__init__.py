"""Our losses inside the training loops of other programs."""
