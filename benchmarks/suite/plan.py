"""The suite's list of models and its plan: which rows there are to measure, and where each
is kept.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks.data.sources import ABLATION
from dgh_tf.common.files import read_json

TASKS = {"classification": "top1", "detection": "map"}  # and the score that counts
_LOWEST = {  # values of whole numbers
    **{"steps": 1, "batch_size": 1, "num_evaluation": 0, "held_out": 0},
    **{"num_images": 1, "ablation_num_images": 1},
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """One model of the list: what benchmarks.calibration takes as flags, and what to expect of it.

    mlperf_tiny: MLPerf Tiny's accuracy threshold for this model, a reference line in the plots.
    stated_range: input range as the model's makers state it, for the source no_statistics, which
    finds none.
    num_evaluation: at most so many evaluation images, 0 for all. num_images, ablation_num_images,
    schemes, held_out: the entry's own, instead of the command's.
    """

    name: str
    model: str
    real: str
    evaluation: str
    task: str
    preprocess: str = "none"
    input_range: str = ""
    stated_range: str = ""
    steps: int = 100
    batch_size: int = 32
    num_evaluation: int = 0
    num_images: tuple[int, ...] = ()
    ablation_num_images: tuple[int, ...] = ()
    schemes: tuple[str, ...] = ()
    held_out: int = 0
    mlperf_tiny: float | None = None


@dataclasses.dataclass(frozen=True)
class Key:
    """One row of the suite."""

    model: str
    source: str
    num_images: int
    seed: int
    scheme: str

    @property
    def name(self) -> str:
        """A file name of its own."""
        return f"{self.model}-{self.source}-{self.num_images}-{self.seed}-{self.scheme}"


def read_models(path: str | pathlib.Path, *, data: str, zoo: str = "") -> list[Entry]:
    """The entries of a .json or .yaml list: {"models": [{name, model, real, evaluation, task, ...},
    ...]}.

    Args:
      path: of the list.
      data: what stands for {data} in the paths; entries that need it are refused without it.
      zoo: the same for {zoo}.
    Raises: FileNotFoundError, ValueError naming the entry and what is wrong with it.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"--models={path}: no such file. Give a .json or .yaml list of models; "
            "benchmarks/suite/suite.json is one."
        )
    try:
        rows = _parse(path)["models"]
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows) or not rows:
            raise TypeError("models is no list of objects")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(
            f'{path} is no list of models ({error!r}). Expected {{"models": '
            f'[{{"name": ..., "model": ..., "real": '
            '..., "evaluation": ..., "task": "classification"}]}.'
        ) from error
    entries = [_entry(path, row, {"data": data, "zoo": zoo}) for row in rows]
    names = [entry.name.lower() for entry in entries]  # of files, whose case may not count
    if len(set(names)) < len(names):
        raise ValueError(
            f"{path} names a model twice: {', '.join(names)}. Give each entry a name of its own."
        )
    return entries


def choose(
    path: str | pathlib.Path, *, data: str, only: Sequence[str], zoo: str = ""
) -> list[Entry]:
    """The entries of a list that are named, all where none is. {data} is asked for only where a
    chosen entry needs it.
    """
    entries = read_models(path, data=data or "{data}", zoo=zoo or "{zoo}")
    wanted = only or [entry.name for entry in entries]
    unknown = [name for name in wanted if name not in {entry.name for entry in entries}]
    if unknown:
        raise ValueError(
            f"--only={','.join(only)}: {', '.join(unknown)} not in the list, which has "
            f"{', '.join(entry.name for entry in entries)}."
        )
    chosen = [entry for entry in entries if entry.name in wanted]
    for place in ("data", "zoo"):
        missing = [
            entry.name
            for entry in chosen
            if f"{{{place}}}" in "".join(map(str, dataclasses.astuple(entry)))
        ]
        if missing:
            raise ValueError(
                f"The paths of {', '.join(missing)} hold {{{place}}}. Say with --{place}=DIR what "
                "that is, or leave them out with --only."
            )
    return chosen


def _parse(path: pathlib.Path) -> Any:
    if path.suffix in (".yaml", ".yml"):
        return _parse_yaml(path.read_text())
    return read_json(path)


def _parse_yaml(text: str) -> Any:
    """The plain value of a YAML text, as JSON could hold it. Raises ValueError."""
    import yaml

    class Loader(yaml.SafeLoader):
        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):  # few of them stand for any number of values
                raise yaml.YAMLError("it has aliases; write their values out")
            return super().compose_node(parent, index)

    try:
        return json.loads(json.dumps(yaml.load(text, Loader)))  # noqa: S506 - a safe loader
    except (yaml.YAMLError, TypeError) as error:  # a date, say, is no plain value
        raise ValueError(str(error)) from error


