"""Benchmarks: what calibration images are worth, measured on models that do have data."""

import dgh_tf.common.interrupt  # noqa: F401
