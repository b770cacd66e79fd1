"""Other quantizers on the same calibration images: python -m benchmarks.tools.

To add one: a program in this folder that its environment runs, and its line in TOOLS of tools.py.
"""
