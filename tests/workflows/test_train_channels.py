"""Models with named channels on the command line."""

from functools import partial
import json

import nibabel as nib
import numpy as np
import numpy.testing as npt
from processes import call, execute, refuse_faults_of_bids, skipped_training
import pytest

from dipy_ldm import LatentDiffusion, _serialization
from dipy_ldm._utils.checks import InputError
from dipy_ldm.data import load_volumes
from dipy_ldm.data.channels import split_channels
from dipy_ldm.workflows._evaluation_images import read_for
from dipy_ldm.workflows._samples import Samples

AFFINE = np.diag([8.0, 8, 8, 1])
NAMES = ["T1w", "T2w", "dseg", "desc-FA"]
ENDS = dict(zip(NAMES, [*NAMES[:3], "desc-FA_dwimap"], strict=True))
LACKING = {(3, "dseg"), (5, "T2w"), (6, "T2w")}
TRAINING = (
    "--steps_vqvae 6 --steps_ldm 4 --batch_size 2 --n_codes 16 --code_dim 2 "
    "--widths_vqvae 4 4 --widths_ldm 4 8 --precision float32 --validation 0.2"
).split()


def write_subjects(root, numbers, lacking=()):
    """Write a scan, another, a segmentation and a map of each subject."""
    for i in numbers:
        rng = np.random.default_rng(i)
        labels = np.zeros((12, 11, 13), "uint8")
        labels[2 : 9 + i % 2, 2:9, 3:10], labels[5:7, 5:7, 5 : 7 + i % 3] = 8, 200
        scan = (labels > 0) * rng.uniform(50, 99, labels.shape)
        files = {"T1w": scan, "T2w": 99 - scan, "dseg": labels}
        files["desc-FA_dwimap"] = scan / 99
        for end, data in files.items():
            if (i, end) in lacking:
                continue
            file = root / f"sub-{i}" / "anat" / f"sub-{i}_{end}.nii.gz"
            file.parent.mkdir(parents=True, exist_ok=True)
            kind = "uint8" if end == "dseg" else "float32"
            nib.save(nib.Nifti1Image(data.astype(kind), AFFINE), file)
    (root / "dseg.tsv").write_text("index\tname\n8\tcortex\n200\tlesion\n")
    return root


@pytest.fixture(scope="module")
def bids(tmp_path_factory):
    """Return a dataset of eight subjects, of whom three lack a file."""
    return write_subjects(tmp_path_factory.mktemp("bids"), range(8), LACKING)


@pytest.fixture(scope="module")
def folder(bids):
    """Return a folder with a model and four of its samples."""
    folder = bids.parent / "channels"
    options = ["--channels", *NAMES, *TRAINING, "--cache_dir", folder / "cache"]
    with skipped_training("latent_diffusion"):
        output = execute("train", bids, *options, "--out_dir", folder, cwd=bids.parent)
    assert "5 of 8 subjects" in output
    assert "left out: sub-3 (no dseg), sub-5 (no T2w), sub-6 (no T2w)" in output
    options = ["--n_samples", "4", "--bids", "--out_dir", "made"]
    execute("generate", "ldm.safetensors", *options, cwd=folder)
    return folder


def test_each_channel_is_a_file_of_its_own(folder):
    sample = folder / "made" / "sub-S0001"
    files = sorted(str(path.relative_to(sample)) for path in sample.glob("*/*.nii.gz"))
    assert files == [
        "anat/sub-S0001_desc-synthetic_T1w.nii.gz",
        "anat/sub-S0001_desc-synthetic_T2w.nii.gz",
        "anat/sub-S0001_desc-synthetic_dseg.nii.gz",
        "dwi/sub-S0001_desc-FA_dwimap.nii.gz",
    ]
    scan, _, labels, fa = (nib.load(sample / file) for file in files)
    facts = json.loads((sample / files[2].replace(".nii.gz", ".json")).read_text())
    assert (facts["Channel"], facts["Labels"]) == ("dseg", [8, 200])
    assert labels.get_data_dtype() == "int16"
    assert labels.header.get_intent() == ("label", (), "dseg")
    assert set(np.unique(labels.dataobj)) <= {0, 8, 200}
    table = sample / files[2].replace(".nii.gz", ".tsv")
    assert table.read_text() == "index\tname\n8\tcortex\n200\tlesion\n"
    assert fa.header.get_intent()[2] == "desc-FA"
    assert 0 <= fa.get_fdata().min() <= fa.get_fdata().max() <= 1
    assert scan.shape == labels.shape == fa.shape == (12, 11, 13)
    assert (folder / "made" / ".bidsignore").read_text() == "*_dwimap.*\n"
    names = (folder / "made" / "participants.tsv").read_text().split()
    assert names == ["participant_id", *(f"sub-S000{i}" for i in range(4))]
    refuse_faults_of_bids(folder / "made")


