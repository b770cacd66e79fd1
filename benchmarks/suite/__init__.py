"""Many models over many sources: python -m benchmarks.suite."""
