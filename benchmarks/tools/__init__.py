"""Other quantizers on the same calibration images: python -m benchmarks.tools.

To add one: a module here with its `outputs`, which its environment runs, and its line in TOOLS of
tools.py.
"""
