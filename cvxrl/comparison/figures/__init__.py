"""Figures of a comparison, as SVG."""
