import numpy as np
import pandas as pd
import pytest

from pipeline.evaluation.comparison import Comparison
from pipeline.evaluation.subgroups import METRICS
from pipeline.evaluation.summary import summarize
from pipeline.metrics.calibration import calibrated, fit_calibration
from pipeline.metrics.results import image_result
from pipeline.metrics.rsna_score import best_threshold, rsna_score
from pipeline.reports.curves import curve_tables, plot_curve, plot_training
from pipeline.reports.drawing import DETECTION, TRUTH, captions, contact_sheet, draw_boxes
from pipeline.reports.evaluation_page import HEADLINE, Page, Picture, render_report
from pipeline.reports.examples import pick_examples
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
        assert plot_curve(name, table).startswith(b"\x89PNG")


def test_the_calibration_is_drawn_before_and_after():
    fitted = fit_calibration(IMAGES, 0.05)
    after = [calibrated(image, fitted) for image in IMAGES]
    table = curve_tables({"test": after}, fitted)["calibration"]
    assert set(table["split"]) == {"test", "test before"}
    before = curve_tables({"test": IMAGES})["calibration"].drop(columns="split").reset_index(drop=True)
    own = table[table["split"] == "test before"].drop(columns="split").reset_index(drop=True)
    pd.testing.assert_frame_equal(own, before, atol=1e-4)
    assert plot_curve("calibration", table).startswith(b"\x89PNG")


def test_examples_are_ranked():
    rows = pick_examples(IMAGES, 0.4, 4)
    score = [rsna_score([IMAGES[place]], 0.4) for place in rows["Best"] + rows["Typical"] + rows["Worst"][::-1]]
    assert score == sorted(score, reverse=True)
    missed = [IMAGES[place] for place in rows["Misses"]]
    assert all(len(image.truth) and not (image.scores > 0.4).any() for image in missed)
    assert all(not len(IMAGES[place].truth) and IMAGES[place].scores[0] > 0.4 for place in rows["False alarms"])


def test_page_is_whole_and_escapes_what_it_shows():
    summary = summarize(IMAGES, ["p"] * 20 + [str(number) for number in range(20)], 0.4, draws=100, seed=0)
    table = curve_tables({"test": IMAGES})["froc"]
    evil = Picture("<script>alert(1)</script>", "RSNA score 0.5", "data:image/jpeg;base64,AA==")
    groups = pd.DataFrame([{"kind": "view", "group": "<b>", "images": 9, "positives": 4, "small": True}])
    differences = dict.fromkeys(HEADLINE, (0.123, -0.045, 0.2)) | {"auroc": (None, None, None)}
    page = render_report(
        Page(
            {"val": summary, "test": summary},
            ("7", Comparison(33, differences)),
            groups.assign(**{f"{key}{end}": np.nan for key in METRICS for end in ("", "_low", "_high")}),
            {"froc": plot_curve("froc", table), "training": plot_training({"train/loss": [(0, 1.5), (5, 1.0)]}, 3)},
            {"Best": [evil], "Worst": []},
            [{"split": "test", "images": 40}],
            {"Git": "x"},
            "a: <i>",
            ["The starting model <u> saw the test images."],
        )
    )
    assert "<strong>The starting model &lt;u&gt; saw the test images.</strong>" in page
    assert "+0.123" in page
    assert "champion (version 7)" in page
    assert "&lt;b&gt;" in page
    assert "&lt;i&gt;" in page
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert f"{summary['rsna_score']:.3f}" in page
    assert "http://" not in page
    assert "https://" not in page


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
