"""What goes beside F.tflite: sources for TFLM compiled against TFLM, Vela's files, test vectors,
and advice in words.
"""

import hashlib
import json
import os
import pathlib
import re
import subprocess

import commands
import keras
import numpy as np
import pytest
import test_targets
import tiny_models

from dgh_tf.common.subsets import spread
from dgh_tf.models.tflite.model import read_model
from tflite_export import to_float_tflite, to_tflite
from tflite_export.firmware import companions, sources, vectors
from tflite_export.quantization import quantize
from tflite_export.targets import advice, report, tflm, vela
from tflite_export.tflite.interpreter import LiteRTInterpreter, MissingKernelError

# From micro_mutable_op_resolver.h of tensorflow/tflite-micro, by hand
METHODS = {
    "ADD": "AddAdd", "ADD_N": "AddAddN", "ARG_MAX": "AddArgMax",
    "AVERAGE_POOL_2D": "AddAveragePool2D", "BATCH_MATMUL": "AddBatchMatMul",
    "BATCH_TO_SPACE_ND": "AddBatchToSpaceNd", "CALL_ONCE": "AddCallOnce",
    "CONCATENATION": "AddConcatenation", "CONV_2D": "AddConv2D", "CUMSUM": "AddCumSum",
    "DEPTHWISE_CONV_2D": "AddDepthwiseConv2D", "FULLY_CONNECTED": "AddFullyConnected",
    "HARD_SWISH": "AddHardSwish", "L2_NORMALIZATION": "AddL2Normalization",
    "L2_POOL_2D": "AddL2Pool2D", "LOG_SOFTMAX": "AddLogSoftmax", "MAX_POOL_2D": "AddMaxPool2D",
    "MEAN": "AddMean", "MIRROR_PAD": "AddMirrorPad", "PADV2": "AddPadV2", "RELU6": "AddRelu6",
    "RESIZE_NEAREST_NEIGHBOR": "AddResizeNearestNeighbor", "SELECT_V2": "AddSelectV2",
    "SOFTMAX": "AddSoftmax", "SPLIT_V": "AddSplitV", "SVDF": "AddSvdf",
    "TRANSPOSE_CONV": "AddTransposeConv",
    "UNIDIRECTIONAL_SEQUENCE_LSTM": "AddUnidirectionalSequenceLSTM",
}  # fmt: skip


def convolutional(*, dense=False):
    """A classifier of 8 x 8 x 3, whose head is a convolution or a dense layer, and images."""
    import keras

    inputs = keras.Input((8, 8, 3), name="image")
    x = keras.layers.Conv2D(6, 3, activation="relu", name="stem")(inputs)
    x = keras.layers.DepthwiseConv2D(3, padding="same", name="deep")(x)
    if dense:
        x = keras.layers.Dense(5, name="head")(keras.layers.GlobalAveragePooling2D()(x))
    else:
        x = keras.layers.AveragePooling2D(6)(keras.layers.Conv2D(5, 1, name="head")(x))
        x = keras.layers.Flatten()(x)
    model = keras.Model(inputs, x)
    rng = np.random.default_rng(1)
    model.set_weights([rng.normal(0, 0.5, w.shape).astype("f4") for w in model.get_weights()])
    return model, tiny_models.images(shape=(8, 8, 3))


@pytest.fixture(scope="module")
def made():
    """(int8 file, images) of the classifier whose head is a convolution."""
    model, images = convolutional()
    return to_tflite(model, images), images


def sources_of(tflite, images, stem="My net-2"):
    model = read_model(tflite)
    found = vectors.make_vectors(model, {model.input_names[0]: images})
    return sources.tflm_sources(
        model, found.first(3), stem=stem, arena_bytes=10_000, counted=True
    ), found  # fmt: skip


# ---- test vectors


def test_test_vectors_are_the_codes_of_images_and_of_their_outputs(made):
    tflite, images = made
    model = read_model(tflite)
    found = vectors.make_vectors(model, {"image": images}, cases=4)
    entry = model.tensors[model.inputs[0]]
    scale, zero = entry.scales[0], entry.zero_points[0]
    picked = images[spread(4, total=len(images))].astype(np.float64)
    wanted = np.clip(np.round(picked / scale) + zero, -128, 127)
    codes = found.inputs["image"]
    assert codes.dtype == np.int8 and codes.shape == (4, 1, 8, 8, 3) and found.cases == 4
    assert np.mean(codes[:, 0] == wanted) > 0.99 and np.abs(codes[:, 0] - wanted).max() <= 1
    assert found.kernels == "reference"
    (name,) = found.outputs
    # another interpreter of the same file, with other kernels
    from tflite_export import Runner

    output = model.tensors[model.outputs[0]]
    values = (found.outputs[name][:, 0].astype(float) - output.zero_points[0]) * output.scales[0]
    assert (
        np.abs(values - Runner(tflite).predict(picked.astype("f4"))).max() <= 2 * output.scales[0]
    )
    assert vectors.npz(found) == vectors.npz(found)


