import json
import re
import shutil
import subprocess

import numpy as np
import pandas as pd
import pytest

from pipeline.evaluation.bands import curve_bands
from pipeline.evaluation.comparison import Comparison
from pipeline.evaluation.outcomes import best_overlaps, count_outcomes
from pipeline.evaluation.subgroups import METRICS
from pipeline.evaluation.summary import summarize
from pipeline.metrics.calibration import calibrated, fit_calibration
from pipeline.metrics.results import image_result
from pipeline.metrics.rsna_score import best_threshold, rsna_score
from pipeline.reports.cards import data_card, model_card
from pipeline.reports.cases import describe_cases, most_telling
from pipeline.reports.curves import curve_tables, operating_points, plot_curve, plot_training
from pipeline.reports.drawing import DETECTION, TRUTH, captions, contact_sheet, draw_boxes
from pipeline.reports.evaluation_page import HEADLINE, Page, Picture, render_report
from pipeline.reports.examples import pick_examples
from pipeline.reports.interactive import curve_plot
from tests.metrics.conftest import random_results

IMAGES = random_results(40, 1)


def test_curves_end_where_the_metrics_say():
    tables = curve_tables({"val": IMAGES[:20], "test": IMAGES})
    recall = tables["precision_recall"].query("split == 'test'")
    assert recall["recall"].is_monotonic_increasing
    threshold = tables["threshold"].query("split == 'test'")
    for row in threshold.iloc[[0, 40, 99]].itertuples():
        assert row.rsna_score == pytest.approx(rsna_score(IMAGES, row.score_thresh), abs=1e-5)
    assert threshold["rsna_score"].max() <= best_threshold(IMAGES)[1] + 1e-5
    for name, table in tables.items():
        assert plot_curve(name, table, operating_points(IMAGES, 0.4, None, [""])[name]).startswith(b"\x89PNG")
    assert plot_training({"train/loss": [(0, 1.5), (5, 1.0)]}, 3).startswith(b"\x89PNG")


def test_the_calibration_is_drawn_before_and_after():
    fitted = fit_calibration(IMAGES, 0.05)
    after = [calibrated(image, fitted) for image in IMAGES]
    table = curve_tables({"test": after}, fitted)["calibration"]
    assert set(table["split"]) == {"test", "test before"}
    before = curve_tables({"test": IMAGES})["calibration"].drop(columns="split").reset_index(drop=True)
    own = table[table["split"] == "test before"].drop(columns="split").reset_index(drop=True)
    pd.testing.assert_frame_equal(own, before, atol=1e-4)
    assert plot_curve("calibration", table).startswith(b"\x89PNG")


def test_legends_are_outside_of_the_axes():
    tables = curve_tables({"val": IMAGES[:20], "test": IMAGES})
    figure = json.loads(curve_plot("froc", "", tables["froc"], tables["froc"].head(0)).content)
    (above,) = figure["doc"]["roots"][0]["attributes"]["above"]
    assert above["name"] == "Legend"
    assert [item["attributes"]["label"]["value"] for item in above["attributes"]["items"]] == ["val", "test"]


def test_examples_are_ranked():
    rows = pick_examples(IMAGES, 0.4, 4)
    score = [rsna_score([IMAGES[place]], 0.4) for place in rows["Best"] + rows["Typical"] + rows["Worst"][::-1]]
    assert score == sorted(score, reverse=True)
    missed = [IMAGES[place] for place in rows["Misses"]]
    assert all(len(image.truth) and not (image.scores > 0.4).any() for image in missed)
    assert all(not len(IMAGES[place].truth) and IMAGES[place].scores[0] > 0.4 for place in rows["False alarms"])


GROUPS = ["p"] * 20 + [str(number) for number in range(20)]


def page(**changes):
    summary = summarize(IMAGES, GROUPS, 0.4, draws=100, seed=0)
    evil = Picture("<script>alert(1)</script>", "RSNA score 0.5", "data:image/jpeg;base64,AA==")
    subgroups = pd.DataFrame(
        [
            {"kind": "view", "group": "<b>|x", "images": 9, "positives": 4, "boxes": 5, "small": True},
            {"kind": "box size", "group": "below 0.2", "images": 7, "positives": 7, "boxes": 8, "small": False},
        ]
    )
    subgroups = subgroups.assign(**{f"{key}{end}": np.nan for key in METRICS for end in ("", "_low", "_high")})
    subgroups.loc[1, ["sensitivity", "sensitivity_low", "sensitivity_high"]] = 0.25, 0.1, 0.5
    tables, points = curve_tables({"test": IMAGES}), operating_points(IMAGES, 0.4, None, [""])
    studies = [(f"s{number}", "Lung Opacity", "PA") for number in range(len(IMAGES))]
    studies[3] = ("</script><script>alert(2)</script>", "<i>", "AP")
    differences = dict.fromkeys(HEADLINE, (0.123, -0.045, 0.2)) | {"auroc": (None, None, None)}
    values = {
        "metrics": {"val": summary, "test": summary},
        "outcomes": count_outcomes(IMAGES, 0.4),
        "champion": ("7", Comparison(33, differences)),
        "subgroups": subgroups,
        "plots": [curve_plot("froc", "</script>", tables["froc"], points["froc"])],
        "cases": describe_cases(IMAGES, 0.4, np.full(len(IMAGES), 0.5), studies, {"s1": 0.25}),
        "pictures": {"Best": [evil], "Worst": []},
        "data": [{"split": "test", "images": 40}],
        "provenance": {"Git": "x", "DVC data/rsna": "abc"},
        "facts": {"Evaluated": "2026-01-01"},
        "links": {"model card": "model_card.md"},
        "params": "a: <i>",
        "notes": ["The starting model <u> saw the test images."],
    }
    return Page(**values | changes)


