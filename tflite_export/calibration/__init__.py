"""Calibration images: loaded from files, checked."""
