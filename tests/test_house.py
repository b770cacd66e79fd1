"""House rules that a reader relies on: what pure functions import, how options are given, and what
an import costs.
"""

import ast
import pathlib
import re
import subprocess
import sys

import pytest
from imports import circles, graph, is_command

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGES = ("dgh_tf", "tflite_export", "benchmarks")
# Rooms of functions of tensors and arrays alone: no files, flags, printing or Keras objects
PURE_ROOMS = ("dgh_tf/ops", "dgh_tf/models/tflite", "tflite_export/simulation")
POSITIONAL = {  # options that everyone gives by position
    "generate_images": "its settings, as keras.Model.fit takes its data",
    "quantize": "the images, as converters take them",
    "input_shapes": "the images, of which a model's open sides are read",
    "quiet_tensorflow": "its one switch",
}
UNDOCUMENTED = ("main", "define_flags")  # of commands, whose file says what they do
FORBIDDEN = {
    "os",
    "pathlib",
    "json",
    "absl",
    "keras",
    "tf_keras",
    "keras_cv",
    "sys",
    "io",
    "shutil",
    "subprocess",
    "tempfile",
    "logging",
}
FILES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


PURE = [path for room in PURE_ROOMS for path in sorted((ROOT / room).rglob("*.py"))]


def name_of(path):
    return str(path.relative_to(ROOT))


def imported(tree):
    """Top-level names of every module imported anywhere in the file, but for type checkers only."""
    skipped = {
        id(node)
        for test in ast.walk(tree)
        if isinstance(test, ast.If) and "TYPE_CHECKING" in ast.unparse(test.test)
        for node in ast.walk(test)
    }
    for node in ast.walk(tree):
        if id(node) not in skipped and isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif id(node) not in skipped and isinstance(node, ast.ImportFrom):
            yield node.module.split(".")[0]


