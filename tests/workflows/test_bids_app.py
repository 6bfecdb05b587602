"""The commands as a BIDS App."""

from functools import partial
import json
import sys

import pytest
from scans import make_scan

from dipy_ldm.workflows import _bids_app as bids_app

APP = "bids", "out", "participant"


def run(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["dipy_ldm_bids", *map(str, words)])
    bids_app.main()


def words_of(monkeypatch, *words):
    """Return the command line that would be run."""
    for task in ("denoise", "inpaint", "check"):
        monkeypatch.setattr(bids_app.cli, task, lambda: None)
    run(monkeypatch, *words)
    return sys.argv


def test_a_bids_app_is_one_of_the_commands(monkeypatch):
    labels = ("--participant_label", "01", "sub-02", "--model_file", "m.safetensors")
    check = partial(words_of, monkeypatch, *APP, "--task", "check")
    assert check("--channels", "T1w", "dseg")[1:4] == ["bids", "--out_dir", "out"]
    assert check("--channels=T1w,dseg")[1:4] == ["bids", "--out_dir", "out"]
    assert check("--channels")[1:4] == ["bids", "--suffix", "T1w"]
    assert check("--channels", "--seconds", 0)[1:4] == ["bids", "--suffix", "T1w"]
    further = "--strength", 0.2, "--filter", "ses=a"
    assert words_of(monkeypatch, *APP, *labels, *further) == [
        *("dipy_denoise_ldm", "m.safetensors", "bids", "--suffix", "T1w"),
        *("--filter", "sub=01,02", "ses=a", "--bids", "--out_dir", "out"),
        *("--strength", "0.2"),
    ]
    assert words_of(monkeypatch, *APP, "--task", "check", "--suffix", "T2w") == [
        *("dipy_check_ldm", "bids", "--suffix", "T2w", "--out_dir", "out")
    ]


def test_filters_add_up_and_the_suffix_is_that_of_the_model(monkeypatch):
    document = {"suffix": "FLAIR", "channels": []}
    monkeypatch.setattr(bids_app._serialization, "read_document", lambda _: document)
    filters = "--filter", "ses=a", "--filter", "run=1", "acq=x"
    assert words_of(monkeypatch, *APP, "--model_file", "m.safetensors", *filters) == [
        *("dipy_denoise_ldm", "m.safetensors", "bids", "--suffix", "FLAIR"),
        *("--filter", "ses=a", "run=1", "acq=x", "--bids", "--out_dir", "out"),
    ]


def test_a_model_is_needed(monkeypatch, capsys):
    with pytest.raises(SystemExit):
        words_of(monkeypatch, *APP)
    assert "--task denoise needs a --model_file" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        words_of(monkeypatch, *APP, "--task", "check", "--model_file", "m.safetensors")
    sentence = "--model_file has no effect with --task check; leave it out"
    assert sentence in capsys.readouterr().err


def test_subjects_of_a_dataset_are_denoised(monkeypatch, tmp_path, model_path):
    for name in ("sub-01", "sub-02"):
        folder = tmp_path / "bids" / name / "anat"
        folder.mkdir(parents=True)
        make_scan(folder, name=f"{name}_T1w")
    app = (tmp_path / "bids", tmp_path / "out", "participant", "--strength", 0)
    options = ("--participant_label", "02", "--model_file", model_path)
    run(monkeypatch, *app, *options, "--skull_stripped")
    files = (path for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert {str(path.relative_to(tmp_path / "out")) for path in files} == {
        *("README", "dataset_description.json"),
        *("code/denoised.toml", "code/denoised.png"),
        "sub-02/anat/sub-02_desc-denoised_T1w.nii.gz",
        "sub-02/anat/sub-02_desc-denoised_T1w.json",
    }
    result = tmp_path / "out/sub-02/anat/sub-02_desc-denoised_T1w.json"
    assert json.loads(result.read_text())["SkullStripped"] is True
    described = json.loads((tmp_path / "out/dataset_description.json").read_text())
    assert described["DatasetType"] == "derivative"