def test_model_keeps_its_channels(folder, bids):
    model = LatentDiffusion.load(folder / "ldm.safetensors")
    assert [channel.name for channel in model.channels_] == NAMES
    assert "channels: T1w, T2w, dseg, desc-FA, from" in repr(model)
    how = {"channels": model.channels_, "cache_dir": folder / "cache"}
    volumes = load_volumes([bids], voxel_size=8, **how)
    clean = model.denoise(volumes.images)
    parts = split_channels(clean, model.channels_)
    assert set(np.unique(parts["dseg"])) <= {0, 8, 200}
    assert parts["desc-FA"].max() <= 1
    with pytest.raises(InputError, match=r"anomaly detector .* dseg \(labels\)"):
        model.fit_detector(volumes.images)


def test_denoised_channels_are_files_of_their_own(folder, bids):
    options = ["--channels", "dseg", "desc-FA", "--repeats", 2, "--difference"]
    options += ["--strength", 0.5, "--steps", 2, "--bids", "--out_dir", "clean"]
    output = execute("denoise", "ldm.safetensors", bids, *options, cwd=folder)
    assert "left out: sub-3 (no dseg)" in output
    assert "volumes are assumed to have a skull, as no JSON file states it" in output
    refuse_faults_of_bids(folder / "clean")
    anat = folder / "clean/sub-0/anat"
    ends = ["", "Difference", "Std"]
    assert not list(anat.glob("*T1w*"))
    files = (anat / f"sub-0_desc-denoised{end}_dseg.nii.gz" for end in ends)
    labels, difference, spread = map(nib.load, files)
    facts = json.loads((anat / "sub-0_desc-denoised_dseg.json").read_text())
    assert (facts["Channel"], len(facts["Sources"])) == ("dseg", 4)
    assert (facts["Labels"], facts["Dtype"]) == ([8, 200], "int16")
    for end, kind in (("Difference", "Difference"), ("Std", "Deviation")):
        facts = json.loads((anat / f"sub-0_desc-denoised{end}_dseg.json").read_text())
        assert (facts["Channel"], "label" in facts[kind]) == ("dseg", True)
        assert not {"Labels", "ChannelKind"} & facts.keys()
        assert facts["Dtype"] == "float32"
    assert labels.get_data_dtype() == "int16"
    assert labels.header.get_intent()[0] == "label"
    before = nib.load(bids / "sub-0/anat/sub-0_dseg.nii.gz").get_fdata()
    assert set(np.unique(labels.dataobj)) <= {0, 8, 200}
    npt.assert_array_equal(difference.get_fdata(), labels.get_fdata() != before)
    assert 0 <= spread.get_fdata().min() <= spread.get_fdata().max() <= 0.5
    fa = nib.load(anat / "sub-0_desc-FADenoised_dwimap.nii.gz").get_fdata()
    assert 0 <= fa.min() <= fa.max() <= 1
    options.append("--resume")
    output = execute("denoise", "ldm.safetensors", bids, *options, cwd=folder)
    assert "5 of 5 volumes were already denoised" in output


