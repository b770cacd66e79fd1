"""What one flashes beside the .tflite file, and what one checks a device with."""
