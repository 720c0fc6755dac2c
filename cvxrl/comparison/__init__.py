"""From run directories to a comparison of methods: reading, grouping, scoring, testing, showing."""
