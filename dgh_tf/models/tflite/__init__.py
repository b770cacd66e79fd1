"""A .tflite file as plain data, and its float graph run and differentiated in TensorFlow."""
