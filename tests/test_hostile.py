"""Values of flags that make no sense, at every command. Commands run in this process, through the
same flag parser and error guard as `python -m`; what is promised of each refusal is in hostile.py.
"""

import commands
import hostile_files
import pytest
from absl import flags
from hostile import REQUIRED, SEEN, TRAP, convert, refused, written
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

NUMBERS = ["x", "1.5.2", "", "0x", "1e", "--", "-1", "999999999999999999999999x", "١٢x", "None"]


def test_every_number_and_choice_of_every_command_refuses_nonsense(work):
    for command, good in REQUIRED.items():
        commands.ready(command)
        names = [flag.name for flag in flags.FLAGS.get_flags_for_module(command)]
        parsers = {name: flags.FLAGS[name].parser for name in names}
        for name, parser in parsers.items():
            values = {"int": NUMBERS, "float": NUMBERS[:6], "bool": ["maybe", "2", "yess"]}.get(
                parser.flag_type(), []
            )
            if isinstance(parser, flags.EnumParser):
                values = ["nonsense", "", "none,none"]
            if name == "seed" or getattr(parser, "lower_bound", 0) is None:
                values = [value for value in values if value != "-1"] + (
                    ["-1"] if name == "seed" else []
                )
            for value in values:
                refused(
                    work,
                    command,
                    *(f"--{k}={v.format(w=work)}" for k, v in good.items()),
                    f"--{name}={value}",
                )


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    text=st.text(min_size=1, max_size=12).filter(
        lambda t: not t.strip().lstrip("+-").replace("_", "").isdigit()
    )
)
def test_no_text_passes_for_a_number(work, text):
    refused(work, "tflite_export.convert", *convert(work), f"--seed={text}")


@pytest.mark.parametrize("command", REQUIRED)
def test_unknown_flags_missing_flags_and_stray_words_are_refused(work, command):
    given = [f"--{k}={v.format(w=work)}" for k, v in REQUIRED[command].items()]
    refused(work, command, *given, "--nonsense=1", words="Unknown command line flag 'nonsense'")
    refused(work, command, *given, "stray", words="unexpected argument 'stray'", code=2)
    if command != "dgh_tf.generate":
        refused(work, command, words="is missing")


LONG = "a" * 300
CONVERT = {  # flag: its bad value and words that the refusal must have
    "model": [
        ("absent.keras", "No model at"),
        ("", "model"),
        ("keras:NoSuchNet", "has no model"),
        ("keras:", "has no model"),
        ("keras:__doc__", "has no model"),
        (LONG, ""),
        (".", ""),
        ("/dev/null", ""),
        ("bad\0name", ""),
    ],
    "calibration": [
        ("absent.npy", "There is no calibration data"),
        ("", ""),
        ("/dev/null", ""),
        (LONG + ".npy", ""),
        ("a\0.npy", ""),
    ],
    "output": [
        ("out.bin", "does not end in .tflite"),
        ("", "does not end in .tflite"),
        (".tflite", "does not end in"),
        ("no/such/folder/o.tflite", "does not exist"),
        ("/dev/null/o.tflite", ""),
        ("/proc/o.tflite", ""),
        (LONG + ".tflite", ""),
        ("o\0.tflite", ""),
    ],
    "preprocess": [("1", "not two numbers"), ("a,b", "not two numbers"), ("nan,nan", "")],
    "input_range": [
        ("1", "expected LOW,HIGH"),
        ("wide", "or one of byte, unit"),
        ("5,-5", "the smaller first"),
        ("0,255", "fills"),
        ("nan,nan", "two finite numbers"),
        ("inf,inf", ""),
        ("image:0,1;sound:0,1", "names sound"),
    ],
    "target": [("toaster", "names toaster; expected none"), ("none,tflm", "names none")],
    "require_full_mapping": [("true", "--target is none")],
}
TOGETHER = [
    ({"scheme": "w4a8", "target": "edgetpu"}, "takes 8 bits"),
    ({"scheme": "mixed", "target": "edgetpu"}, "takes 8 bits"),
    ({"max_kib": 9}, "max_kib is for scheme mixed"),
    ({"scheme": "mixed", "max_kib": 9, "min_agreement": 0.9}, "Give one of the two"),
    ({"scheme": "int16x8", "head": "logits"}, "--head=model"),
    ({"scheme": "int16x8", "algorithm": "reconstruction"}, "has no scheme int16x8"),
]
ALONE = [({flag: value}, words) for flag, pairs in CONVERT.items() for value, words in pairs]


@pytest.mark.parametrize(("changed", "words"), ALONE + TOGETHER, ids=str)
def test_convert_refuses_values_that_make_no_sense(work, changed, words):
    refused(work, "tflite_export.convert", *convert(work, **changed), words=words)


@pytest.mark.parametrize("name", hostile_files.LISTS)
def test_bad_lists_of_models_are_refused(work, name):
    path = written(work, "list.json", hostile_files.LISTS[name])
    refused(work, "benchmarks.suite", f"--models={path}", f"--output_dir={work}/suite_{len(SEEN)}")


YAML_BOMB = b"a: &a [x, x, x, x, x, x, x, x, x]\n" + b"".join(
    b"%c: &%c [%s]\n" % (n, n, b", ".join([b"*%c" % (n - 1)] * 9))
    for n in range(ord("b"), ord("j"))
)
YAML_LISTS = {
    "aliases that unpack to 10^8 values": YAML_BOMB + b"models: [{name: *i}]",
    "deep": b"[" * 100_000,
    "a date for a name": b"models: [{name: 2020-01-01, model: m, real: r, evaluation: e, task: t}]",
    "a number for a field": b"models: [{1: m, name: a}]",
    "a tag": b"models: !!python/name:os.system",
    "no text": b"\xff\xfe\xfd",
}


