"""The .tflite file: read, edited, proven integer, run."""
