"""``dipy_check_ldm``: planted faults are found, and reported on one page."""

import json
import re
from unittest.mock import create_autospec

import numpy as np
from processes import answer, closed_late, interrupt_when
import pytest
from scans import ellipsoid, list_cached, save
from scipy.ndimage import gaussian_filter

from dipy_ldm._utils.checks import InputError
from dipy_ldm.checking import _dry_run
from dipy_ldm.data.volumes import load_volumes
from dipy_ldm.workflows import _check_command, _training

N = 24
TINY = (
    "--voxel_size 8 --batch_size 2 --n_codes 16 --code_dim 2 --widths_vqvae 8 8 "
    "--widths_ldm 8 --precision float32"
).split()


def write(folder, number, image, voxel_size=8.0, x_offset=0):
    affine = np.diag([*[voxel_size] * 3, 1])
    affine[0, 3] = x_offset
    save(folder / f"sub-{number:02d}_T1w.nii.gz", image, affine)


def head(number):
    """Make a head (16, 20, 18) with details of its own."""
    rng = np.random.default_rng(number)
    shape = ellipsoid((8, 10, 9), (6, 9, 7)) + 0.5 * ellipsoid((8, 15, 11), (3, 3, 3))
    shape = shape - 0.8 * ellipsoid((8, 5, 6), (4, 4, 4))
    details = gaussian_filter(rng.standard_normal(shape.shape), 1.5)
    return np.clip(shape * (0.6 + 0.8 * details), 0, 1)


@pytest.fixture
def cohort(tmp_path):
    folder = tmp_path / "cohort"
    folder.mkdir()
    for i in range(N):
        write(folder, i, head(i if i < 12 else 100 + i))  # none an outlier
    return folder


@pytest.fixture
def check(command, tmp_path):
    """Return what runs the command without trials, and reads what it wrote."""

    def check(*arguments, status=0):
        options = ("--seconds", 0, "--cache_dir", tmp_path / "cache", "--force")
        command("check", *TINY, *options, *arguments, status=status)
        sections = json.loads((tmp_path / "check.json").read_text())["Findings"]
        return {f["title"]: f for section in sections.values() for f in section}

    return check


def test_a_cohort_as_it_should_be_is_not_red(cohort, check, tmp_path):
    report = check(cohort)
    states = {title: finding["state"] for title, finding in report.items()}
    # All is well but that there are few.
    assert (states.pop("subjects"), states.pop("held out")) == ("amber", "amber")
    assert set(states.values()) == {"green", "grey"}, states
    # The training finds what was conformed.
    (kept,) = list_cached(tmp_path / "cache")
    load_volumes([cohort], voxel_size=8, shuffle=True, cache_dir=tmp_path / "cache")
    assert list_cached(tmp_path / "cache") == [kept]
    again = "# To repeat this run: dipy_check_ldm --config "
    assert (tmp_path / "check.toml").read_text().startswith(again)
    html = (tmp_path / "check.html").read_text("utf-8")
    links = re.findall(r"""\b(?:src|href)\s*=\s*["']?([^"'\s>]*)""", html)
    assert all(link.startswith("data:image/png") for link in links)
    assert not re.search("<script|https?://", html)