@pytest.mark.parametrize("name", YAML_LISTS)
def test_bad_yaml_lists_of_models_are_refused(work, name):
    path = written(work, "list.yaml", YAML_LISTS[name])
    refused(work, "benchmarks.suite", f"--models={path}", f"--output_dir={work}/suite_{len(SEEN)}")


def test_bad_arguments_of_the_suite_and_the_comparison(work):
    for value in ("x", "0", "-3", "8,8", "", "1.5"):
        refused(
            work,
            "benchmarks.suite",
            f"--output_dir={work}/suite",
            "--only=demo",
            f"--num_images={value}",
        )
    refused(
        work,
        "benchmarks.suite",
        f"--output_dir={work}/suite",
        "--only=nobody",
        words="not in the list",
    )
    refused(
        work,
        "benchmarks.suite",
        f"--output_dir={work}/suite",
        "--only=demo",
        "--schemes=int3",
        words="expected some of",
    )
    refused(
        work, "benchmarks.suite", f"--output_dir={work}/suite", "--only=demo", "--sources=dreams"
    )
    refused(
        work,
        "benchmarks.suite",
        f"--output_dir={work}/suite",
        "--models=absent.json",
        words="no such file",
    )
    written(
        work,
        "code.yaml",
        b"models: !!python/object/apply:os.system ['touch %s']" % str(TRAP).encode(),
    )
    refused(work, "benchmarks.suite", f"--output_dir={work}/suite", f"--models={work}/code.yaml")
    assert not TRAP.exists()
    data = [
        f"--model={work}/good.keras",
        f"--real={work}/good.npz",
        f"--evaluation={work}/good.npz",
        f"--output_dir={work}/bench",
    ]
    for value in ("dreams", "", "real,dreams"):
        refused(work, "benchmarks.calibration", *data, f"--sources={value}")
    for value in ("x", "1", "1,2,3", "nan,0", "imagenett", ""):
        refused(work, "benchmarks.calibration", *data, "--num_images=4", f"--preprocess={value}")
    for value in ("0,", "1,0", "nan,nan", "wide", "0,1,2"):
        refused(work, "benchmarks.calibration", *data, "--num_images=4", f"--input_range={value}")
    refused(
        work, "benchmarks.calibration", *data, "--num_images=5", words="fewer than --num_images"
    )
    for value in ("tfds:", "tfds:no_such_set", "tfds:no_such_set/train", str(work), "absent.json"):
        refused(work, "benchmarks.calibration", *data[:1], f"--real={value}", *data[2:])


def test_bad_arguments_of_the_low_bit_study_and_the_report(work):
    given = [f"--{k}={v.format(w=work)}" for k, v in REQUIRED["benchmarks.lowbit"].items()]
    for more in (
        "--settings=W9A8",
        "--settings=",
        "--settings=8",
        "--rules=best",
        "--rules=",
        "--sources=dreams",
    ):
        refused(work, "benchmarks.lowbit", *given, more)
    convergence = [
        f"--{k}={v.format(w=work)}" for k, v in REQUIRED["benchmarks.convergence"].items()
    ]
    for more in (
        "--recipes=theirs",
        "--recipes=",
        "--steps=0",
        "--steps=x",
        "--steps=",
        "--reference_steps=-1",
        "--evaluation=absent.npz",
        "--preprocess=x",
    ):
        refused(work, "benchmarks.convergence", *convergence, more)
    assert not (work / "low").exists()
    folder = work / "reported"
    folder.mkdir()
    refused(work, "dgh_tf.report", f"--output_dir={folder}", words="holds no finished run")
    for text in (
        b"{",
        b"5",
        b"[]",
        b"{}",
        bytes(range(256)),
        b'{"identity": {}, "images_sha256": "x"}',
    ):
        written(folder, "manifest.json", text)
        SEEN.add(("manifest of a report", text.decode("latin1")))
        refused(work, "dgh_tf.report", f"--output_dir={folder}", words=str(folder))


SETTINGS = {
    "learning_rate": ["nan", "inf", "-1", "0"],
    "bn_weight": ["-1", "nan"],
    "output_weight": ["inf"],
    "prior_weight": ["-0.5"],
    "std_weight": ["nan"],
    "stretch_limit": ["-2"],
    "num_images": ["0", "-5"],
    "batch_size": ["0"],
    "steps": ["0"],
    "seed": [str(2**31)],
    "schedule": ["linear", ""],
    "flip": ["sideways"],
    "start": ["dogs"],
    "strategy": ["many"],
    "image_size": ["x", "0,0", "8", "8,8,8"],
    "input_range": ["wide", "1,0", "nan,nan", "0", "0,inf"],
    "model": ["absent.keras", "keras:Nope", "", "/dev/null"],
}


@pytest.mark.parametrize("name", SETTINGS)
def test_generation_refuses_settings_that_make_no_sense(work, name):
    for value in SETTINGS[name]:
        given = {
            "model": work / "good.keras",
            "output_dir": work / "generated",
            "steps": 1,
            name: value,
        }
        refused(work, "dgh_tf.generate", *(f"--{k}={v}" for k, v in given.items()))
        assert not (work / "generated").exists()
