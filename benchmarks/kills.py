"""Does a run survive kills and damage? python -m benchmarks.kills --trials=20 --damages=100.

Kills: tiny runs (in memory, streamed, two workers, with auto) get SIGKILL at random moments until
they are finished. Half of the moments lie anywhere, half after the first checkpoint. The images'
sha256 and the folder's list of files must be those of a run without kills.

Damages: a random file that a run leaves, finished or not, is cut, overwritten, emptied, nested or
replaced by a pipe. The same command must then finish with the same images, or refuse in one line.
Of the two kinds of records, convert's F.json and a benchmark's results.json, the commands that read
them must give what they gave before, or say which is damaged. Each of these commands is a process
of its own, forked where TensorFlow is imported already.

Trial N takes --seed + N: the counts of runs with seeds 0 and 1000 add up.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence

from absl import flags

from benchmarks.measure import warm
from benchmarks.measure.ports import job_environments
from dgh_tf.common import console, processes
from dgh_tf.common.files import sha256_file
from dgh_tf.run.progress import TimeLeft

ROOT = pathlib.Path(__file__).resolve().parents[1]
MODEL = "model.keras"  # beside the folders of its runs
SETTINGS = ("--num_images=8", "--batch_size=4", "--steps=30", "--seed=3", "--input_range=-1,1")
_SECONDS = 600  # after which a run counts as hanging
_FINE = ("same images", "same page or rows", "one line")  # outcomes of a damage
_MOST_KILLS = 3  # of one run, then it may end


@dataclasses.dataclass(frozen=True)
class Kind:
    """A way to run: its options and number of processes."""

    name: str
    options: tuple[str, ...]
    workers: int = 1


KINDS = (
    Kind("in memory", ("--checkpoint_seconds=0",)),
    Kind("streamed", ("--checkpoint_seconds=0", "--memory_mib=0")),
    Kind(
        "two workers",
        # one that was killed before they met is waited for
        ("--checkpoint_seconds=0", "--strategy=multi_worker", "--wait_minutes=0.5"),
        workers=2,
    ),
    Kind("auto", ("--checkpoint_seconds=0", "--steps=auto")),  # two attempts, of 25 and 50 steps
)


@dataclasses.dataclass(frozen=True)
class Left:
    """What a run leaves: the hash of its images and the names of its files."""

    sha256: str
    files: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Undisturbed:
    """A run without kills: what it left, its seconds in all, and those to its first checkpoint."""

    left: Left
    seconds: float
    first: float


def define_flags() -> None:
    flags.DEFINE_integer("trials", 20, "Runs that are killed.", lower_bound=0)
    flags.DEFINE_integer("damages", 100, "Files that are damaged.", lower_bound=0)
    flags.DEFINE_integer("seed", 0, "Of the moments and the damages.")


def listing(folder: pathlib.Path) -> tuple[str, ...]:
    """Every file and folder below `folder`."""
    return tuple(sorted(str(path.relative_to(folder)) for path in folder.rglob("*")))


def write_model(path: pathlib.Path) -> None:
    """A small network with BatchNorm: runs on it are mostly what kills and damages are about. It
    has the statistics of noise, as without any a run keeps no sums of moments.
    """
    import keras
    import numpy as np

    keras.utils.set_random_seed(0)
    inputs = x = keras.Input((16, 16, 3), name="image")
    for filters in (8, 16):
        x = keras.layers.Conv2D(filters, 3, strides=2, use_bias=False)(x)
        x = keras.layers.ReLU()(keras.layers.BatchNormalization(momentum=0.0)(x))
    x = keras.layers.Dense(5)(keras.layers.GlobalAveragePooling2D()(x))
    model = keras.Model(inputs, x)
    noise = np.random.default_rng(0).uniform(-1.0, 1.0, (64, *inputs.shape[1:]))
    model(noise.astype(np.float32), training=True)  # momentum 0: its statistics become the model's
    model.save(path)


def command(folder: pathlib.Path, kind: Kind) -> list[str]:
    """The module and options of a run."""
    model = f"--model={folder.parent / MODEL}"
    return ["dgh_tf.generate", model, f"--output_dir={folder}", *SETTINGS, *kind.options]


def start(folder: pathlib.Path, kind: Kind) -> list[subprocess.Popen[str]]:
    """The processes of one run."""
    return [
        subprocess.Popen(
            [sys.executable, "-m", *command(folder, kind)],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for environment in job_environments(kind.workers)
    ]


def end(running: Sequence[subprocess.Popen[str]]) -> list[tuple[int, str]]:
    """Exit codes and stderr of all. Raises TimeoutError where one hangs."""
    try:
        told = [process.communicate(timeout=_SECONDS)[1] for process in running]
    except subprocess.TimeoutExpired:
        raise TimeoutError(f"a run took more than {_SECONDS} s") from None
    finally:
        for process in running:
            process.kill()
    return [(process.returncode, text) for process, text in zip(running, told, strict=True)]


def left_by(folder: pathlib.Path) -> Left:
    """What is in a run's folder. Raises OSError where it has no images."""
    return Left(sha256_file(folder / "images.npy"), listing(folder))


