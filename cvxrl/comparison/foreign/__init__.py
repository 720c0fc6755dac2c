"""Runs that other programs logged, read beside our own run directories."""