def test_large_inputs_give_fewer_cases(made):
    tflite, images = made
    before = vectors._MOST_BYTES
    try:
        vectors._MOST_BYTES = 3 * 8 * 8 * 3
        assert vectors.make_vectors(tflite, {"image": images}).cases == 3
        vectors._MOST_BYTES = 1
        assert vectors.make_vectors(tflite, {"image": images}).cases == 1
    finally:
        vectors._MOST_BYTES = before


def test_a_depthwise_layer_of_4_bits_says_which_kernels_run_it():
    """LiteRT's reference kernels refuse it: the vectors are those of the built-in ones, as told."""
    x = keras.Input((6, 6, 4), name="image")
    y = keras.layers.DepthwiseConv2D(3, activation="relu")(x)
    model = keras.Model(x, keras.layers.GlobalAveragePooling2D()(y))
    images = np.random.default_rng(0).uniform(-1, 1, (16, 6, 6, 4)).astype("f4")
    tflite = quantize(model, images, scheme="w4a8", algorithm="minmax").tflite
    with pytest.raises(MissingKernelError, match="DEPTHWISE_CONV_2D.*4-bit.*kernels='builtin'"):
        LiteRTInterpreter(tflite, kernels="reference")
    found = vectors.make_vectors(tflite, {"image": images}, cases=2)
    assert found.kernels == "builtin"
    built_in = LiteRTInterpreter(tflite, kernels="builtin")
    built_in.run({"image": found.inputs["image"][1]})
    (name,) = found.outputs
    np.testing.assert_array_equal(found.outputs[name][1], built_in.output(name))
    judged = report.Judged({"edgetpu": {"fully_mapped": False}}, {})
    made = companions.make_companions("net", tflite, {"image": images}, judged)
    assert made.remark.startswith("net.testvectors.npz: of LiteRT's built-in kernels")


# ---- sources


def test_resolver_methods_are_tflms():
    assert {kind: sources.add_call(kind) for kind in METHODS} == METHODS


def numbers(text, name):
    """The integers of a C++ array."""
    body = re.search(rf"\b{name}\[[^]]*\] = \{{(.*?)\}};", text, re.DOTALL)[1]
    return [int(each, 0) for each in re.findall(r"-?\b(?:0x[0-9a-f]+|\d+)\b", body)]


def test_sources_hold_the_file_its_scales_and_its_operators(made):
    tflite, images = made
    files, found = sources_of(tflite, images)
    assert list(files) == [f"My net-2{end}" for end in companions._SOURCES]
    header, data, golden, _ = (text.decode() for text in files.values())
    assert bytes(numbers(data, "kModel")) == tflite and "alignas(16)" in data
    model = read_model(tflite)
    entry, result = model.tensors[model.inputs[0]], model.tensors[model.outputs[0]]
    assert f"kModelBytes = {len(tflite)};" in header
    assert f"kInputZeroPoint[kInputs] = {{{entry.zero_points[0]}}};" in header
    told = float(re.search(r"kOutputScale\[kOutputs\] = \{(.*)f\};", header)[1])
    assert np.float32(told) == np.float32(result.scales[0])
    assert numbers(header, "kInputBytes") == [192] and numbers(header, "kOutputBytes") == [5]
    assert "kArenaBytes = 11264;" in header  # 11 KiB: 10 000 bytes and a tenth
    kinds = {operator.kind for operator in model.operators}
    assert set(re.findall(r"resolver\.(\w+)\(\)", header)) == {sources.add_call(k) for k in kinds}
    assert f"MicroMutableOpResolver<{len(kinds)}>" in header
    assert hashlib.sha256(tflite).hexdigest() in header and "namespace my_net_2_model" in header
    assert numbers(golden, "kIn2x0") == found.inputs["image"][2].ravel().tolist()
    assert numbers(golden, "kOut1x0") == next(iter(found.outputs.values()))[1].ravel().tolist()


@pytest.mark.parametrize(
    ("stem", "wanted"),
    [("net", "net"), ("7 seg", "model_7_seg"), ("_A--b_", "a_b"), ("日本", "model"), ("a/*", "a")],
)
def test_file_names_become_identifiers(stem, wanted):
    assert sources.identifier(stem) == wanted