def visible(html):
    """Return the text of the page without the contents of its scripts."""
    return re.sub(r"<script[^>]*>.*?</script>", "", html, flags=re.S)


def test_page_is_whole_and_escapes_what_it_shows():
    html = render_report(page())
    text = visible(html)
    assert "<strong>The starting model &lt;u&gt; saw the test images.</strong>" in text
    assert "+0.123" in text
    assert "champion (version 7)" in text
    assert "&lt;b&gt;|x" in text
    assert "&lt;i&gt;" in text
    assert "alert(1)" in text
    assert "<script" not in text
    assert f"{page().metrics['test']['rsna_score']:.3f}" in text
    assert "<td>8</td><td>7</td><td>0.25" in text  # boxes are not counted as images
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", text)
    assert len(html) < 5e6


@pytest.mark.skipif(shutil.which("node") is None, reason="needs Node.js")
def test_the_table_of_studies_sorts_with_blanks_last():
    html = render_report(page())
    functions = html[html.index("function key(") : html.index("for (const [column, heading]")]
    script = """
    const cells = (values) => values.map((value) => ({cells: [value]}));
    const numbers = cells(["0.5", "", "0.25", "1"].map((value) => ({dataset: {value}, textContent: value})));
    const texts = cells(["b", "", "a"].map((textContent) => ({dataset: {}, textContent})));
    const sorted = (rows, descending) => [...rows].sort((a, b) => compare(key(a, 0), key(b, 0), descending))
        .map((row) => row.cells[0].textContent);
    console.log(JSON.stringify([[numbers, false], [numbers, true], [texts, false]].map((given) => sorted(...given))));
    """
    done = subprocess.run(["node", "-e", functions + script], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [["0.25", "0.5", "1", ""], ["1", "0.5", "0.25", ""], ["a", "b", ""]]


def test_the_page_concludes():
    counted = count_outcomes(IMAGES, 0.4)
    said = page().conclusion()
    ill = counted.true_positives + counted.false_negatives
    assert f"On 40 test images of 21 patients, the model reports something on {counted.true_positives} of {ill}" in said
    assert "not surely different from the champion (version 7): RSNA score +0.123 (-0.045 to +0.200)" in said
    better = dict.fromkeys(HEADLINE, (0.1, 0.05, 0.2))
    assert "surely better than" in page(champion=("7", Comparison(33, better))).conclusion()
    worse = dict.fromkeys(HEADLINE, (-0.1, -0.2, -0.05))
    assert "surely worse than" in page(champion=("7", Comparison(33, worse))).conclusion()
    assert "champion" not in page(champion=None).conclusion()


def test_outcomes_are_those_of_the_metrics():
    counted, summary = count_outcomes(IMAGES, 0.4), summarize(IMAGES, GROUPS, 0.4, draws=100, seed=0)
    found, alarms = counted.true_positives, counted.false_positives
    assert summary["sensitivity"] == pytest.approx(found / (found + counted.false_negatives), abs=1e-6)
    assert summary["specificity"] == pytest.approx(counted.true_negatives / (counted.true_negatives + alarms), abs=1e-6)
    assert summary["ppv"] == pytest.approx(found / (found + alarms), abs=1e-6)
    silent = counted.true_negatives + counted.false_negatives
    assert summary["npv"] == pytest.approx(counted.true_negatives / silent, abs=1e-6)
    assert sum(vars(counted).values()) == len(IMAGES)


def test_the_operating_threshold_lies_on_each_curve():
    points, tables = operating_points(IMAGES, 0.4, None, [""]), curve_tables({"test": IMAGES})
    summary = summarize(IMAGES, GROUPS, 0.4, draws=100, seed=0)
    ((x, y, label),) = points["roc"].itertuples(index=False, name=None)
    assert (1 - x, y) == pytest.approx((summary["specificity"], summary["sensitivity"]), abs=1e-6)
    assert label == "threshold 0.400"
    assert points["threshold"]["y"][0] == pytest.approx(summary["rsna_score"], abs=1e-6)
    for name, x_name, y_name in (
        ("precision_recall", "recall", "precision"), ("froc", "false_positives_per_image", "sensitivity"),
    ):  # fmt: skip
        above = tables[name][tables[name]["score_thresh"] > 0.4].iloc[-1]
        assert (points[name]["x"][0], points[name]["y"][0]) == pytest.approx((above[x_name], above[y_name]), abs=1e-4)


def test_cases_say_what_happened_and_mistakes_come_first():
    cases = page().cases
    missed = [case for case in cases if case.outcome == "missed"]
    assert missed
    assert all(case.boxes and not case.found for case in missed)
    assert cases[1].champion == 0.25
    assert cases[0].champion is cases[0].gain is None
    if cases[1].rsna_score is not None:
        assert cases[1].gain == pytest.approx(cases[1].rsna_score - 0.25)
    order = [cases[place].outcome in ("missed", "false alarm") for place in most_telling(cases)]
    assert order == sorted(order, reverse=True)
    assert len(most_telling(cases, 3)) == 3


def test_best_overlaps_of_a_hit_a_near_miss_and_a_miss():
    truth = [[0, 0, 10, 10], [50, 50, 60, 60], [80, 80, 90, 90]]
    found = image_result([[0, 0, 10, 10], [55, 50, 65, 60], [80, 80, 90, 90]], [0.9, 0.8, 0.1], truth)
    assert best_overlaps([found], 0.4) == pytest.approx([1, 1 / 3, 0])
    assert len(best_overlaps([image_result([], [], [])], 0.4)) == 0


def test_bands_hold_their_curves():
    bands, tables = curve_bands(IMAGES, GROUPS, 0), curve_tables({"test": IMAGES})
    for name in ("precision_recall", "froc", "roc"):
        assert (bands[name]["low"] <= bands[name]["high"]).all()
        assert bands[name]["high"].max() <= 1
    froc = tables["froc"]
    at = [froc["sensitivity"][froc["false_positives_per_image"] <= x].max() for x in bands["froc"]["x"]]
    inside = (bands["froc"]["low"] - 1e-9 <= at) & (at <= bands["froc"]["high"] + 1e-9)
    assert inside.mean() > 0.95
    one_kind = [image_result([], [], [])] * 5
    assert all(len(band) == 0 for band in curve_bands(one_kind, list("abcde"), 0).values())


def test_cards_are_tables_of_the_same_numbers():
    card = model_card(page(), "rsna-retinanet")
    summary = page().metrics["test"]
    assert card.startswith("# Model card: rsna-retinanet\n")
    assert page().conclusion() in card
    assert f"| {summary['map_50']:.3f} ({summary['map_50_low']:.3f} to" in card
    assert "| view | &lt;b>\\|x * | 9 | 4 |  |  |  |  |" in card
    assert "box size" not in card
    tables = [block.splitlines() for block in card.split("\n\n") if block.startswith("|")]
    assert len(tables) == 2
    for rows in tables:
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) == 1, rows
    data = data_card(page())
    assert "| images | 40 |" in data
    assert "DVC data/rsna abc" in data


