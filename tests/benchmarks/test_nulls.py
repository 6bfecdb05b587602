"""The benchmark of intervals: how often they contain the truth."""

import numpy as np
import pytest
import scripts


@pytest.fixture(scope="module")
def nulls():
    return scripts.load("benchmarks/nulls.py")


def test_score_counts_intervals_that_contain_the_truth(nulls, rng):
    values = rng.normal(0.5, 0.1, 4000)
    honest = np.transpose([values, values - 0.196, values + 0.196])
    for name in ("auc", "kernel"):
        scores = nulls.score(name, honest)
        assert scores["covered"] == pytest.approx(0.95, abs=0.015)
        assert scores["deviation"] == pytest.approx(scores["claimed"], rel=0.05)
    half = np.transpose([values, values - 0.098, values + 0.098])
    assert nulls.score("auc", half)["covered"] == pytest.approx(0.67, abs=0.03)
    moved = nulls.score("auc", honest + 0.3)
    assert moved["above"] > 0.8 > moved["below"] == 0


def test_measure_draws_each_figure(nulls):
    options = ("--n", "40", "--features", "3", "--draws", "2", "--shift", "5")
    scores = {
        s["figure"]: s for s in nulls.measure(nulls.make_parser().parse_args(options))
    }
    assert {"auc", "kernel", "frechet", "precision", "recall"} <= set(scores)
    assert scores["auc"]["above"] == 1
    few = nulls.make_parser().parse_args(["--n", "25", "--draws", "1"])
    assert "auc" not in {s["figure"] for s in nulls.measure(few)}
