"""report.html, one page that needs no network: what a run made, and what became of it.

`view` gathers everything the template shows; nothing in the template computes. Jinja2 escapes every
text, since names of models, layers and files come from whoever made them.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
import shlex
import urllib.parse
from typing import Any

import numpy as np

from dgh_tf.common.convergence import GOOD_GAP, Convergence, judge_convergence
from dgh_tf.common.files import atomic_write, read_npy
from dgh_tf.config import GenerationConfig
from dgh_tf.report import charts, integer_files, pictures, text
from dgh_tf.report.integer_files import Fact, IntegerFile
from dgh_tf.report.pictures import preview_grid, write_preview

__all__ = ["preview_grid", "run_command", "view", "write_page", "write_preview"]

_WORST_FIRST = ("bad", "warn", "good")  # tones of integer files
_TONES = {"good": "good", "fair": "warn", "poor": "bad"}  # by level of convergence
_WORDS = {"good": "images ready", "fair": "gap is high", "poor": "images do not match"}


@dataclasses.dataclass(frozen=True)
class Card:
    """tone: good, warn, bad or empty."""

    label: str
    value: str
    note: str = ""
    tone: str = ""


@dataclasses.dataclass(frozen=True)
class Link:
    """A file beside the page. href: its name, quoted for a URL."""

    name: str
    href: str
    what: str


@dataclasses.dataclass(frozen=True)
class LayerGap:
    name: str
    before: str
    after: str


@dataclasses.dataclass(frozen=True)
class Gallery:
    """Pictures of one input. input_name: empty where the model has a single input."""

    input_name: str
    gallery: pictures.Gallery


@dataclasses.dataclass(frozen=True)
class Page:
    """All that report.html shows."""

    title: str
    tone: str
    word: str
    headline: str
    cards: tuple[Card, ...]
    galleries: tuple[Gallery, ...]
    likeness: str
    missing_images: str
    histograms: tuple[charts.Chart, ...]
    charts: tuple[charts.Chart, ...]
    layer_gaps: tuple[LayerGap, ...]
    files: tuple[IntegerFile, ...]
    damaged: tuple[str, ...]
    commands: tuple[str, ...]
    facts: tuple[Fact, ...]
    limits: tuple[str, ...]
    links: tuple[Link, ...]


def run_command(manifest: dict[str, Any]) -> str:
    """The command of a finished run: its model, and every setting that is not the default."""
    config, known = manifest["identity"]["config"], dataclasses.fields(GenerationConfig)
    options = [
        f"--{f.name}={config[f.name]}"
        for f in known
        if f.name in config and config[f.name] != f.default
    ]
    model = f"--model={manifest['model']}"
    return shlex.join(["python", "-m", "dgh_tf.generate", model, "--output_dir=DIR", *options])


def write_page(
    folder: pathlib.Path, *, manifest: dict[str, Any], metrics: list[dict[str, Any]], command: str
) -> Page:
    """Writes report.html into the folder and returns what it shows.

    Args:
      folder: of the run; images and integer files are read from it.
      manifest: the run's manifest.
      metrics: rows of metrics.jsonl.
      command: what made the images.

    Raises: ValueError, LookupError, TypeError or AttributeError where they do not hold what a run
      writes, OSError where the page cannot be written.
    """
    import jinja2

    page = view(folder, manifest=manifest, metrics=metrics, command=command)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    atomic_write(folder / "report.html", environment.get_template("report.html").render(page=page))
    return page


def view(
    folder: pathlib.Path, *, manifest: dict[str, Any], metrics: list[dict[str, Any]], command: str
) -> Page:
    """What the page shows of a folder; the arguments are those of `write_page`."""
    model = str(manifest["model"])
    found = integer_files.found(folder, model=model)
    proofs = [file for file in found.files if file.is_proof]
    worst_first = sorted(proofs, key=lambda file: _WORST_FIRST.index(file.tone))
    galleries, histograms, missing = _images(folder, manifest)
    tone, word, headline = _headline(manifest, worst_first)
    return Page(
        title=pathlib.PurePath(model).name,
        tone=tone,
        word=word,
        headline=headline,
        cards=_cards(manifest, worst_first),
        galleries=galleries,
        likeness=(
            f"They {'match statistics' if _has_statistics(manifest) else 'follow image priors'} "
            "and need not look like real data."
        ),
        missing_images=missing,
        histograms=histograms,
        charts=_charts(manifest, metrics),
        layer_gaps=_layer_gaps(manifest),
        files=found.files,
        damaged=found.damaged,
        commands=(command, *(file.command for file in proofs)),
        facts=_facts(manifest),
        limits=_limits(manifest, found.files),
        links=_links(folder, manifest, proofs),
    )


def _gap_at_start(manifest: dict[str, Any]) -> float:
    values = [float(gap) for gap in manifest["gap_start"].values()]
    return sum(values) / len(values) if values else math.nan


def _convergence(manifest: dict[str, Any]) -> Convergence | None:
    """How near the images came to the model's statistics, judged as the run's last line and convert
    judge it; None where there are none.
    """
    gaps = manifest["gap_end"] if _has_statistics(manifest) else {}
    return judge_convergence({str(n): float(gap) for n, gap in gaps.items()}) if gaps else None


def _evidence(manifest: dict[str, Any]) -> str:
    """What the images rest on, in words; empty for a folder of a version that did not say."""
    return str(manifest.get("evidence", {}).get("sentence", ""))


def _has_statistics(manifest: dict[str, Any]) -> bool:
    """Whether there were running statistics to match, so that a gap says something."""
    return manifest.get("evidence", {}).get("statistics") != "none"


def _headline(manifest: dict[str, Any], proofs: list[IntegerFile]) -> tuple[str, str, str]:
    """Tone, word and sentence of the first screen: of the worst integer file, which comes first,
    and the words of the others; else of the images.
    """
    if proofs:
        first, *others = proofs
        below = ", ".join(f"{file.name} is {file.word}" for file in others)
        return first.tone, first.word, first.headline + (f" Below: {below}." if below else "")
    found, count = _convergence(manifest), _count(manifest)
    if found is None:
        sentence = f"{text.number(count)} calibration images; {_evidence(manifest)}."
        return "good", "images ready", f"{sentence} No integer file was made from them yet."
    return (
        _TONES[found.level],
        _WORDS[found.level],
        f"{text.number(count)} calibration images, against what the model remembers of its "
        f"training data: {found.summary}. "
        f"{found.advice or 'No integer file was made from them yet.'}",
    )


def _count(manifest: dict[str, Any]) -> int:
    return int(manifest["identity"]["config"]["num_images"]) + int(manifest.get("real_images", 0))


def _cards(manifest: dict[str, Any], proofs: list[IntegerFile]) -> tuple[Card, ...]:
    real, steps = manifest.get("real_images", 0), manifest["identity"]["config"]["steps"]
    found = _convergence(manifest)
    cards = []
    for file in proofs[:1]:
        if file.estimate and file.estimate.kept:
            kept = file.estimate.kept
            cards.append(Card(kept.label, kept.value, kept.note, file.estimate.tone))
        cards.append(Card("integer file", file.size, file.facts[0].value))
        if file.targets:
            whole = sum(target.tone == "good" for target in file.targets)
            tone = "good" if whole == len(file.targets) else "warn"
            cards.append(
                Card("targets take it whole", f"{whole} of {len(file.targets)}", tone=tone)
            )
    if found is not None:
        start = text.number(_gap_at_start(manifest))
        known = f"{start} at the start; below {GOOD_GAP:g} is good"
        if away := len(found.layers_away):
            known += f"; {away} layer{'s stay' if away > 1 else ' stays'} away"
        gap = text.number(found.mean_gap)
        cards.append(Card("mean gap of statistics", gap, known, _TONES[found.level]))
    else:
        cards.append(Card("evidence", "no statistics", "image priors and stretched outputs"))
    count, used = _count(manifest), proofs[0].calibrated if proofs else 0
    data = f"{real} of them real" if real else "no data was used"
    if 0 < used < count and not real:  # the others of the set judge the file
        count, data = used, f"{count - used} more judge the file; {data}"
    cards += [
        Card("calibration images", text.number(count), data),
        Card("generation took", text.duration(float(manifest["seconds"])), f"{int(steps):,} steps"),
    ]
    return tuple(cards)


def _ends(entry: dict[str, Any]) -> tuple[str, str]:
    """The ends of a valid range in words: one number, or one per channel."""

    def words(end: str) -> str:
        return ", ".join(text.number(float(value)) for value in np.ravel(entry[end]))

    return words("low"), words("high")


def _images(
    folder: pathlib.Path, manifest: dict[str, Any]
) -> tuple[tuple[Gallery, ...], tuple[charts.Chart, ...], str]:
    """Pictures and histograms of every input, or why there are none."""
    galleries, histograms = [], []
    files, ranges = manifest["files"], manifest["input_range"]
    first_axis = manifest.get("channels_first") or [False] * len(files)
    kinds = manifest.get("input_kind")
    if not isinstance(kinds, list) or len(kinds) != len(files):  # of an older or a changed file
        kinds = [""] * len(files)
    for (name, file), entry, moved, told in zip(
        files.items(), ranges, first_axis, kinds, strict=True
    ):
        path = folder / pathlib.PurePath(file).name
        if not path.is_file():
            return (), (), f"{path.name} is not in this folder, so there are no pictures of it."
        images = read_npy(path)
        images = np.moveaxis(images, 1, -1) if moved else images
        low, high = (np.asarray(entry[end], np.float64) for end in ("low", "high"))
        low, high = (bound if bound.size > 1 else bound.reshape(()) for bound in (low, high))
        shown = str(name) if len(files) > 1 else ""
        kind, words = pictures.kind_told(str(told), images.shape[1:]), _ends(entry)
        ends = _colour_ends(images) if kind != "image" and low.ndim == 0 else None
        drawn = pictures.gallery(
            images,
            low=ends[0] if ends else low,
            high=ends[1] if ends else high,
            ends=(f"≤ {text.number(ends[0])}", f"≥ {text.number(ends[1])}") if ends else words,
            kind=kind,
        )
        galleries.append(Gallery(shown, drawn))
        title = f"Values of input {shown}" if shown else "Input values in the valid range"
        histograms.append(charts.histogram(images, low=low, high=high, title=title))
    return tuple(galleries), tuple(histograms), ""


def _colour_ends(images: np.ndarray) -> tuple[float, float] | None:
    """Values that the lowest and the highest colour of a map stand for, within which nine of ten
    lie: a band far stronger than the others would leave these one colour. None of one value.
    """
    low, high = map(float, np.nanpercentile(images, (5, 95)))
    return (low, high) if low < high else None


def _charts(manifest: dict[str, Any], metrics: list[dict[str, Any]]) -> tuple[charts.Chart, ...]:
    made = []
    if len(metrics) > 1:  # a single point is no curve
        made.append(
            charts.curves(
                metrics,
                {
                    **({"bn": "BN statistics loss"} if _has_statistics(manifest) else {}),
                    "prior": "image prior",
                },
                title="Losses",
                caption="Normal: the losses fall steeply at first and are flat at the end. A curve "
                "that still falls at the last step asks for more steps.",
                ylabel="loss",
                logarithmic=True,
            )
        )
        keys = [key for key in metrics[-1] if key.startswith("spread/")]
        if keys:
            rest = f" {len(keys) - 3} more heads are not drawn." if len(keys) > 3 else ""
            made.append(
                charts.curves(
                    metrics,
                    {key: key.removeprefix("spread/") for key in keys},
                    title="Output stretching",
                    caption="Highest minus lowest logit, mean over the images. Normal: it rises "
                    f"and then holds its limit.{rest}",
                    ylabel="logit range",
                    logarithmic=False,
                )
            )
    if _has_statistics(manifest):
        made.append(
            charts.gaps(
                manifest["gap_start"],
                manifest["gap_end"],
                caption="How far the images' pooled statistics are from the running statistics, in "
                "squared standard deviations. Normal: every layer falls; 0 means equal.",
            )
        )
    return tuple(made)


def _layer_gaps(manifest: dict[str, Any]) -> tuple[LayerGap, ...]:
    start = manifest["gap_start"]
    return tuple(
        LayerGap(
            str(name),
            text.number(float(start[name])) if name in start else "–",
            text.number(float(gap)),
        )
        for name, gap in manifest["gap_end"].items()
    )


def _facts(manifest: dict[str, Any]) -> tuple[Fact, ...]:
    hashes = manifest["images_sha256"]
    hashes = hashes if isinstance(hashes, dict) else {"images": hashes}
    ranges = "; ".join(
        "{} to {}, from {}".format(*_ends(entry), entry["found"])
        for entry in manifest["input_range"]
    )
    stretching = ", ".join(
        f"{name}: weight {text.number(float(value))}" for name, value in manifest["lambda"].items()
    )
    unmatched = manifest["unmatched_layers"]
    facts = [
        Fact("model", str(manifest["model"])),
        Fact("finished", str(manifest.get("finished", "not stored"))),
        Fact("machine", str(manifest.get("machine", "not stored"))),
        Fact("versions", ", ".join(f"{k} {v}" for k, v in manifest["versions"].items())),
        Fact("seed", str(manifest["seed"])),
        Fact("evidence", _evidence(manifest) or "not stored"),
        Fact("input range", ranges),
        Fact("augmentation", "; ".join(map(str, manifest["augmentation"]))),
        Fact("output stretching", stretching or "off"),
        Fact("layers without statistics", ", ".join(map(str, unmatched)) or "none"),
        Fact("sha256 of the model", str(manifest["identity"]["model_sha256"]), is_code=True),
        *(Fact(f"sha256 of {k}", str(digest), is_code=True) for k, digest in hashes.items()),
    ]
    if "auto" in manifest:
        facts.insert(4, Fact("why this many images and steps", str(manifest["auto"]["why"])))
    return tuple(facts)


def _limits(manifest: dict[str, Any], files: tuple[IntegerFile, ...]) -> tuple[str, ...]:
    aim = "match statistics" if _has_statistics(manifest) else "stretch the model's outputs"
    limits = [
        f"The images {aim}. They need not look like real data, and accuracy cannot be measured on "
        "them: they have no labels.",
    ]
    if any(file.estimate for file in files):
        limits.append(
            "Agreement is an estimate of how often the integer file gives the float model's class. "
            "It does not say how good the float model is."
        )
    if any(file.targets for file in files):
        limits.append(
            "Latencies hold for the machine that measured them. Estimates by a compiler or a "
            "static check are no measurement on a device."
        )
    if manifest.get("real_images", 0):
        limits.append(
            f"{manifest['real_images']} real images took part and are among the images here: "
            "treat this page and images.npy as data."
        )
    return tuple(limits)


def _links(
    folder: pathlib.Path, manifest: dict[str, Any], proofs: list[IntegerFile]
) -> tuple[Link, ...]:
    beside = {
        **{str(file): "calibration images, float32" for file in manifest["files"].values()},
        "manifest.json": "how they were made",
        "metrics.jsonl": "losses by step",
        "preview.png": "the images as one picture",
    }
    above: dict[str, str] = {}
    for file in proofs:
        proof = str(pathlib.PurePath(file.name).with_suffix(".json"))
        (above if file.above else beside).update({file.name: "integer file", proof: "its proof"})
    return tuple(
        Link(name, urllib.parse.quote(f"{place}/{name}"), what)
        for place, known in ((".", beside), ("..", above))
        for name, what in known.items()
        if (folder.resolve() / place / name).is_file() or name == "manifest.json"
    )
