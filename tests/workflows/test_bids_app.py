"""The commands as a BIDS App."""

import json
import sys

import pytest
from scans import make_scan

from dipy_ldm.workflows import _bids_app as bids_app


def run(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["dipy_ldm_bids", *map(str, words)])
    bids_app.main()


@pytest.fixture
def command_line(monkeypatch):
    """Return what parses words, and returns the command line that would be run."""
    for task in ("denoise", "check"):
        monkeypatch.setattr(bids_app.cli, task, lambda: None)

    def command_line(words):
        run(monkeypatch, "bids", "out", "participant", *words.split())
        return " ".join(sys.argv)

    return command_line


def test_command_line_of_all_options(command_line, monkeypatch):
    document = {"suffix": "FLAIR", "channels": []}
    monkeypatch.setattr(bids_app._serialization, "read_document", lambda _: document)
    options = "--participant_label 01 sub-02 --model_file brains --strength 0.2"
    filters = "--filter ses=a --filter run=1 acq=x"
    assert command_line(f"{options} {filters}") == (
        "dipy_denoise_ldm brains bids --suffix FLAIR --filter sub=01,02 ses=a run=1 "
        "acq=x --bids --out_dir out --strength 0.2"
    )
    line = command_line("--task check --suffix T2w")
    assert line == "dipy_check_ldm bids --suffix T2w --out_dir out"


@pytest.mark.parametrize(
    ("further", "suffix"),
    [
        ("--channels", "--suffix T1w "),
        ("--channels --seconds 0", "--suffix T1w "),
        ("--channels T1w dseg", ""),
        ("--channels=T1w,dseg", ""),
    ],
)
def test_command_line_of_channels(command_line, further, suffix):
    line = f"dipy_check_ldm bids {suffix}--out_dir out {further}"
    assert command_line(f"--task check {further}") == line


def test_main_refuses_a_missing_or_useless_model(command_line, capsys):
    with pytest.raises(SystemExit):
        command_line("")
    assert "--task denoise needs a --model_file" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        command_line("--task check --model_file m.safetensors")
    sentence = "--model_file has no effect with --task check; leave it out"
    assert sentence in capsys.readouterr().err


def test_main_denoises_subjects_of_a_dataset(monkeypatch, tmp_path, model_path):
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
