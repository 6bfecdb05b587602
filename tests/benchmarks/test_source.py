"""The benchmark of volumes that are made of others: what it scores."""

from pathlib import Path

import numpy as np
import pytest
import scripts


@pytest.fixture(scope="module")
def source():
    return scripts.load("benchmarks/source.py")


def test_scores_are_of_the_images_and_of_the_brain(source, rng):
    truth = np.zeros((3, 20, 20, 20, 1))
    truth[:, 5:15, 5:15, 5:15] = rng.uniform(0.4, 0.6, (3, 10, 10, 10, 1))
    inside = truth > 0
    scores = source.score(truth + 0.1 * inside, truth)
    assert scores["psnr_brain"] == pytest.approx(20)
    assert scores["psnr"] == pytest.approx(20 + 10 * np.log10(8), abs=1e-3)
    assert scores["psnr_error"] == 0
    nearer = source.score(truth + 0.01 * inside, truth)
    assert scores["ssim"] < nearer["ssim"] <= 1


def test_existing_heads_are_not_generated_again(source, tmp_path, monkeypatch):
    options = source.make_parser().parse_args([str(tmp_path), "--n", "1"])
    options.n_held_out = 2
    called = []
    run = lambda command, **how: called.append(command)  # noqa: E731
    monkeypatch.setattr("subprocess.run", run)
    (tmp_path / "train").mkdir()
    for contrast in ("T1w", "T2w"):
        (tmp_path / "train" / f"sub-0000_{contrast}.nii.gz").touch()
    source.prepare(options)
    assert [command[2] for command in called] == [str(tmp_path / "held_out")]
    source.train(options)
    words = [Path(word).name for word in called[1]]
    assert words[3:6] == [
        "sub-0000_T2w.nii.gz",
        "--source_files",
        "sub-0000_T1w.nii.gz",
    ]
    (tmp_path / "ldm.safetensors").touch()
    source.train(options)
    assert len(called) == 2
