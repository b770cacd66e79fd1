"""Quantization-aware distillation by tensorflow-model-optimization."""