def checkpoints(folder: pathlib.Path) -> set[str]:
    """Names of all that were written whole, by any attempt or worker."""
    return {str(path) for path in folder.rglob("visit-*.json")}


def wait_for_checkpoint(folder: pathlib.Path, running: Sequence[subprocess.Popen[str]]) -> None:
    """Until a run has written one more checkpoint, or has ended."""
    known = checkpoints(folder)
    while checkpoints(folder) <= known and any(process.poll() is None for process in running):
        time.sleep(0.02)


def undisturbed(folder: pathlib.Path, kind: Kind) -> Undisturbed:
    """A run without kills. Raises ValueError where it fails."""
    began = time.monotonic()
    running = start(folder, kind)
    wait_for_checkpoint(folder, running)
    first = time.monotonic() - began
    ended = end(running)
    if any(code for code, _ in ended):
        raise ValueError(f"a run {kind.name} without kills fails: {ended}")
    return Undisturbed(left_by(folder), time.monotonic() - began, first)


def killed(folder: pathlib.Path, kind: Kind, whole: Undisturbed, seed: int) -> str:
    """ "" for a run that kills did not change, else what is wrong."""
    rng = random.Random(seed)
    for _ in range(rng.randint(1, _MOST_KILLS)):
        running = start(folder, kind)
        victims = rng.sample(running, rng.randint(1, len(running)))
        if rng.random() < 0.5:
            wait_for_checkpoint(folder, running)
            time.sleep(rng.uniform(0, whole.seconds - whole.first))
        else:
            time.sleep(rng.uniform(0, whole.seconds))
        for process in victims:
            process.send_signal(signal.SIGKILL)
        end(running)
    ended = end(start(folder, kind))
    if any(code for code, _ in ended):
        return f"exit codes and last lines {[(code, text[-300:]) for code, text in ended]}"
    found = left_by(folder)
    if found.sha256 != whole.left.sha256:
        return "other images"
    if found.files != whole.left.files:
        return f"files differ: {set(found.files) ^ set(whole.left.files)}"
    return ""


def damage(path: pathlib.Path, rng: random.Random) -> str:
    """Damages a file and says how."""
    data = bytearray(path.read_bytes())
    how = rng.choice(["cut", "bytes", "empty", "nested", "other", "pipe", "gone"])
    if how == "cut":
        data = data[: rng.randrange(len(data) + 1)]
    elif how == "bytes":
        for _ in range(rng.choice([1, 16])):
            data[rng.randrange(len(data))] = rng.randrange(256)
    elif how == "empty":
        data = bytearray()
    elif how == "nested":
        data = bytearray(b"[" * 200_000)
    elif how == "other":
        data = bytearray(rng.choice([b"{}", b"5", b"null", b'{"identity": 5}', b"\x80\0\xff"]))
    path.unlink()
    if how == "pipe":
        os.mkfifo(path)
    elif how != "gone":
        path.write_bytes(data)
    return f"{path.name}: {how}"


def damaged(folder: pathlib.Path, whole: Left, seed: int) -> tuple[str, str]:
    """(outcome, what was done). Outcomes: "same images", "one line", or what is wrong."""
    rng = random.Random(seed)
    files = sorted(
        path for path in folder.rglob("*") if path.stat().st_size and "lock" not in path.name
    )
    done = damage(rng.choice([path for path in files if path.is_file()]), rng)
    ended = warm.run(*command(folder, KINDS[0]), home=folder.parent, seconds=_SECONDS)
    if ended.code == 0:
        if not (folder / "images.npy").is_file() or left_by(folder).sha256 != whole.sha256:
            return "other images", done
        return "same images", done
    return _one_line(ended), done


def _one_line(ended: warm.Ended) -> str:
    """The outcome of a command that refused: "one line", or what is wrong."""
    lines = ended.stderr.strip().splitlines()
    if ended.code == 1 and len(lines) == 1 and lines[0].startswith("error: "):
        return "one line"
    return f"exit code {ended.code}: {ended.stderr[-300:]}"


@dataclasses.dataclass(frozen=True)
class Record:
    """A folder with files to damage, and the command that reads them and writes `made`."""

    folder: pathlib.Path
    damaged: tuple[str, ...]
    made: str
    command: tuple[str, ...]

    def run(self, folder: pathlib.Path) -> warm.Ended:
        """The command on another folder like this one."""
        options = (*self.command, f"--output_dir={folder}")
        return warm.run(*options, home=folder.parent, seconds=_SECONDS)


def _call(home: pathlib.Path, *arguments: str) -> None:
    ended = warm.run(*arguments, home=home, seconds=_SECONDS)
    if ended.code:
        raise ValueError(f"{arguments[0]} fails: {ended.stderr[-300:]}")


