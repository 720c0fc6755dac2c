"""Statistics of a few training seeds: plain NumPy, explicit generators, nothing known of runs or files."""
