"""The benchmark of few scans: how each kind of model is trained."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import scripts


@pytest.fixture
def few_scans():
    return scripts.load("benchmarks/few_scans.py")


def test_each_way_has_its_init_and_steps(few_scans, tmp_path, monkeypatch):
    commands = []

    def call(*arguments):
        commands.append([*map(str, arguments)])
        Path(commands[-1][commands[-1].index("--out_dir") + 1]).mkdir()

    monkeypatch.setattr(few_scans, "call", call)
    options = SimpleNamespace(folder=tmp_path, voxel_size=4.0, widths_ldm=[8, 16])
    vars(options).update(steps_vqvae=30, steps_ldm=20, steps=50)
    ways = dict.fromkeys(few_scans.WAYS)
    for way in ways:
        few_scans.train(options, ["a.nii", "b.nii"], way)
    steps = [c[c.index("--steps_ldm") + 1] for c in commands]
    assert steps == ["20", "50", "50", "5"]
    begun = ["--init" in c and c[c.index("--init") + 1] for c in commands]
    assert begun == [False, "volumes", "brains", "brains"]
    assert ["--widths_ldm" in c for c in commands] == [True, True, False, False]
    # What is there is left as it is.
    model, _ = few_scans.train(options, ["a.nii", "b.nii"], "both, a tenth")
    assert len(commands) == 4 and model.parent.name == "2-both-tenth"
