"""What an integer file costs, told without data."""
