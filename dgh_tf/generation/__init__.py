"""The training loop that makes images."""
