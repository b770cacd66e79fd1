"""From a Keras model to .tflite bytes by TensorFlow's converter, in a process of its own."""
