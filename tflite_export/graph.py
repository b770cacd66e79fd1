"""The name under which scripts written for 0.1 find the reader of a .tflite file."""

from tflite_export.simulation.run import read_graph

__all__ = ["read_graph"]
