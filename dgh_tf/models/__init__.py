"""From a file to a model, and everything that touches a model's insides."""