def test_each_planted_fault_is_reported(cohort, check, tmp_path):
    write(cohort, 1, head(1)[:, ::-1])
    write(cohort, 2, head(2), voxel_size=0.008)
    write(cohort, 3, np.stack([head(3)] * 4, -1))
    write(cohort, 4, head(5))
    write(cohort, 12, head(12), x_offset=900)
    broken = head(13)
    broken[3, 3, 3] = np.nan
    write(cohort, 13, broken)
    write(cohort, 14, head(14))
    whole = (cohort / "sub-14_T1w.nii.gz").read_bytes()
    (cohort / "sub-14_T1w.nii.gz").write_bytes(whole[: len(whole) // 2])
    (cohort / "sub-15_T1w.nii.gz").write_text("no volume")
    (cohort / "sub-16_T1w.nii.gz").write_text("")
    report = check(cohort, status=1)
    blamed = {
        "files": (3, 13, 14, 15, 16),
        "units": (2,),
        "places": (12,),
        "orientation of the images": (1,),
        "duplicate subjects": (4, 5),
        "subjects": (),  # that are left
    }
    for title, numbers in blamed.items():
        assert report[title]["state"] == "red", title
        assert report[title]["cure"].endswith("."), title
        named = set(re.findall(r"sub-(\d\d)", json.dumps(report[title])))
        assert named == {f"{i:02d}" for i in numbers}, title
    # As options, for who gives options.
    text = json.dumps(report)
    assert "--channels" in text
    assert "`" not in text
    html = (tmp_path / "check.html").read_text("utf-8")
    assert html.count('class="note bad"') == 2 * len(blamed)


def test_conditions_are_summarised_or_refused(cohort, check):
    rows = [f"sub-{i:02d}\t{20 + i}\n" for i in range(N)]
    (cohort / "participants.tsv").write_text("participant_id\tage\n" + "".join(rows))
    report = check(cohort, "--conditions", "age")
    assert "age (years): 20 to 43" in report["conditions"]["what"]
    unique = report["unique combinations"]
    assert unique["state"] == "amber"
    assert "24 of 24 subjects have a unique combination" in unique["what"]
    report = check(cohort, "--conditions", "age", "--coarsen", "age=12")
    assert report["unique combinations"]["state"] == "green"
    report = check(cohort, "--conditions", "weight", status=1)
    assert report["conditions"]["state"] == "red"


def test_check_masks(cohort, check, tmp_path):
    masks = tmp_path / "masks"
    masks.mkdir()
    for i in range(N):
        write(masks, i, head(i) > 0)
    report = check(cohort, "--mask_files", masks, "--background", 0.1)
    assert report["masks"]["state"] == "green"
    write(masks, 3, np.ones((4, 4, 4)))
    report = check(cohort, "--mask_files", masks, "--background", 0.1, status=1)
    assert report["masks"]["state"] == "red"
    assert "another grid" in report["masks"]["what"]


def test_few_volumes_give_grey_findings(cohort, check):
    files = sorted(cohort.iterdir())[:4]
    report = check(*files, "--source_files", cohort, status=1)
    (red,) = (title for title, finding in report.items() if finding["state"] == "red")
    assert red == "subjects"
    grey = {title for title, finding in report.items() if finding["state"] == "grey"}
    assert {"orientation of the images", "duplicate subjects", "shapes"} < grey
    assert "--source_files" in grey
    assert report["files"]["state"] == "green"


def test_equal_names_in_two_studies_are_amber(check, tmp_path):
    folders = [tmp_path / name / "derivatives/prep" for name in "ab"]
    for i, folder in enumerate(folders):
        folder.mkdir(parents=True)
        for number in range(4):
            write(folder, number, head(10 * i + number))
    names = check(*folders, status=1)["names of subjects"]
    assert names["state"] == "amber"
    assert "and 1 more), and count as the same people" in names["what"]


def test_too_few_for_a_batch_is_red(cohort, check, monkeypatch):
    lines = []
    logger = _check_command.logger
    monkeypatch.setattr(logger, "info", lambda text, *words: lines.append(text % words))
    report = check(cohort, "--batch_size", 32, status=1)
    assert "--batch_size or --validation" in "".join(lines)
    assert report["held out"]["state"] == "red"
    assert report["time"]["state"] == "grey"


def test_no_good_file_is_reported_on_the_page(tmp_path, check):
    (tmp_path / "sub-1.nii.gz").write_text("no volume")
    report = check(tmp_path / "sub-1.nii.gz", status=1)
    assert report["files"]["state"] == "red"
    assert report["training"]["state"] == "grey"


@pytest.mark.parametrize(
    ("option", "words"),
    [
        (("--seconds", -1), "seconds must be at least 0"),
        (("--strategy", "multi_worker"), "the check is for one machine"),
        (("--dwi", "--channels", "T1w"), "leave out --channels"),
        (("--dwi", "--source_files", "b0"), "leave out --source_files"),
        (("--dwi", "--steps_detector", 9), "--steps_detector has no effect with --dwi"),
    ],
)
def test_wrong_input_gets_a_sentence(cohort, command, tmp_path, option, words):
    options = (*option, *TINY, "--cache_dir", tmp_path / "cache")
    assert words in answer(command("check", "cohort", *options, status=2))
    assert not (tmp_path / "check.html").exists()


def test_a_wrong_init_is_refused_or_red(cohort, command, tmp_path):
    options = ("--voxel_size", 8, "--cache_dir", tmp_path / "cache", "--init")
    output = answer(command("check", "cohort", *options, "nothing", status=2))
    assert "there is no model file nothing" in output
    # What the files are like is said, too.
    command("check", "cohort", *options, "mnist", status=1)
    findings = json.loads((tmp_path / "check.json").read_text())["Findings"]
    assert {"Files", "Images", "Training"} <= findings.keys()
    (red,) = (f for f in findings["Training"] if f["title"] == "options")
    assert "for images of 2 dimensions with 1 channel, and these have 3" in red["what"]


def test_options_that_a_training_refuses_are_on_the_page(cohort, check, monkeypatch):
    report = check(cohort, "--patch", 8, 8, status=1)
    assert report["options"]["what"].startswith("Patch must be one number or 3")
    refuse = create_autospec(_training.Recipe.check, side_effect=InputError("no", "go"))
    monkeypatch.setattr(_training.Recipe, "check", refuse)
    assert check(cohort, status=1)["options"]["what"] == "No."


def test_options_of_volumes_are_refused_as_by_the_training(command, folder):
    options = (folder / "blobs.npy", *TINY[2:], "--skip_bad")
    for name in ("check", "train"):
        output = command(name, *options, status=2)
        assert "--skip_bad is for volumes" in answer(output)


def test_a_page_says_that_the_memory_does_not_suffice(
    cohort, command, tmp_path, monkeypatch
):
    monkeypatch.setattr(_dry_run._backend, "free_memory", lambda strategy: 2**10)
    options = (*TINY, "--cache_dir", tmp_path / "cache", "--seconds", 1)
    command("check", cohort, *options, status=1)
    page = json.loads((tmp_path / "check.json").read_text())
    states = {f["title"]: f["state"] for f in page["Findings"]["Training"]}
    assert states["memory"] == "red"
    assert "memory would not suffice" in page["Findings"]["Trials"][0]["what"]


def test_check_overwrites_nothing_without_force(cohort, command, tmp_path):
    (tmp_path / "check.html").write_text("mine")
    assert "--force" in answer(command("check", cohort, status=2))


def test_check_images_with_trials(command, folder, tmp_path, monkeypatch):
    # Which is tested by itself, and compiles three networks.
    paces = _dry_run.Paces(1.0, {"autoencoder": 0.1, "diffusion": 0.1}, 0.01)
    timed = create_autospec(_dry_run.time_training_steps, return_value=paces)
    monkeypatch.setattr(_dry_run, "time_training_steps", timed)
    tiny = [*TINY[2:], "--steps_vqvae", 50, "--steps_ldm", 100, "--seconds", 2]
    arguments = (folder / "blobs.npy", *tiny, "--learning_rate", 0.01)
    assert "green: " in command("check", *arguments)
    report = json.loads((tmp_path / "check.json").read_text())
    time, memorised = report["Findings"]["Trials"]
    assert timed.call_count == 1
    steps = {row["part"]: row["steps"] for row in time["table"]}
    assert (steps["autoencoder"], steps["diffusion"]) == (50, 100)
    assert memorised["title"] == "overfitting"
    assert "of 16 codes" in memorised["what"]


@closed_late
def test_check_interrupted_leaves_nothing(cohort, command, tmp_path):
    options = ("--cache_dir", tmp_path / "cache", "--seconds", 500)
    with interrupt_when(tmp_path / "cache"):
        output = command("check", cohort, *TINY, *options, status=130)
    assert "no page was written" in answer(output)
    assert not list(tmp_path.glob("check*"))