def test_names_in_a_file_never_become_code():
    evil = 'x"; } int main() { return 0; } /*'
    shape = (1, 4)
    tflite = test_targets.handmade(
        [(evil, shape, "INT8", None), (evil + "2", shape, "INT8", None)], [("RELU", [0], [1], None)]
    )
    files, _ = sources_of(tflite, np.zeros((3, 4), "f4"), stem="net")
    assert not any(b"return 0; } /*" in text for text in files.values())


# ---- against TFLM itself


def compiled(folder, files):
    """Exit code and lines of the golden test, built against TFLM.

    XMOS's wheel holds TFLM's headers and TFLM as a library, and TensorFlow's the headers of
    gemmlowp that those need. DGH_TFLM names the folder where xmos-ai-tools was unpacked.
    """
    home = pathlib.Path(os.environ.get("DGH_TFLM", "no such folder")) / "xmos_ai_tools"
    if not home.exists():
        pytest.skip("set DGH_TFLM to a folder with the unpacked wheel of xmos-ai-tools")
    import tensorflow as tf

    for name, text in files.items():
        (folder / name).write_bytes(text)
    library = home / "xinterpreters" / "libs" / "linux"
    gemmlowp = pathlib.Path(tf.sysconfig.get_include()) / "external" / "gemmlowp"
    subprocess.run(
        [
            "g++", "-std=c++17", "-Wall", "-Wextra", "-Werror", "-O1",
            "-Dtflite=tflite_micro",  # that build's name for the namespace
            "-isystem", home / "runtime" / "include", "-isystem", gemmlowp, "-I", folder,
            *(folder / name for name in files if name.endswith(".cc")),
            library / "xtflm_python.so", f"-Wl,-rpath,{library}", "-o", folder / "golden",
        ],
        check=True, timeout=300,
    )  # fmt: skip
    done = subprocess.run([folder / "golden"], capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout.splitlines()


@pytest.mark.slow
def test_the_golden_test_passes_in_tflm(made, tmp_path):
    files, found = sources_of(*made, stem="net")
    code, lines = compiled(tmp_path, files)
    assert code == 0 and lines[-1] == "passed", lines
    assert len([line for line in lines if line.startswith("case")]) == 3


@pytest.mark.slow
def test_the_golden_test_fails_where_outputs_differ(made, tmp_path):
    tflite, images = made
    model = read_model(tflite)
    found = vectors.make_vectors(model, {"image": images}, cases=2)
    next(iter(found.outputs.values()))[1, 0, 3] ^= 8  # one code of one case, 8 steps off
    files = sources.tflm_sources(model, found, stem="net", arena_bytes=10_000, counted=False)
    code, lines = compiled(tmp_path, files)
    assert code == 1 and lines[-1] == "FAILED" and "difference 8 steps" in lines[-2]


@pytest.mark.parametrize("dense", [False, True])
def test_tflm_gives_the_vectors_outputs_to_the_bit(dense):
    """TFLM's kernels are LiteRT's reference kernels, from which the vectors come."""
    pytest.importorskip("tflite_micro")
    from tflite_micro import runtime

    model, images = convolutional(dense=dense)
    tflite = to_tflite(model, images)
    found = vectors.make_vectors(tflite, {"image": images})
    interpreter = runtime.Interpreter.from_bytes(tflite, arena_size=2**20)
    for codes, wanted in zip(found.inputs["image"], *found.outputs.values(), strict=True):
        interpreter.set_input(codes, 0)
        interpreter.invoke()
        assert np.abs(interpreter.get_output(0).astype(int) - wanted).max() <= 1


# ---- Vela


OWN = """
[System_Config.Mine]
core_clock=100e6
axi0_port=Sram
axi1_port=OffChipFlash
Sram_clock_scale=1.0
OffChipFlash_clock_scale=0.125
[Memory_Mode.Only]
const_mem_area=Axi1
arena_mem_area=Axi0
cache_mem_area=Axi0
"""


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"system": "Mine"}, "--vela_system and --vela_memory"),
        ({"config": "CONFIG"}, "needs both"),
        ({"config": "CONFIG", "system": "Thine", "memory": "Only"}, "expected one of Mine"),
        ({"config": "CONFIG", "system": "Mine", "memory": "Shared_Sram"}, "expected one of Only"),
        ({"config": "gone.ini", "system": "Mine", "memory": "Only"}, "cannot be read"),
    ],
)
def test_a_chip_that_is_not_there_is_refused(tmp_path, monkeypatch, given, said):
    (tmp_path / "own.ini").write_text(OWN)
    monkeypatch.setattr(vela, "check_installed", lambda: None)
    given = {k: str(tmp_path / "own.ini") if v == "CONFIG" else v for k, v in given.items()}
    with pytest.raises(ValueError, match=re.escape(said)):
        vela.find_system(**given)


