"""Benchmarks: what calibration images are worth, measured on models that do have data."""

import dgh_tf.interrupt  # noqa: F401
