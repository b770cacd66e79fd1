"""state: checkpoints of a run: whole or absent, checksummed, the last two kept."""
from __future__ import annotations

import json
import math
import pathlib
import warnings

import numpy as np

from dgh_tf.files import atomic_path, atomic_write, sha256_file
from dgh_tf.generation import State

KEPT = 2


def save(folder: pathlib.Path, state: State, *, identity: dict) -> None:
    """Writes the state; the step becomes loadable when its .json, written last, exists. Raises OSError on a full disk."""
    folder.mkdir(exist_ok=True)
    path = folder / f"step-{state.step:08d}.npz"
    groups = {"canvas": state.canvases, "first": state.first, "second": state.second}
    arrays = {f"{key}_{i}": array for key, group in groups.items() for i, array in enumerate(group)}
    scale, best, waited = state.plateau
    record = json.dumps({"step": state.step, "plateau": [scale, best if math.isfinite(best) else None, waited], "identity": identity})
    with atomic_path(path) as temporary:
        np.savez(temporary, means=state.means, m2s=state.m2s, spreads=state.spreads, record=record, **arrays)
    atomic_write(path.with_suffix(".json"), json.dumps({"sha256": sha256_file(path)}))
    for old in sorted(folder.glob("step-*.json"))[:-KEPT]:
        old.unlink()
        old.with_suffix(".npz").unlink(missing_ok=True)


def load_latest(folder: pathlib.Path, *, identity: dict) -> State | None:
    """The newest whole checkpoint, None without one; damaged ones are passed over with a warning.

    Raises: ValueError when a whole checkpoint belongs to another model, config or version, naming the difference.
    """
    for record_path in sorted(folder.glob("step-*.json"), reverse=True):
        path = record_path.with_suffix(".npz")
        try:
            if sha256_file(path) != json.loads(record_path.read_text())["sha256"]:
                raise ValueError("its checksum differs")
            with np.load(path, allow_pickle=False) as data:
                arrays = dict(data)
            record = json.loads(str(arrays.pop("record")))
        except (OSError, ValueError, KeyError, TypeError) as error:
            warnings.warn(f"Checkpoint {path.name} is damaged ({error}); going back to the one before.", stacklevel=2)
            continue
        require_same(record["identity"], identity, folder.parent)
        groups = [[arrays[f"{key}_{i}"] for i in range(sum(name.startswith(key) for name in arrays))]
                  for key in ("canvas", "first", "second")]
        scale, best, waited = record["plateau"]
        best = math.inf if best is None else best
        return State(*groups, *(arrays[name] for name in ("means", "m2s", "spreads")), record["step"], (scale, best, waited))
    return None


def require_same(saved: dict, wanted: dict, folder: pathlib.Path) -> None:
    """Raises ValueError naming every entry in which two identities of runs differ."""
    flat_saved, flat_wanted = ({**i, **i.get("config", {})} for i in (saved, wanted))
    keys = sorted((flat_saved.keys() | flat_wanted.keys()) - {"config"})
    different = [f"{key}: {flat_saved.get(key)!r} there, {flat_wanted.get(key)!r} now"
                 for key in keys if flat_saved.get(key) != flat_wanted.get(key)]
    if different:
        raise ValueError(f"{folder} holds a run with other settings ({'; '.join(different)}). "
                         "Give the same settings to go on with it, or another --output_dir.")
