"""Benchmarks: what calibration images are worth, measured on models that do have data."""
