"""What demo_signal learns from: vibration of a machine in four states, drawn, not recorded.

Three axes of an accelerometer in m/s^2, 256 samples at 1600 Hz. Every signal has a speed, a load, a
mounting and a noise of its own.
"""

from __future__ import annotations

import numpy as np

SAMPLES, AXES, RATE = 256, 3, 1600.0  # Hz
FULL_SCALE = 19.6  # m/s^2: a sensor of 2 g
STATES = ("idle", "running", "unbalanced", "bearing")
_CALIBRATION, _EVALUATION = 256, 400


def draw(count: int, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Signals and their states: float32 [count, 256, 3] in m/s^2, and int64 [count].

    Example: `x, y = draw(8, seed=0)`.
    """
    rng = np.random.default_rng(seed)
    states = rng.integers(0, len(STATES), count)
    return np.stack([_signal(STATES[state], rng) for state in states]), states


def _signal(state: str, rng: np.random.Generator) -> np.ndarray:
    time = np.arange(SAMPLES)[:, None] / RATE
    mounting = rng.normal(0.0, 1.0, (1, AXES))
    mounting /= np.linalg.norm(mounting)
    noise = rng.uniform(0.1, 0.5) * rng.standard_normal((SAMPLES, AXES))
    x = noise + rng.normal(0.0, 0.2, (1, AXES))
    if state == "idle":
        return x.astype(np.float32)
    speed, load = rng.uniform(20.0, 60.0), rng.lognormal(0.0, 0.3)
    turns = 2 * np.pi * (speed * time + rng.uniform(0, 1))
    phase = rng.uniform(0, 2 * np.pi, (4, 1, AXES))
    for number in (1, 2, 3):
        strength = load * (1.0 / number) * (4.0 if state == "unbalanced" and number == 1 else 1.0)
        x = x + strength * rng.uniform(0.5, 1.0, (1, AXES)) * np.sin(number * turns + phase[number])
    if state == "bearing":  # a knock every few turns of the cage, which rings
        period = 1.0 / (speed * rng.uniform(2.5, 4.5))
        after = np.mod(time + rng.uniform(0, period), period)
        ring = np.exp(-after * rng.uniform(250, 500)) * np.sin(2 * np.pi * 500.0 * after)
        x = x + load * rng.uniform(3.0, 6.0) * ring * mounting
    return x.clip(-FULL_SCALE, FULL_SCALE).astype(np.float32)


def real() -> tuple[np.ndarray, np.ndarray]:
    """Signals as in training, to calibrate with: x, y of `draw`."""
    return draw(_CALIBRATION, seed=1)


def evaluation() -> tuple[np.ndarray, np.ndarray]:
    """Signals that training and calibration never saw."""
    return draw(_EVALUATION, seed=2)
