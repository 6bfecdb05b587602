"""The benchmark of generated pairs: tissue classes, and training of segmenters."""

import numpy as np
import pytest
import scripts

from dipy_ldm.data import channels


@pytest.fixture(scope="module")
def pairs():
    return scripts.load("benchmarks/pairs.py")


def test_merge_maps_labels_to_tissues(pairs):
    labels = np.array([0, 2, 3, 10, 4, 8, 16, 77, 1035]).reshape(3, 3, 1)
    expected = [0, 1, 2, 3, 4, 5, 6, 1, 0]
    assert pairs.merge(labels).ravel().tolist() == expected


def test_learn_and_judge_a_segmenter(pairs, monkeypatch, rng):
    monkeypatch.setattr(pairs, "WIDTHS", (8, 16))
    records = channels.Channel("T1w"), channels.Labels("dseg", labels=range(1, 7))
    tissues = np.kron(rng.integers(0, 7, (4, 2, 2, 2)), np.ones((1, 4, 4, 4), int))
    columns = tissues[..., None] == np.arange(1, 7)
    images = np.concatenate([tissues[..., None] / 6, columns], -1).astype("float32")
    scans, labels = pairs.split(images, records)
    assert np.array_equal(labels, tissues)
    network = pairs.learn(scans[:, :, :, :7], labels[:, :, :, :7], 100, seed=0)
    assert pairs.judge(network, scans, labels)["mean"] > 0.7
    shuffled = np.roll(labels, 1, 0)
    assert pairs.judge(network, scans, shuffled)["mean"] < 0.5
