"""The benchmark on detectors: sets in COCO's format, what outputs are scored by, and the command
from end to end.
"""

import json
import os

import commands
import numpy as np
import pytest
import tiny_models as tiny
from PIL import Image

from benchmarks.data import coco, datasets
from benchmarks.measure.detection import mean_average_precision
from benchmarks.measure.evaluation import distances, float_outputs
from benchmarks.measure.scoring import scorer

SHAPE = (32, 32, 3)


def save_coco(folder, images, boxes, *, categories=(7, 3), within=""):
    """A set with one list of (category id, left, top, width, height) for each image."""
    (folder / within).mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / within / f"{i}.png")
    annotations = [
        {
            "image_id": 10 * n,
            "category_id": each[0],
            "bbox": list(each[1:]),
            "area": each[3] * each[4],
            "iscrowd": 0,
        }
        for n, some in enumerate(boxes)
        for each in some
    ]
    content = {
        "images": [
            {
                "id": 10 * n,
                "file_name": f"{n}.png",
                "width": image.shape[1],
                "height": image.shape[0],
            }
            for n, image in enumerate(images)
        ],
        "annotations": annotations,
        "categories": [{"id": number, "name": f"c{number}"} for number in categories],
    }
    (folder / "annotations.json").write_text(json.dumps(content))
    return folder


@pytest.fixture
def small_set(tmp_path):
    rng = np.random.default_rng(0)
    images = [
        rng.integers(0, 256, shape, np.uint8) for shape in ((32, 32, 3), (16, 64, 3), (8, 8, 3))
    ]
    boxes = [[(3, 1.0, 2.0, 10.0, 20.0), (7, 5.0, 5.0, 4.0, 4.0)], [(7, 10.0, 4.0, 20.0, 8.0)], []]
    return save_coco(tmp_path / "set", images, boxes), images


def test_coco_boxes_and_images_are_scaled_together_by_hand(small_set):
    folder, images = small_set
    x, truth = datasets.load(str(folder), role="real", input_shape=SHAPE)
    assert x.dtype == np.float32 and x.shape == (3, *SHAPE) and truth["boxes"].shape == (3, 2, 4)
    np.testing.assert_array_equal(x[0], images[0])  # the right size already
    np.testing.assert_array_equal(truth["boxes"][0], [[1, 2, 11, 22], [5, 5, 9, 9]])
    np.testing.assert_array_equal(
        truth["classes"], [[0, 1], [1, -1], [-1, -1]]
    )  # ids 3 and 7 in order
    # 16 x 64 becomes 8 x 32 and 24 rows of black: everything halved
    np.testing.assert_array_equal(truth["boxes"][1], [[5, 2, 15, 6], [-1] * 4])
    assert not x[1, 8:].any() and x[1, :8].any(axis=(1, 2)).all()
    np.testing.assert_array_equal(
        x[1, :8], Image.fromarray(images[1]).resize((32, 8), Image.Resampling.BILINEAR)
    )
    assert x[2].any(axis=2).all()  # a smaller square image is enlarged to all of it


