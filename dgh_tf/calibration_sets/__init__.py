"""Generated images in the files that other quantizers take for calibration."""
