"""Quantization simulated on a float .tflite graph."""
