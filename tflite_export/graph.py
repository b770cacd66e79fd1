"""The name under which scripts written for 0.1 find the reader of a .tflite file."""

from dgh_tf.models.tflite.run import read_graph

__all__ = ["read_graph"]