def test_coco_reads_the_json_itself_images_beside_it_limits_and_crowds(small_set, tmp_path):
    folder, images = small_set
    path = (
        save_coco(tmp_path / "other", images, [[], [], [(3, 0, 0, 4, 4)]], within="images")
        / "annotations.json"
    )
    x, truth = coco.load(path, input_shape=SHAPE)
    np.testing.assert_array_equal(truth["boxes"][2], [[0, 0, 16, 16]])
    few, few_truth = coco.load(path, input_shape=SHAPE, limit=2)
    assert len(few) == len(few_truth["boxes"]) == 2 and few[0].tolist() in x.tolist()
    content = json.loads(path.read_text())
    content["annotations"][0]["iscrowd"] = 1
    path.write_text(json.dumps(content))
    assert (coco.load(path, input_shape=SHAPE)[1]["classes"] == -1).all()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda c: c.pop("categories"), "COCO's format.*categories"),
        (lambda c: c["annotations"][0].update(category_id=99), "99"),
        (lambda c: c["annotations"][0].update(bbox=[1, 2, 3]), "bbox"),
        (lambda c: c["annotations"][0].update(bbox="1234"), "bbox 1234"),
        (lambda c: c["annotations"][0].update(bbox=[[1], [2], [3], [4]]), "bbox"),
        (lambda c: c["annotations"][0].update(bbox=[4, 4, -2, 2]), "negative size"),
        (lambda c: c["annotations"][0].update(bbox=[1, 2, 3, 10**400]), "bbox"),
        (lambda c: c["annotations"][0].update(bbox=[1, 2, float("nan"), 4]), "bbox"),
        (lambda c: c["annotations"][0].update(image_id=[1]), "image_id"),
        (lambda c: c["images"][1].update(id=c["images"][0]["id"]), "images share an id"),
        (lambda c: c["categories"].append(c["categories"][0]), "categories share an id"),
        (lambda c: c["images"][0].update(file_name=5), "file_name 5"),
        (lambda c: c.update(images={"id": 1, "file_name": "a"}), "lists of objects"),
        (lambda c: c.update(annotations=["image_id category_id"]), "lists of objects"),
        (lambda c: c["images"].clear(), "lists no images"),
        (lambda c: c["images"][1].update(file_name="gone.png"), "gone.png is missing"),
        (
            lambda c: c["images"][1].update(file_name="annotations.json"),
            "cannot be read as an image",
        ),
    ],
)
def test_damaged_coco_sets_are_refused(small_set, change, text):
    folder, _ = small_set
    content = json.loads((folder / "annotations.json").read_text())
    change(content)
    (folder / "annotations.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=text):
        datasets.load(str(folder), role="evaluation", input_shape=SHAPE)


@pytest.mark.parametrize("drawn_on", ["the turned picture", "the stored picture"])
def test_coco_boxes_stay_on_what_they_were_drawn_on(tmp_path, drawn_on):
    """EXIF turns a stored 16 x 32 picture upright. The annotations' width and height say whether
    the boxes were drawn before or after that; the box is on the white corner in both cases.
    """
    stored = np.zeros((16, 32, 3), np.uint8)
    if drawn_on == "the stored picture":
        stored[:8, :4] = 255
    else:
        stored[:4, 24:] = 255  # orientation 8 turns the right end of the first row to the top left
    folder = save_coco(tmp_path / "set", [stored], [[(3, 0, 0, 4, 8)]])
    exif = Image.Exif()
    exif[274] = 8
    Image.fromarray(stored).save(folder / "0.png", exif=exif)
    content = json.loads((folder / "annotations.json").read_text())
    if drawn_on == "the turned picture":
        content["images"][0] |= {"width": 16, "height": 32}
        content["annotations"][0]["bbox"] = [0, 0, 4, 8]
    (folder / "annotations.json").write_text(json.dumps(content))
    x, truth = coco.load(folder, input_shape=SHAPE)
    left, top, right, bottom = truth["boxes"][0, 0].astype(int)
    assert x[0, top:bottom, left:right].min() == 255 and x.sum() == 255 * 3 * 4 * 8
    content["images"][0]["width"] = 99
    (folder / "annotations.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="the annotations state 99 x"):
        coco.load(folder, input_shape=SHAPE)


@pytest.mark.parametrize("data", [b"[" * 200_000, b"\xff", None], ids=["deep", "binary", "pipe"])
def test_a_coco_file_that_is_no_json_is_refused(data, tmp_path):
    path = tmp_path / "set.json"
    if data is None:
        os.mkfifo(path)
    else:
        path.write_bytes(data)
    with pytest.raises(ValueError, match="set.json"):
        coco.load(path, input_shape=SHAPE)


def test_coco_needs_a_fixed_size(small_set):
    with pytest.raises(ValueError, match="fixed height and width"):
        datasets.load(str(small_set[0]), role="evaluation", input_shape=(None, None, 3))


def test_distances_by_hand_per_head_and_over_all_values():
    reference = {
        "boxes": np.float32([[3.0, 4.0]]),
        "classes": np.float32(
            [
                [1.0],
            ]
        ),
    }
    outputs = {"boxes": np.float32([[3.0, 3.0]]), "classes": np.float32([[1.0]])}
    found = distances(reference, outputs)
    # squared errors 0, 1 | 0; signals 25 and 1
    expected = {
        "mse": 1 / 3,
        "sqnr_db": 10 * np.log10(26),
        "mse/boxes": 0.5,
        "sqnr_db/boxes": 10 * np.log10(25),
        "mse/classes": 0.0,
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    assert found["sqnr_db/classes"] is None
    assert set(distances({"output": np.ones((2, 3))}, {"output": np.zeros((2, 3))})) == {
        "mse",
        "sqnr_db",
    }


def test_outputs_decide_what_is_scored():
    x = tiny.images(3, shape=SHAPE)
    detector = tiny.silu_detector()
    heads = float_outputs(detector, x)
    assert {name: value.shape for name, value in heads.items()} == {
        f"head_{i}": (3, side, side, 9) for i, side in enumerate((8, 4, 2))
    }
    for (_, value), wanted in zip(sorted(heads.items()), detector(x), strict=True):
        np.testing.assert_allclose(value, wanted, atol=1e-5)
    for truth in (
        None,
        np.zeros(3, np.int64),
        {"boxes": np.zeros((3, 1, 4)), "classes": np.zeros((3, 1))},
    ):
        score, how = scorer(detector, x, truth, reference=heads)
        assert score(heads) == {} and "squared error and SQNR" in how and "head_0 [8, 8, 9]" in how
    classifier, x = tiny.softmax_head(), tiny.images(4)
    scores = float_outputs(classifier, x)
    chosen = scores["output"].argmax(axis=1)
    score, how = scorer(classifier, x, chosen, reference=scores)
    assert score(scores) == {"top1": 1.0, "agreement": 1.0} and "top-1" in how
    assert score({"output": -scores["output"]})["top1"] == 0.0
    with pytest.raises(ValueError, match="class index 5.*5 classes"):
        scorer(classifier, x, chosen + 5 - chosen.min(), reference=scores)


@pytest.mark.parametrize("box_format", ["xyxy", "xywh", "rel_yxyx"])
def test_boxes_in_any_format_of_the_detector_are_scored(box_format):
    """A detector whose answer is known: decode_predictions gives the true boxes in its own format,
    one of two images wrong.
    """
    import keras_cv

    class Detector:
        name, bounding_box_format, output, num_classes = "known", box_format, {"raw": None}, 2

        def decode_predictions(self, raw, images):
            boxes = keras_cv.bounding_box.convert_format(
                raw["raw"], source="xyxy", target=box_format, images=images
            )
            return {"boxes": boxes, "classes": np.zeros((2, 1)), "confidence": np.ones((2, 1))}

    x, truth = (
        np.zeros((2, *SHAPE), np.float32),
        {"boxes": np.float32([[[2, 3, 12, 23]], [[4, 4, 20, 20]]]), "classes": np.zeros((2, 1))},
    )
    assert mean_average_precision(Detector(), {"raw": truth["boxes"]}, x, truth) == pytest.approx(
        1.0
    )
    wrong = truth["boxes"].copy()
    wrong[1] += 40
    assert mean_average_precision(Detector(), {"raw": wrong}, x, truth) == pytest.approx(
        0.5, abs=0.01
    )
    with pytest.raises(ValueError, match="class index 2.*2 classes"):
        scorer(
            Detector(),
            x,
            {**truth, "classes": truth["classes"] + 2},
            reference={"raw": truth["boxes"]},
        )


def run(*options):
    """Standard output of the comparison."""
    code, out, err = commands.call("benchmarks.calibration", "--seeds=1", *options)
    assert code == 0, err
    return out


def test_a_plain_detector_is_compared_by_its_raw_heads(tmp_path):
    """Raw heads without decoding, a COCO set to evaluate on and unlabeled images to
    calibrate with.
    """
    tiny.silu_detector().save(tmp_path / "m.keras")
    images = [np.uint8(image) for image in tiny.images(6, shape=SHAPE, low=0, high=255)]
    save_coco(tmp_path / "set", images, [[(3, 2, 2, 8, 8)]] * 6)
    np.savez(tmp_path / "real.npz", x=np.stack(images))
    out = run(
        f"--model={tmp_path}/m.keras",
        f"--real={tmp_path}/real.npz",
        f"--evaluation={tmp_path}/set",
        f"--output_dir={tmp_path}/out",
        "--preprocess=symmetric",
        "--input_range=-1,1",
        "--num_images=4",
        "--sources=real,noise",
    )
    assert (
        "compared with the float model by the squared error and SQNR" in out
        and "no decode_predictions" in out
    )
    rows = json.loads((tmp_path / "out/results.json").read_text())
    heads = [f"head_{i}" for i in range(3)]
    assert all(
        {
            "mse",
            "sqnr_db",
            *(f"sqnr_db/{name}" for name in heads),
            *(f"mse/{name}" for name in heads),
        }
        <= set(row)
        for row in rows
    )
    assert not any({"top1", "map", "agreement"} & set(row) for row in rows)
    assert (
        all(f"SQNR {name}, dB" in out for name in heads)
        and (tmp_path / "out/scores.png").stat().st_size > 5000
    )


@pytest.mark.slow
def test_demo_detector_from_end_to_end(tmp_path):
    run(
        "--model=demo_detector",
        f"--output_dir={tmp_path}",
        "--num_evaluation=100",
        "--num_images=16",
        "--batch_size=16",
        "--steps=40",
        "--sources=real,synthetic,gaussian",
    )
    rows = {row["source"]: row for row in json.loads((tmp_path / "results.json").read_text())}
    assert (
        rows["real"]["float_map"] > 0.45
        and abs(rows["real"]["map"] - rows["real"]["float_map"]) < 0.05
    )
    assert (
        abs(rows["synthetic"]["map"] - rows["real"]["map"]) < 0.04 and rows["gaussian"]["map"] < 0.1
    )
    assert (
        "float mAP" in (tmp_path / "results.md").read_text() and (tmp_path / "ranges.png").exists()
    )