def test_boxes_are_drawn_where_they_are():
    picture = draw_boxes(np.zeros((100, 100), np.uint8), [[10, 10, 40, 40]], [0.9], [[60, 60, 90, 90]], side=200)
    assert picture.shape == (200, 200, 3)
    for corner in (20, 80):
        assert tuple(picture[corner, 50]) == tuple(picture[50, corner]) == DETECTION
    assert not picture[50, 50].any()
    truth = np.argwhere((picture == TRUTH).all(-1))
    assert truth.min() >= 118
    assert truth.max() <= 182
    assert 50 < len(truth) < 3 * 4 * 60 * 0.8  # the outline is three pixels wide, and dashed
    assert contact_sheet([picture] * 3, 2).shape == (400, 400, 3)


def test_names_of_classes_are_written_inside_the_picture():
    box, blank = [[150, 150, 190, 190]], np.zeros((200, 200), np.uint8)
    plain = draw_boxes(blank, box, [0.9], box, 200)
    named = draw_boxes(
        blank, box, [0.9], box, 200, captions([1], ["opacity", "Nodule"]), captions([0], ["Effusion", "x"])
    )
    above, below = (slice(120, 148), slice(0, 148)), (slice(193, 200), slice(0, 140))
    assert not plain[above].any()
    assert (named[above] == DETECTION).all(-1).any()
    assert (named[below] == TRUTH).all(-1).any()
    # Without the shift, most of the tab would lie right of the edge.
    assert (named[above] == DETECTION).all(-1).any(0).sum() > 10
    assert captions([0, 0], ["lung opacity"]) == ["", ""]


def test_a_report_without_positives_still_renders():
    nothing = [image_result([], [], [])] * 5
    rows = pick_examples(nothing, 0.5, 3)
    assert rows == {"Best": [], "Typical": [], "Worst": [], "Misses": [], "False alarms": []}
