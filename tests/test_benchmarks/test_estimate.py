"""The fit of the estimate's constants: known constants are found again, and a model that is left
out has no part in what is told of it.
"""

import dataclasses

import numpy as np
import pytest
from commands import call

from benchmarks.estimate import fit
from benchmarks.estimate.rows import KINDS, File, Row
from tflite_export.quality.agreement import (
    BOTH,
    PLAIN,
    RULES,
    STRETCHED,
    Features,
    Rule,
    expected,
    share,
)

TRUE = Rule(-0.5, 1.2, 0.0, 0.0, 0.0)


def row(model, noise, *, statistics=True, miss=0.0, scheme="int8"):
    features = {kind: Features(noise, 0.4, 3.0, 10, 0, 32, 0.3) for kind in KINDS}
    odds = TRUE.odds(expected({kind: features[kind] for kind in (PLAIN, STRETCHED)}))
    file = File("synthetic", scheme, str(noise))
    return Row(model, statistics, file, share(odds + miss), 100_000, features)


@pytest.fixture(scope="module")
def rows():
    return [
        row(model, noise + 0.001 * place, scheme=scheme)
        for place, model in enumerate("abcde")
        for noise, scheme in ((0.05, "int8"), (0.1, "int8"), (0.3, "w4a8"), (0.6, "mixed"))
    ]


def test_known_constants_are_found_again(rows):
    assert fit.fitted(rows, BOTH) == pytest.approx((TRUE.offset, TRUE.slope), abs=0.01)


def test_rows_of_one_line_are_told_exactly_with_a_band_of_no_width(rows):
    told = fit.told_of(rows, BOTH)
    figures = fit.figures(told)
    assert figures["rank correlation"] == pytest.approx(1.0) and figures["mean error"] < 1e-3
    assert max(each.agreement - each.low for each in told) < 1e-3
    assert figures["int8 levels wrong"] == 0.0 and figures["rows"] == 20


def test_a_model_has_no_part_in_what_is_told_of_it(rows):
    """Whatever its files keep: the same is told of them, and another of all others."""
    worse = [
        dataclasses.replace(each, agreement=0.5 * each.agreement) if each.model == "a" else each
        for each in rows
    ]
    before, after = (fit.told_of(each, BOTH) for each in (rows, worse))
    for old, new in zip(before, after, strict=True):
        same = (old.agreement, old.low, old.high) == (new.agreement, new.low, new.high)
        assert same == (old.row.model == "a")


def test_widths_hold_all_rows_and_sure_files_have_one_of_their_own():
    """By hand: angles of 0.5 are missed by -0.15 .. 0.2, those of files told 0.98 by -0.1 .. 0.08.
    Seven such files are too few for a width.
    """
    half, sure = np.linspace(-0.15, 0.2, 8), np.linspace(-0.1, 0.08, 8)
    rows, odds = [], []
    base = row("a", 0.1)
    for middle, misses in ((0.5, half), (0.98, sure)):
        for miss in misses:
            truth = np.sin(np.arcsin(middle**0.5) - miss) ** 2
            rows.append(dataclasses.replace(base, agreement=float(truth)))
            odds.append(np.log(middle / (1 - middle)))
    assert fit.widths(rows, odds) == pytest.approx((0.2, 0.15, 0.08))
    assert fit.widths(rows[:-1], odds[:-1]) == pytest.approx((0.2, 0.15, 0.2))


def test_levels_are_wrong_where_the_estimates_own_rule_says_so(rows):
    told = fit.Told(rows[0], 0.97, 0.89, 0.99)._replace(
        row=dataclasses.replace(rows[0], agreement=0.96)
    )
    assert (told.level, told.deserved, told.inside) == ("doubtful", "fine", True)
    sampled = told._replace(row=dataclasses.replace(told.row, images=400))
    # 0.96 of 400 is 0.96 +- 0.02, which may be 0.94 as well; of 100,000 it is not
    assert told.surely_wrong and not sampled.surely_wrong
    far = told._replace(row=dataclasses.replace(rows[0], agreement=0.92), low=0.94)
    figures = fit.figures([far, told])
    assert figures["fine, but more than 2 points below the border"] == 1
    assert figures["true value in band"] == 0.5 and figures["int8 levels wrong"] == 1.0
    # by hand: one of the three may be right on 400 other images; other schemes have no part
    other = told._replace(row=rows[2])
    figures = fit.figures([far, told, sampled, other])
    assert figures["int8 levels wrong"] == 1.0
    assert figures["int8 levels wrong beyond sampling"] == pytest.approx(2 / 3)


def test_the_report_has_bars_constants_and_a_row_for_every_file(rows):
    text = fit.report(rows)
    assert text.count("\n| a ") == 16 and "Rule(" in text and "- rank correlation: " in text
    assert "three at least" in fit.report(rows[:4])


def test_rows_of_two_seeds_are_told_apart(rows):
    """A second seed of every file: twice the rows, and the same line."""
    both = [*rows, *(dataclasses.replace(each, seed=1) for each in rows)]
    assert fit.fitted(both, BOTH) == pytest.approx(fit.fitted(rows, BOTH))
    told = fit.told_of(both, BOTH)
    assert len({each.row.name for each in told}) == 40
    assert fit.report(both).count("\n| a, seed 1 ") == 16


def test_models_that_are_kept_back_are_told_by_the_code(rows):
    """The constants of the code, whatever the rows: by hand, from the rule. Nothing bounds what a
    model without statistics may keep.
    """
    rule, known = RULES[BOTH], dataclasses.replace(rows[3], statistics=False)
    (told,) = fit.told_by_code([known])
    shown = {kind: known.features[kind] for kind in (PLAIN, STRETCHED)}
    assert told.agreement == pytest.approx(share(rule.odds(expected(shown)))) and told.high == 1.0
    assert (told.low, told.high) == rule.band(told.agreement, statistics=False)
    assert fit.kept_back(rows[:1]).count("\n| a ") == 1 and "Rule(" not in fit.kept_back(rows)
    assert fit.kept_back([]) == "No rows to tell."


def test_a_mistyped_name_leaves_no_folder(tmp_path):
    folder = tmp_path / "out"
    code, _, err = call("benchmarks.estimate", "--only=dmeo", f"--output_dir={folder}")
    assert code == 1 and "dmeo not in the list" in err
    assert not folder.exists()
