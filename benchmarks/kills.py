"""Does a run survive kills and damage? python -m benchmarks.kills --trials=20 --damages=100.

Kills: tiny runs (in memory, streamed, two workers) get SIGKILL at random moments until they are
finished. The images' sha256 and the folder's list of files must be those of a run without kills.

Damages: a random file that a run leaves, finished or not, is cut, overwritten, emptied, nested or
replaced by a pipe. The same command must then finish with the same images, or refuse in one line.
Of the two kinds of records, convert's F.json and a benchmark's results.json, the commands that read
them must give what they gave before, or say which is damaged.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

from absl import flags

from benchmarks.measure.ports import free_ports
from dgh_tf.common import console, processes
from dgh_tf.common.files import sha256_file

ROOT = pathlib.Path(__file__).resolve().parents[1]
SETTINGS = ("--model=demo", "--num_images=8", "--batch_size=4", "--steps=12", "--seed=3")
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
)


@dataclasses.dataclass(frozen=True)
class Left:
    """What a run leaves: the hash of its images and the names of its files."""

    sha256: str
    files: tuple[str, ...]


def define_flags() -> None:
    flags.DEFINE_integer("trials", 20, "Runs that are killed.", lower_bound=0)
    flags.DEFINE_integer("damages", 100, "Files that are damaged.", lower_bound=0)
    flags.DEFINE_integer("seed", 0, "Of the moments and the damages.")


def listing(folder: pathlib.Path) -> tuple[str, ...]:
    """Every file and folder below `folder`."""
    return tuple(sorted(str(path.relative_to(folder)) for path in folder.rglob("*")))


def start(folder: pathlib.Path, kind: Kind) -> list[subprocess.Popen[str]]:
    """The processes of one run."""
    hosts = [f"127.0.0.1:{port}" for port in free_ports(kind.workers)]
    command = [sys.executable, "-m", "dgh_tf.generate", *SETTINGS, f"--output_dir={folder}"]
    running = []
    for index in range(kind.workers):
        config = {"cluster": {"worker": hosts}, "task": {"type": "worker", "index": index}}
        running.append(
            subprocess.Popen(
                [*command, *kind.options],
                cwd=ROOT,
                env={**os.environ, "TF_CONFIG": json.dumps(config)},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    return running


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


def killed(folder: pathlib.Path, kind: Kind, whole: Left, seconds: float, seed: int) -> str:
    """ "" for a run that kills did not change, else what is wrong. seconds: of a run without."""
    rng = random.Random(seed)
    for _ in range(rng.randint(1, _MOST_KILLS)):
        running = start(folder, kind)
        victims = rng.sample(running, rng.randint(1, len(running)))
        time.sleep(rng.uniform(0, seconds))
        for process in victims:
            process.send_signal(signal.SIGKILL)
        end(running)
    ended = end(start(folder, kind))
    if any(code for code, _ in ended):
        return f"exit codes and last lines {[(code, text[-300:]) for code, text in ended]}"
    found = left_by(folder)
    if found.sha256 != whole.sha256:
        return "other images"
    return f"files differ: {set(found.files) ^ set(whole.files)}" * (found.files != whole.files)


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
    ((code, text),) = end(start(folder, KINDS[0]))
    if code == 0:
        if not (folder / "images.npy").is_file() or left_by(folder).sha256 != whole.sha256:
            return "other images", done
        return "same images", done
    lines = text.strip().splitlines()
    if code == 1 and len(lines) == 1 and lines[0].startswith("error: "):
        return "one line", done
    return f"exit code {code}: {text[-300:]}", done


@dataclasses.dataclass(frozen=True)
class Record:
    """A folder with files to damage, and the command that reads them and writes `made`."""

    folder: pathlib.Path
    damaged: tuple[str, ...]
    made: str
    command: tuple[str, ...]

    def run(self, folder: pathlib.Path) -> tuple[int, str, str]:
        """(exit code, stdout, stderr) of the command on another folder like this one."""
        done = subprocess.run(
            [sys.executable, "-m", *self.command, f"--output_dir={folder}"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=_SECONDS,
        )
        return done.returncode, done.stdout, done.stderr


def _call(*command: str) -> None:
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True)
    if done.returncode:
        raise ValueError(f"{command[0]} fails: {done.stderr.decode()[-300:]}")


def records(home: pathlib.Path, run: pathlib.Path) -> list[Record]:
    """A folder with F.json, of the images of a finished `run`, and one with results.json."""
    with_proof, benchmark = home / "proof", home / "benchmark"
    shutil.copytree(run, with_proof)
    proof = f"--output={with_proof / 'F.tflite'}"
    _call("tflite_export.convert", "--model=demo", f"--calibration={with_proof}", proof)
    _call("dgh_tf.report", f"--output_dir={with_proof}")
    measured = (
        *("benchmarks.calibration", "--model=demo", "--sources=gaussian", "--seeds=1"),
        *("--num_images=4", "--num_evaluation=8"),
    )
    _call(*measured, f"--output_dir={benchmark}")
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
    code, told, error = record.run(folder)
    lines = error.strip().splitlines()
    if code:
        fine = code == 1 and len(lines) == 1 and lines[0].startswith("error: ")
        return ("one line" if fine else f"exit code {code}: {error[-300:]}"), done
    if f"{name} is damaged" in told:
        return "one line", done
    if not (folder / name).exists() or "gone" in done:  # none is as good as one more to measure
        return "same page or rows", done
    same = (folder / record.made).read_bytes() == (record.folder / record.made).read_bytes()
    return ("same page or rows" if same else "another page or other rows, and no word"), done


def _stopped(folder: pathlib.Path) -> pathlib.Path:
    """The folder of a run that a signal ended once it had checkpoints."""
    running = start(folder, KINDS[0])
    while len(list(folder.glob("checkpoint/*.json"))) < 2 and running[0].poll() is None:
        time.sleep(0.02)
    running[0].send_signal(signal.SIGTERM)
    end(running)
    return folder


def _damages(home: pathlib.Path, whole: Left, count: int, seed: int) -> int:
    """Damages `count` files, one of five a record, and prints what came of it. Returns the
    faults.
    """
    finished = home / KINDS[0].name
    kinds, stopped = records(home, finished), _stopped(home / "stopped")
    outcomes = dict.fromkeys(_FINE, 0)
    faults = 0
    for trial in range(count):
        folder = home / f"damaged{trial}"
        if trial % 5 == 4:
            outcome, done = damaged_record(kinds[trial // 5 % 2], folder, seed + trial)
        else:
            shutil.copytree(stopped if trial % 2 else finished, folder)
            outcome, done = damaged(folder, whole, seed + trial)
        if outcome in _FINE:
            outcomes[outcome] += 1
        else:
            faults += 1
            console.say(f"damage {trial}, {done}: {outcome}")
        shutil.rmtree(folder)
    told = ", ".join(f"{number} {name}" for name, number in outcomes.items())
    console.say(f"damages: {count - faults} of {count} fine ({told})")
    return faults


def main(argv: list[str]) -> int:
    """Prints every fault and the counts; returns 1 where there is a fault."""
    del argv
    values, faults = flags.FLAGS, 0
    with processes.temporary_folder() as home:
        wholes, seconds = {}, {}
        for kind in KINDS:
            began = time.monotonic()
            if any(code for code, _ in end(start(home / kind.name, kind))):
                raise ValueError(f"a run {kind.name} without kills fails")
            wholes[kind.name] = left_by(home / kind.name)
            seconds[kind.name] = time.monotonic() - began
        for trial in range(values.trials):
            kind, folder = KINDS[trial % len(KINDS)], home / f"killed{trial}"
            wrong = killed(folder, kind, wholes[kind.name], seconds[kind.name], values.seed + trial)
            faults += bool(wrong)
            console.say(f"kill {trial}, {kind.name}: {wrong or 'same images and files'}")
            shutil.rmtree(folder)
        console.say(f"kills: {values.trials - faults} of {values.trials} the same images and files")
        if values.damages:
            faults += _damages(home, wholes[KINDS[0].name], values.damages, values.seed)
    return 1 if faults else 0


if __name__ == "__main__":
    define_flags()
    console.run(main)