def test_a_chip_of_ones_own_is_found(tmp_path, monkeypatch):
    (tmp_path / "own.ini").write_text(OWN)
    monkeypatch.setattr(vela, "check_installed", lambda: None)
    monkeypatch.chdir(tmp_path)
    found = vela.find_system(config="own.ini", system="Mine", memory="Only")
    assert found == vela.System("Mine", "Only", str(tmp_path / "own.ini"))
    assert vela.find_system() is None


BOTH = ["ethos-u55-64", "cpu", "ethos-u65-256"]


@pytest.mark.parametrize(
    ("targets", "named", "wanted"),
    [
        (["ethos-u55-64", "ethos-u55-128", "cpu"], ("Mine", "Only"),
         {"ethos-u55-64": ("Mine", "Only"), "ethos-u55-128": ("Mine", "Only")}),
        (BOTH, ("ethos-u55-64:Mine,ethos-u65-256:Other", "Only"),
         {"ethos-u55-64": ("Mine", "Only"), "ethos-u65-256": ("Other", "Only")}),
        (BOTH, ("ethos-u65-256:Other", "ethos-u65-256:Most"), {"ethos-u65-256": ("Other", "Most")}),
        (BOTH, ("ethos-u55-64:Mine, ethos-u65-256:Other", "ethos-u55-64:Most,ethos-u65-256:Only"),
         {"ethos-u55-64": ("Mine", "Most"), "ethos-u65-256": ("Other", "Only")}),
    ],
)  # fmt: skip
def test_each_target_has_a_chip_of_its_own(tmp_path, monkeypatch, targets, named, wanted):
    own = tmp_path / "own.ini"
    own.write_text(OWN + "[System_Config.Other]\n[Memory_Mode.Most]\n")
    monkeypatch.setattr(vela, "check_installed", lambda: None)
    found = vela.find_systems(targets, config=str(own), system=named[0], memory=named[1])
    assert {name: (chip.system, chip.memory) for name, chip in found.items()} == wanted
    assert {chip.config for chip in found.values()} == {str(own)}
    assert vela.find_systems(targets) == {}


@pytest.mark.parametrize(
    ("system", "memory", "said"),
    [
        ("Mine", "Only", "of several families.*ethos-u55-64:NAME,ethos-u65-256:NAME"),
        ("ethos-u55-64:Mine,Mine", "Only", "Mine is not TARGET:NAME"),
        ("ethos-u55-64:Mine,ethos-u55-64:Mine", "Only", "each once"),
        ("ethos-u85-512:Mine", "Only", "a target that was asked for"),
        ("ethos-u55-64:Mine,ethos-u65-256:Mine", "ethos-u55-64:Only", "leaves out ethos-u65-256"),
        ("ethos-u55-64:Thine", "Only", "expected one of Mine"),
        ("ethos-u55-64:", "Only", "is not TARGET:NAME"),
    ],
)
def test_chips_that_fit_no_target_are_refused_in_one_line(
    tmp_path, monkeypatch, system, memory, said
):
    own = tmp_path / "own.ini"
    own.write_text(OWN)
    monkeypatch.setattr(vela, "check_installed", lambda: None)
    with pytest.raises(ValueError, match=said) as told:
        vela.find_systems(BOTH, config=str(own), system=system, memory=memory)
    assert "\n" not in str(told.value)


def test_vela_compiles_for_ones_own_chip_and_its_file_is_kept(made, tmp_path):
    pytest.importorskip("ethosu.vela")
    (tmp_path / "own.ini").write_text(OWN)
    system = vela.find_system(config=str(tmp_path / "own.ini"), system="Mine", memory="Only")
    own = vela.compile_for(read_model(made[0]), target="ethos-u55-64", system=system)
    assert own.verdict["figures"]["clock_mhz"] == 100.0 and "Mine, Only" in own.verdict["how"]
    compiled_model = read_model(own.files[".ethos-u55-64.tflite"])
    assert [operator.kind for operator in compiled_model.operators] == ["CUSTOM:ethos-u"]
    assert own.files[".ethos-u55-64.csv"].startswith(b"experiment")


def test_every_accelerator_that_vela_knows_is_a_target():
    pytest.importorskip("ethosu.vela")
    from ethosu.vela.architecture_features import Accelerator

    assert set(vela.CONFIGURATIONS) == set(Accelerator.member_list())