def test_channels_are_filled_by_name(folder, bids):
    scans = bids / "sub-0/anat"
    hole = np.zeros((12, 11, 13), "uint8")
    hole[4:6, 4:6, 4:6] = 1
    nib.save(nib.Nifti1Image(hole, AFFINE), folder / "hole.nii.gz")
    options = ["--mask_files", "hole.nii.gz", "--channels", "dseg", "--n_samples", 2]
    options += ["--steps", 2, "--resamplings", 1, "--bids", "--out_dir", "filled"]
    execute("inpaint", "ldm.safetensors", scans, *options, cwd=folder)
    ends = ("Mask", "Mean", "Std", "-0000", "-0001")
    refuse_faults_of_bids(folder / "filled")
    anat = folder / "filled/sub-0/anat"
    names = [p.name for p in sorted(anat.glob("*.nii.gz"))]
    assert len(names) == len(ends)
    assert all("dseg" in name for name in names)
    with_labels = {"Mean", "-0000", "-0001"}
    for end in ends:
        own = f"sub-0_desc-inpainted{end.strip('-')}_dseg.json"
        facts = json.loads((anat / own).read_text())
        assert facts["Channel"] == "dseg"
        assert ("Labels" in facts) == (end in with_labels)
    before = nib.load(scans / "sub-0_dseg.nii.gz").get_fdata()
    means = nib.load(anat / "sub-0_desc-inpaintedMean_dseg.nii.gz")
    assert means.get_data_dtype() == "int16"
    assert set(np.unique(means.dataobj)) <= {0, 8, 200}
    npt.assert_array_equal(means.get_fdata()[hole == 0], before[hole == 0])


@pytest.fixture(scope="module")
def scan(bids):
    """Return the channels of a subject in memory, of which one is on a finer grid."""
    stem = str(bids / "sub-0/anat/sub-0")
    scan = {name: nib.load(f"{stem}_{end}.nii.gz") for name, end in ENDS.items()}
    fine = np.asarray(scan["dseg"].dataobj).repeat(2, 0).repeat(2, 1).repeat(2, 2)
    affine = np.diag([4.0, 4, 4, 1])
    affine[:3, 3] = -2
    return scan | {"dseg": nib.Nifti1Image(fine, affine)}


def test_channels_in_memory_come_back_each_in_its_space(
    folder, scan, bids, tmp_path, monkeypatch
):
    model = LatentDiffusion.load(folder / "ldm.safetensors")
    monkeypatch.setenv("HOME", str(bids))
    files = {n: f"~/sub-0/anat/sub-0_{end}.nii.gz" for n, end in ENDS.items()}
    assert list(model.denoise(files, strength=0)) == NAMES
    clean = model.denoise(scan, strength=0)
    shapes = ({n: i.shape for n, i in images.items()} for images in (clean, scan))
    assert next(shapes) == next(shapes)
    assert clean["dseg"].get_data_dtype() == "int16"
    clean["dseg"].to_filename(tmp_path / "dseg.nii.gz")
    assert json.loads((tmp_path / "dseg.json").read_text())["Labels"] == [8, 200]
    mask = nib.Nifti1Image(np.zeros((12, 11, 13), "uint8"), AFFINE)
    mask.dataobj[4:7, 4:7, 4:7] = 1
    few = {"steps": 1, "resamplings": 1}
    (filled,) = model.inpaint([scan], mask, channels=["dseg", "desc-FA"], **few)
    assert list(filled) == ["dseg", "desc-FA"]
    fine = np.asarray(mask.dataobj).repeat(2, 0).repeat(2, 1).repeat(2, 2) == 0
    outside = (np.asarray(image["dseg"].dataobj)[fine] for image in (filled, scan))
    npt.assert_array_equal(*outside)
    (sample,) = model.predict(1, steps=1, as_images=True)
    assert set(np.unique(sample["dseg"].dataobj)) <= {0, 8, 200}
    with pytest.raises(InputError, match="desc-FA is missing .given: T1w, T2w, dseg"):
        model.denoise({name: scan[name] for name in NAMES[:-1]})
    other = nib.load(bids / "sub-1/anat/sub-1_dseg.nii.gz")
    with pytest.raises(InputError, match="are of different subjects or sessions; give"):
        model.denoise(scan | {"dseg": other})
    with pytest.raises(InputError, match="unknown channel 'PDw'; choose one of T1w"):
        model.inpaint(scan, mask, channels=["PDw"])
    with pytest.raises(InputError, match="give each scan as a dictionary"):
        model.denoise([scan, scan["T1w"]])