def public_functions(path):
    """Functions at the top of a file whose names do not begin with an underscore."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            yield node


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_every_file_and_public_function_says_what_it_is(path):
    text = ast.get_docstring(ast.parse(path.read_text()))
    assert text and text.split("\n\n")[0].rstrip()[-1] in ".!:", "first paragraph: sentences"
    for node in public_functions(path):
        assert ast.get_docstring(node) or node.name in UNDOCUMENTED, node.name


def test_arguments_are_described_in_the_form_that_ruff_checks():
    """A section `Args: x: what it is.` on one line is none to ruff, which then misses arguments."""
    one_line = re.compile(r"^ *Args: *\S.*", re.MULTILINE)
    found = {name_of(path): one_line.findall(path.read_text()) for path in FILES}
    assert not {name: lines for name, lines in found.items() if lines}


def exists(dotted):
    """Whether a dotted name leads to a folder, a file, or a name that its file holds."""
    parts = dotted.split(".")
    for count in range(len(parts), 0, -1):
        room, rest = ROOT.joinpath(*parts[:count]), parts[count:]
        file = room / "__init__.py" if room.is_dir() else room.with_suffix(".py")
        if file.is_file():
            return not rest or re.search(rf"\b{rest[0]}\b", file.read_text()) is not None
    return False


def test_names_in_comments_docstrings_and_messages_lead_somewhere():
    """Files move; the prose that names them must follow."""
    assert exists("dgh_tf.models.network.Network") and not exists("dgh_tf.network.Network")
    named = re.compile(rf"\b(?:{'|'.join(PACKAGES)})(?:\.[A-Za-z_]\w*)+")
    found = {(name_of(path), name) for path in FILES for name in named.findall(path.read_text())}
    assert len(found) > 500 and not [each for each in sorted(found) if not exists(each[1])]


def test_rooms_of_pure_functions_hold_files():
    assert {"losses", "moments", "radam", "canvas", "ranges"} <= {path.stem for path in PURE}


@pytest.mark.parametrize("path", PURE, ids=name_of)
def test_pure_rooms_touch_neither_files_nor_flags_nor_keras(path):
    tree = ast.parse(path.read_text())
    assert not FORBIDDEN & set(imported(tree))
    calls = {
        node.func.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    assert not calls & {"open", "print", "input", "exec", "eval"}


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_options_are_keyword_only(path):
    """An option is a parameter with a default: given by position, its meaning cannot be read at the
    call.
    """
    for node in public_functions(path):
        assert not node.args.defaults or node.name in POSITIONAL, ast.unparse(node.args)


@pytest.mark.parametrize("path", FILES + sorted((ROOT / "tests").rglob("*.py")), ids=name_of)
def test_files_and_functions_can_be_read_in_one_sitting(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 520
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            # without signature and docstring, which grow with the options
            code = node.body[1:] if ast.get_docstring(node) else node.body
            assert not code or node.end_lineno - code[0].lineno < 80, node.name


# Rooms from the ground up: a file may import from rooms of its own level (of another one only where
# that makes no circle) and from those below.
FLOORS = (
    ("dgh_tf.config", "dgh_tf.common"),
    ("dgh_tf.ops",),
    ("dgh_tf.models",),
    ("dgh_tf.input_range",),
    ("dgh_tf.generation",),
    ("dgh_tf.run", "dgh_tf.report", "dgh_tf.demo", "dgh_tf.calibration_sets"),
    ("dgh_tf",),  # the package's own names, and the command generate
    ("tflite_export",),
    ("benchmarks",),
)
EXPORT_MAY_IMPORT = ("dgh_tf.common", "dgh_tf.models", "tflite_export")


def is_within(module, room):
    return module == room or module.startswith(f"{room}.")


def floor(module):
    """The number of the floor that holds the module: that of the longest matching room."""
    floors = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}
    return floors[max((room for room in floors if is_within(module, room)), key=len)]


def test_imports_make_no_circle():
    assert circles(graph()) == []


def test_imports_point_to_the_same_floor_or_down():
    edges = graph()
    upward = [(m, t) for m, targets in edges.items() for t in targets if floor(t) > floor(m)]
    assert upward == []
    export = [
        (m, t)
        for m, targets in edges.items()
        for t in targets
        if is_within(m, "tflite_export")
        and t != "dgh_tf"  # its public names
        and not any(is_within(t, r) for r in EXPORT_MAY_IMPORT)
    ]
    assert export == []


def test_commands_are_imported_by_nobody():
    """What two commands need stands in a file below both. Importing one would define its flags."""
    edges = graph()
    commands = {module for module in edges if is_command(module)}
    assert {"dgh_tf.generate", "tflite_export.convert", "benchmarks.suite.__main__"} <= commands
    assert not [(m, t) for m, targets in edges.items() for t in targets if t in commands]


def test_the_graph_shows_circles_and_every_way_to_import():
    edges = {"a": ["b"], "b": ["c"], "c": ["a", "d"], "d": ["e"], "e": ["f"], "f": ["e"], "g": []}
    assert sorted(circles(edges)) == [["a", "b", "c"], ["e", "f"]]
    drawn = graph()
    assert "dgh_tf.models.loading" in drawn["dgh_tf.generate"]  # inside a function
    assert "dgh_tf.ops.canvas" in drawn["dgh_tf.generation.inputs"]  # from dgh_tf.ops import canvas
    assert floor("dgh_tf.ops.canvas") < floor("dgh_tf.generation.update") < floor("dgh_tf.generate")


@pytest.mark.parametrize("package", [*PACKAGES, "dgh_tf.generate", "tflite_export.convert"])
def test_importing_a_package_starts_no_tensorflow(package):
    """TensorFlow takes seconds to import and prints; --help and a wrong flag must not wait
    for it.
    """
    code = f"import sys, {package}; print(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    loaded = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stdout.split()
    assert package.split(".")[0] in loaded and not {
        "tensorflow",
        "keras",
        "tf_keras",
        "keras_cv",
        "matplotlib",
    } & set(loaded)


def test_what_a_program_imports_defines_no_flags_of_its_own():
    """absl refuses a flag that is defined twice, and a program may well have a --verbose or --seed
    of its own.
    """
    code = (
        "import dgh_tf, tflite_export\nfrom absl import flags\n"
        "for package in (dgh_tf, tflite_export):\n    for name in package.__all__: "
        "getattr(package, name)\n"
        "import tflite_export.quantization, tflite_export.targets.report, "
        "tflite_export.quality.accuracy_estimate, benchmarks.measure.evaluation\n"
        "print(*flags.FLAGS.flags_by_module_dict())"
    )
    homes = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    ).stdout.split()
    assert "absl.logging" in homes and not [
        home for home in homes if home.split(".")[0] in PACKAGES
    ]


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_flags_are_defined_by_a_start_never_by_an_import(path):
    at_import = [
        ast.unparse(node)
        for node in ast.parse(path.read_text()).body
        if not isinstance(node, (ast.FunctionDef, ast.ClassDef))
    ]
    assert not [
        text for text in at_import if "flags.DEFINE" in text or text.startswith("define_flags")
    ]


@pytest.mark.parametrize("path", sorted((ROOT / "tests").rglob("*.py")), ids=name_of)
def test_helpers_of_tests_have_one_name(path):
    """Imported as tests.commands and as commands a module would be there twice, each with a memory
    of its own of which flags are the console's.
    """
    assert "tests" not in imported(ast.parse(path.read_text()))


def test_public_names_of_the_package_exist():
    import dgh_tf

    for name in dgh_tf.__all__:
        assert callable(getattr(dgh_tf, name))
    with pytest.raises(AttributeError, match="no_such_name"):
        dgh_tf.no_such_name  # noqa: B018
