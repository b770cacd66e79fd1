"""How far the estimate of an integer file can be trusted, and the fit of its constants."""
