"""Everything about the output folder: files, records, provenance, checkpoints."""
