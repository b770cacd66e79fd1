"""What each target device makes of an integer file."""
