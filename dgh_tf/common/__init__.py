"""What every command shares: the console, whole files, the folder of a run, quiet imports."""