def records(home: pathlib.Path, run: pathlib.Path) -> list[Record]:
    """A folder with F.json, of the images of a finished `run`, and one with results.json."""
    with_proof, benchmark = home / "proof", home / "benchmark"
    shutil.copytree(run, with_proof)
    proof = f"--output={with_proof / 'F.tflite'}"
    model = f"--model={home / MODEL}"
    _call(home, "tflite_export.convert", model, f"--calibration={with_proof}", proof)
    _call(home, "dgh_tf.report", f"--output_dir={with_proof}")
    measured = (
        *("benchmarks.calibration", "--model=demo", "--sources=gaussian", "--seeds=1"),
        *("--num_images=4", "--num_evaluation=8"),
    )
    _call(home, *measured, f"--output_dir={benchmark}")
    return [
        Record(with_proof, ("F.json",), "report.html", ("dgh_tf.report",)),
        Record(benchmark, ("results.json", "ranges.json"), "results.json", measured),
    ]


def damaged_record(record: Record, folder: pathlib.Path, seed: int) -> tuple[str, str]:
    """(outcome, what was done). Outcomes: "same page or rows", "one line", or what is wrong."""
    rng = random.Random(seed)
    shutil.copytree(record.folder, folder)
    name = rng.choice(record.damaged)
    done = damage(folder / name, rng)
    ended = record.run(folder)
    if ended.code:
        return _one_line(ended), done
    if f"{name} is damaged" in ended.stdout:
        return "one line", done
    if not (folder / name).exists() or "gone" in done:  # none is as good as one more to measure
        return "same page or rows", done
    same = (folder / record.made).read_bytes() == (record.folder / record.made).read_bytes()
    return ("same page or rows" if same else "another page or other rows, and no word"), done


def _stopped(folder: pathlib.Path) -> pathlib.Path:
    """The folder of a run that a signal ended once it had checkpoints."""
    running = start(folder, KINDS[0])
    while len(checkpoints(folder)) < 2 and running[0].poll() is None:
        time.sleep(0.02)
    running[0].send_signal(signal.SIGTERM)
    end(running)
    return folder


def _kills(home: pathlib.Path, wholes: dict[str, Undisturbed], seeds: range) -> Iterator[str]:
    """Kills one run a seed; gives what is wrong of each, or ""."""
    left = TimeLeft(len(seeds), what="runs killed")
    for trial, seed in enumerate(seeds):
        kind, folder = KINDS[seed % len(KINDS)], home / f"killed{trial}"
        try:
            wrong = killed(folder, kind, wholes[kind.name], seed)
        except TimeoutError as error:
            wrong = str(error)
        rest = f"{left.left(trial + 1):.0f} s left"
        told = wrong or "same images and files"
        console.say(f"kill {trial + 1}/{len(seeds)}, {kind.name}, seed {seed}: {told}; {rest}")
        shutil.rmtree(folder)
        yield wrong


def _damages(home: pathlib.Path, whole: Left, seeds: range) -> int:
    """Damages one file a seed, of each five one record, and prints what came of it. Returns the
    faults.
    """
    finished = home / KINDS[0].name
    kinds, stopped = records(home, finished), _stopped(home / "stopped")
    outcomes, left = dict.fromkeys(_FINE, 0), TimeLeft(len(seeds), what="damages")
    for trial, seed in enumerate(seeds):
        folder = home / f"damaged{trial}"
        try:
            if seed % 5 == 4:
                outcome, done = damaged_record(kinds[seed // 5 % 2], folder, seed)
            else:
                shutil.copytree(stopped if seed % 2 else finished, folder)
                outcome, done = damaged(folder, whole, seed)
        except TimeoutError as error:
            outcome, done = str(error), "a damage"
        if outcome in _FINE:
            outcomes[outcome] += 1
        else:
            console.say(f"damage of seed {seed}, {done}: {outcome}")
        shutil.rmtree(folder)
        left.tell(trial + 1)
    told, fine = ", ".join(f"{n} {name}" for name, n in outcomes.items()), sum(outcomes.values())
    console.say(f"damages: {fine} of {len(seeds)} fine ({told})")
    return len(seeds) - fine


def main(argv: list[str]) -> int:
    """Prints every fault and the counts; returns 1 where there is a fault."""
    del argv
    values, faults = flags.FLAGS, 0
    with processes.temporary_folder() as home:
        write_model(home / MODEL)
        kinds = KINDS if values.trials else KINDS[:1]
        wholes = {kind.name: undisturbed(home / kind.name, kind) for kind in kinds}
        if values.trials:
            seeds = range(values.seed, values.seed + values.trials)
            faults = sum(map(bool, _kills(home, wholes, seeds)))
            fine = values.trials - faults
            console.say(f"kills: {fine} of {values.trials} the same images and files")
        if values.damages:
            seeds = range(values.seed, values.seed + values.damages)
            faults += _damages(home, wholes[KINDS[0].name].left, seeds)
    return 1 if faults else 0


if __name__ == "__main__":
    define_flags()
    console.run(main)