# ---- advice


@pytest.mark.parametrize(
    ("tensor", "layer"),
    [
        ("net_1/act_3_1/Elu", "act_3"),
        ("net_1/act_3_1/Elu;net_1/conv_1/BiasAdd", "act_3"),
        ("net_1/inner_1/conv_1/Conv2D", "conv"),
        ("StatefulPartitionedCall:0", None),
        ("", None),
    ],
)
def test_a_tensor_leads_to_its_layer(tensor, layer):
    assert advice.layer_of(tensor, ["net", "inner", "conv", "act_3"][1:]) == layer


def test_an_operator_that_is_not_mapped_is_told_with_layer_and_replacement():
    model = test_targets.with_activation("leaky_relu")
    images = tiny_models.images(shape=(8, 8, 3))
    tflite = to_tflite(model, images)
    names = advice.layer_names(model)
    assert "odd_layer" in names
    judged = report.judge(
        tflite, targets=["edgetpu"], float_tflite=to_float_tflite(model), layers=names
    )
    first, second, *_ = judged.verdicts["edgetpu"]["fallback"]
    assert (first["operator"], first["layer"]) == ("LEAKY_RELU", "odd_layer")
    assert first["do"] == "In layer odd_layer use ReLU or ReLU6."
    assert second["do"].startswith("Mend the LEAKY_RELU before it")
    assert report.remarks("edgetpu", judged.verdicts["edgetpu"])[0].endswith(first["do"])


def test_layers_of_nested_models_are_known():
    import keras

    inner = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="deep")], name="inner")
    assert advice.layer_names(keras.Sequential([keras.Input((4,)), inner])) == ["inner", "deep"]


# ---- the command


def test_convert_prints_one_table_and_leaves_a_whole_set(tmp_path):
    model, images = convolutional()
    model.save(tmp_path / "m.keras")
    np.save(tmp_path / "c.npy", images)
    (tmp_path / "net.ethos-u85-256.csv").write_text("old")
    code, out, err = commands.call(
        "tflite_export.convert", f"--model={tmp_path}/m.keras", f"--calibration={tmp_path}/c.npy",
        f"--output={tmp_path}/net.tflite", "--target=tflm,edgetpu,cpu", "--algorithm=minmax",
    )  # fmt: skip
    assert code == 0, err
    lines = out.splitlines()
    top = next(i for i, line in enumerate(lines) if line.startswith("target "))
    assert lines[top].split() == ["target", "mapped", "speed", "memory", "file"]
    assert lines[top + 1].startswith("tflm") and lines[top + 1].endswith("net_model.cc")
    assert lines[top + 2].endswith("net.tflite by edgetpu_compiler")
    assert "warning: net.ethos-u85-256.csv is of an earlier conversion, not of this file." in lines
    told = json.loads((tmp_path / "net.json").read_text())
    assert set(told["files"]) == {f"net{end}" for end in companions._SOURCES} | {
        "net.testvectors.npz"
    }
    for name, sha256 in told["files"].items():
        assert hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() == sha256
    with np.load(tmp_path / "net.testvectors.npz") as file:
        assert len(file["input/image"]) == told["test_vectors"]["cases"] == 8


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--target=cpu"], "is a folder"),
        (["--target=cpu", "--vela_config=own.ini", "--vela_system=Mine", "--vela_memory=Only"],
         "--target names none"),
        (["--vela_system=Mine"], "Give both"),
    ],
)  # fmt: skip
def test_what_cannot_be_written_or_found_is_refused_before_work(
    tmp_path, options, said, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.testvectors.npz").mkdir()
    (tmp_path / "own.ini").write_text(OWN)
    monkeypatch.setattr(vela, "check_installed", lambda: None)
    code, out, err = commands.call(
        "tflite_export.convert", "--model=demo", f"--calibration={tmp_path}",
        f"--output={tmp_path}/net.tflite", *options,
    )  # fmt: skip
    assert code == 1 and not out and said in err and len(err.splitlines()) == 1


def test_sources_are_left_out_where_tflm_lacks_a_kernel():
    tflite = test_targets.one("GELU")
    judged = report.Judged({"tflm": tflm.report(read_model(tflite)) | {"fallback": [1]}}, {})
    relu, images = test_targets.one("RELU"), {"a": np.zeros((2, 8, 8, 4), "f4")}
    made = companions.make_companions("net", relu, images, judged)
    assert made.flash == {"tflm": "-"} and list(made.files) == ["net.testvectors.npz"]
