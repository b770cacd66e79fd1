"""F.json that was changed or replaced is told, not shown as if it were the file's."""

import json

import pytest

from dgh_tf.common.files import with_checksum
from dgh_tf.report.integer_files import found

VERDICT = {"level": "fine", "sentence": "Fine: about 99 %."}


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({**with_checksum(VERDICT), "sentence": "Fine: about 98 %."}, "checksum differs"),
        ({}, "no proof of F.tflite"),
        (None, "no proof of F.tflite"),
    ],
)
def test_a_changed_record_is_told(data, words, tmp_path):
    (tmp_path / "F.tflite").write_bytes(b"any")
    (tmp_path / "F.json").write_text(json.dumps(data))
    told = found(tmp_path, model="m")
    assert not told.files and len(told.damaged) == 1 and words in told.damaged[0]


@pytest.mark.parametrize("record", [with_checksum(VERDICT), VERDICT])
def test_a_whole_record_is_shown_also_of_an_earlier_version(record, tmp_path):
    (tmp_path / "F.json").write_text(json.dumps(record, indent=1))
    told = found(tmp_path, model="m")
    shown = told.files[0].estimate.sentence  # a number and its sign stay on one line
    assert not told.damaged and shown == "Fine: about 99\u00a0%."
