"""Why a run is stable or not: several objectives measured on one checkpoint and the same frozen rollouts."""
