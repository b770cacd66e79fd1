"""Pure functions of tensors and arrays: moments, losses, canvases, the optimizer."""