@pytest.mark.parametrize(
    ("command", "options", "sentence"),
    [
        ("denoise", "--suffix T1w", "have suffixes of their own; leave out --suffix"),
        ("denoise", "--channels PDw", "unknown channel 'PDw'; choose one of T1w, T2w"),
        ("denoise", "--filter sub=3", "no file has the suffix dseg; there are "),
        ("generate", "--bids --suffix T1w --out_dir other", "leave out --suffix"),
    ],
)
def test_options_that_do_not_suit_channels(folder, bids, command, options, sentence):
    scans = [bids] if command == "denoise" else []
    words = ("ldm.safetensors", *scans, *options.split())
    assert sentence in execute(command, *words, cwd=folder, status=2)


def test_tables_of_labels_are_not_overwritten(folder, bids):
    document = _serialization.read_document(folder / "ldm.safetensors")
    samples = Samples.in_dataset(folder / "new", range(1), None, document)
    tables = [path.name for path in samples.paths if path.suffix == ".tsv"]
    assert tables == ["sub-S0000_desc-synthetic_dseg.tsv"]
    table = folder / "kept" / "sub-0_desc-denoised_dseg.tsv"
    table.parent.mkdir()
    table.touch()
    how = ("--channels", "dseg", "--out_dir", "kept")
    scans = bids / "sub-0" / "anat"
    output = execute("denoise", "ldm.safetensors", scans, *how, cwd=folder, status=2)
    assert f"{table.name} exists already" in output


def test_images_to_evaluate_by_are_put_together(folder, bids):
    document = _serialization.read_document(folder / "ldm.safetensors")
    read = partial(read_for, document, cache_dir=folder / "cache")
    real = read([bids], "real_files")
    generated = read([folder / "made"], "generated_files", generated=True)
    assert (
        real.images.shape[1:] == generated.images.shape[1:] == tuple(document["shape"])
    )
    assert (len(real.images), len(generated.images)) == (5, 4)
    assert set(np.unique(generated.images[..., 2:4])) <= {0, 1}
    assert "each label of dseg counts as a channel of 0 and 1." in real.notes[-1]


def test_channels_are_evaluated_and_audited_by_the_commands(folder, tmp_path):
    subjects = write_subjects(tmp_path / "others", range(100, 140))
    how = ("ldm.safetensors", "--cache_dir", tmp_path / "cache", "--steps", 1)
    files = ("--real_files", subjects, "--n_samples", 40, "--out_dir", tmp_path)
    execute("evaluate", *how, *files, cwd=folder)
    figures = json.loads((tmp_path / "evaluation.json").read_text())["Figures"]
    assert figures["channels"].keys() == {"dseg", "desc-FA"}
    assert any("lesion" in name for name in figures["channels"]["dseg"])
    held_out = write_subjects(tmp_path / "held_out", range(200, 220))
    files = ("--train_files", subjects, "--held_out", held_out, "--out_dir", tmp_path)
    execute("audit", *how, *files, "--n_samples", 20, cwd=folder)
    assert json.loads((tmp_path / "audit.json").read_text())


def test_check_takes_named_channels(folder, bids):
    options = ["--seconds", "0", "--cache_dir", "cache", *TRAINING]
    arguments = (bids, "--channels", *NAMES, *options)
    _, *outputs = call("dipy_check_ldm", *arguments, cwd=folder)
    assert "left out: sub-3 (no dseg)" in "".join(outputs)
    page = json.loads((folder / "check.json").read_text())
    channels = {f["title"]: f["state"] for f in page["Findings"]["Channels"]}
    assert channels == {"dseg": "green", "desc-FA": "green"}
    states = {f["title"]: f["state"] for f in page["Findings"]["Files"]}
    assert states["files"] == "green"