def _entry(path: pathlib.Path, row: dict[str, Any], places: Mapping[str, str]) -> Entry:
    fields = {field.name: field for field in dataclasses.fields(Entry)}
    name = row.get("name", "an entry without a name")
    missing = [
        f for f, field in fields.items() if field.default is dataclasses.MISSING and f not in row
    ]
    unknown = sorted(set(row) - set(fields))
    if missing or unknown:
        raise ValueError(
            f"{path}, {name}: missing {', '.join(missing) or 'nothing'}; unknown "
            f"{', '.join(unknown) or 'nothing'}. "
            f"An entry has {', '.join(fields)}."
        )
    names = {
        "str": str,
        "int": int,
        "tuple[int, ...]": list,
        "tuple[str, ...]": list,
    }  # JSON's form of a field's type
    kinds = {
        field: names[str(each.type)] for field, each in fields.items() if str(each.type) in names
    }
    wrong = [
        field for field, kind in kinds.items() if field in row and not isinstance(row[field], kind)
    ]
    if wrong:
        raise ValueError(
            f"{path}, {name}: "
            f"{', '.join(f'{f} is {row[f]!r}, expected {kinds[f].__name__}' for f in wrong)}."
        )
    if not re.fullmatch(r"\w{1,100}", name):
        raise ValueError(
            f"{path}: the name {name!r} is used in file names; expected up to 100 letters, "
            "digits and underscores."
        )
    _require_values(f"{path}, {name}", row)
    if row["task"] not in TASKS:
        raise ValueError(
            f"{path}, {name}: the task is {row['task']!r}; expected one of {', '.join(TASKS)}."
        )
    for place, folder in places.items():
        if f"{{{place}}}" in json.dumps(row) and not folder:
            raise ValueError(
                f"{path}, {name}: its paths hold {{{place}}}. Say with --{place}=DIR what that "
                "is, or choose other models with --only."
            )

    def value_of(value: Any) -> Any:
        if isinstance(value, str):
            for place, folder in places.items():
                value = value.replace(f"{{{place}}}", folder)
        return tuple(value) if isinstance(value, list) else value

    return Entry(**{key: value_of(value) for key, value in row.items()})


def _require_values(where: str, row: dict[str, Any]) -> None:
    """Raises ValueError for numbers and names that no row could be measured with."""
    for field, lowest in _LOWEST.items():
        value = row.get(field, lowest)
        values = value if isinstance(value, list) else [value]
        if any(type(each) is not int or each < lowest for each in values):
            raise ValueError(
                f"{where}: {field} is {value!r}, expected whole numbers from {lowest} on."
            )
    threshold = row.get("mlperf_tiny")
    if threshold is not None and not (isinstance(threshold, int | float) and 0 <= threshold <= 1):
        raise ValueError(f"{where}: mlperf_tiny is {threshold!r}, expected 0 to 1.")
    if not all(isinstance(scheme, str) for scheme in row.get("schemes", [])):
        raise ValueError(f"{where}: schemes is {row['schemes']!r}, expected their names.")


def plan(
    entries: list[Entry],
    *,
    sources: Iterable[str],
    num_images: Sequence[int],
    ablation_num_images: Sequence[int],
    seeds: int,
    schemes: Sequence[str],
) -> list[Key]:
    """Every row, seeds outermost: a suite that is stopped early has all of the first seed before
    any of the second.

    Sources that lack a part of the method are measured at the ablation's set sizes and with the
    first scheme alone, further schemes at those sizes; per_batch not where there is but one batch,
    since it would be synthetic again.
    """

    def counts(entry: Entry, source: str, scheme: str) -> Sequence[int]:
        few, first = (
            entry.ablation_num_images or ablation_num_images,
            scheme == (entry.schemes or schemes)[0],
        )
        if source not in ABLATION:
            return (entry.num_images or num_images) if first else few
        return [
            count for count in few if first and (source != "per_batch" or count > entry.batch_size)
        ]

    return [
        Key(entry.name, source, count, seed, scheme)
        for seed in range(seeds)
        for entry in entries
        for source in sources
        for scheme in entry.schemes or schemes
        for count in counts(entry, source, scheme)
    ]


class Store:
    """The suite's folder: one file per row, so that a killed run loses only the row it was
    measuring.
    """

    def __init__(self, folder: str | pathlib.Path) -> None:
        self.folder = pathlib.Path(folder)
        for name in ("rows", "evidence", "images"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)

    def row(self, key: Key, *, fingerprint: str | None = None) -> dict[str, Any] | None:
        """The finished row, None where there is none or it came from another model, other data or
        settings.
        """
        path = self.folder / "rows" / f"{key.name}.json"
        if not path.exists():
            return None
        try:
            row = read_json(path)
            if not isinstance(row, dict):
                raise ValueError("it is no row")
        except ValueError as error:
            raise ValueError(
                f"{path} is damaged ({error}). Remove it; the suite then measures that row again."
            ) from error
        return row if fingerprint in (None, row.get("run")) else None

    def add(self, key: Key, row: dict[str, Any]) -> None:
        """Writes one row, whole or not at all."""
        from dgh_tf.common.files import atomic_write

        atomic_write(
            self.folder / "rows" / f"{key.name}.json",
            json.dumps(row, indent=1, allow_nan=False) + "\n",
        )

    def rows(self, keys: Iterable[Key]) -> list[dict[str, Any]]:
        """Those of the keys that are done."""
        return [row for row in map(self.row, keys) if row is not None]
