"""The valid range of a model's inputs: conventions, the model's own layers, its statistics."""
