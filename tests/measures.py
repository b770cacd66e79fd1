"""Measures of likeness in float64, written apart from the project's own."""

import numpy as np


def sqnr_db(reference, value):
    """Over all outputs, flattened: signal (variance of the reference) over squared error, in dB."""
    reference, value = (
        np.concatenate([np.ravel(v[k]) for k in sorted(v)]) if isinstance(v, dict) else np.ravel(v)
        for v in (reference, value)
    )
    return 10 * np.log10(
        np.var(reference, dtype=np.float64) / np.mean((np.float64(reference) - value) ** 2)
    )
