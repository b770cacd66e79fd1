"""Data sets and calibration sources of the benchmarks."""
