"""``dipy_denoise_ldm --lesions`` inpaints detected lesions, and nothing else."""

import json
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import numpy.testing as npt
from processes import load_model
import pytest
from scans import blocky_volumes, grid_affine, make_scan, raw_voxels, save

from dipy_ldm import LatentDiffusion
from dipy_ldm._native_space import Scan
from dipy_ldm.anomaly_detector import AnomalyDetector
from dipy_ldm.data._grid import Grid
from dipy_ldm.data.channels import Channel
from dipy_ldm.diffusion._inpainting import dilated
from dipy_ldm.workflows._process_scans import find_lesions


def threshold_for(model_path, scan):
    """Say from which probability on a few voxels of a scan are taken for lesions."""
    image, _ = Channel("T1w").read(scan, Grid((12, 11, 13), grid_affine()))
    likely = load_model(model_path).detect(image[None])
    return float(np.quantile(likely, 0.97))


@pytest.fixture(scope="module")
def detector_path(model_path, tmp_path_factory):
    """Return the file of a model whose detector has learnt hardly anything."""
    options = {"epochs": 1, "batch_size": 4, "verbose": False}
    model = LatentDiffusion.load(model_path)
    detector = AnomalyDetector(widths=(4, 4), blocks=1)
    model.detector_ = detector.fit(blocky_volumes(), **options)
    path = tmp_path_factory.mktemp("model") / "ldm.safetensors"
    model.save(path)
    return path


def test_denoise_lesions_replaces_them_alone(command, detector_path, tmp_path):
    path, raw, affine = make_scan(tmp_path)
    threshold = threshold_for(detector_path, path)
    find = ("--lesions", "--threshold", threshold, "--difference", "--dilate", 4)
    command("denoise", detector_path, path, *find, "--repeats", 2, "--steps", 2)

    def read(end):
        image = nib.load(tmp_path / f"scan_denoised{end}.nii.gz")
        npt.assert_allclose(image.affine, nib.load(path).affine, atol=1e-5)
        facts = (tmp_path / f"scan_denoised{end}.json").read_text()
        return image.get_fdata(), json.loads(facts)

    denoised, _ = read("")
    mask, facts = read("_mask")
    changed = dilated(mask > 0, 4, np.linalg.norm(affine[:3, :3], axis=0))
    assert 0 < (mask > 0).sum() < changed.sum() < changed.size
    assert facts["Role"] == "mask"
    millilitres = (mask > 0).sum() * np.abs(np.linalg.det(affine)) / 1000
    npt.assert_allclose(facts["LesionMillilitres"], millilitres, rtol=1e-4)
    voxels = raw_voxels(tmp_path / "scan_denoised.nii.gz")
    npt.assert_array_equal(voxels[~changed], raw[~changed])
    (spread, _), (difference, facts) = read("_std"), read("_difference")
    for volume in (difference, spread):
        assert not volume[~changed].any()
        assert (volume[changed] != 0).mean() > 0.8
    # To what the type of the file can hold.
    npt.assert_allclose(difference, nib.load(path).get_fdata() - denoised, atol=0.3)
    assert facts["Difference"] == "scan minus result"
    assert facts["Threshold"] == threshold and facts["DilatedBy"] == 4
    assert "Strength" not in facts


def test_denoise_lesions_of_a_scan_without(command, detector_path, tmp_path):
    path, raw, _ = make_scan(tmp_path)
    options = ("--lesions", "--threshold", 1, "--difference")
    command("denoise", detector_path, path, *options)
    npt.assert_array_equal(raw_voxels(tmp_path / "scan_denoised.nii.gz"), raw)
    for end in ("_mask", "_difference"):
        assert not nib.load(tmp_path / f"scan_denoised{end}.nii.gz").get_fdata().any()


def test_find_lesions_that_fill_half_of_thick_slices(tmp_path, rng):
    likely = np.zeros((1, 20, 20, 20), "float32")
    likely[0, 6:9, 6:9, 4:9] = 1
    files, affines = [], [np.eye(4), np.diag([1.0, 1, 5, 1])]
    affines[1][2, 3] = 2
    for name, affine, n in zip(("T1w", "FLAIR"), affines, (20, 4), strict=True):
        files.append(tmp_path / f"sub-1_{name}.nii")
        save(files[-1], rng.uniform(20, 200, (20, 20, n)), affine)
    model = SimpleNamespace(detect=lambda images, tile: likely)
    channels = [Channel("T1w"), Channel("FLAIR")]
    grid = Grid((20, 20, 20), affines[0])
    scan = Scan.read(channels, files, grid)
    lesions = find_lesions(model, scan, 0.5, None)
    assert [hole.sum() for hole in lesions] == [45, 9]
    likely[0, :, :, 6:] = 0
    lesions = find_lesions(model, scan, 0.5, None)
    assert [hole.sum() for hole in lesions] == [18, 0]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ("--lesions --threshold 2", "must lie between 0 and 1"),
        ("--lesions --strength 0.2", "--strength has no effect with --lesions"),
        ("--lesions --dtype int16", "--dtype has no effect with --lesions"),
        ("--lesions --threshold 0", "is detected as lesion"),
        ("--threshold 0.2", "--threshold has no effect without --lesions"),
        ("--dilate 1", "--dilate has no effect without --lesions"),
        ("--lesions --dilate -1", "dilate must be at least 0"),
    ],
)
def test_denoise_lesions_refuses(command, detector_path, tmp_path, options, sentence):
    path, *_ = make_scan(tmp_path)
    words = (detector_path, path, *options.split())
    assert sentence in command("denoise", *words, status=2)
    assert not list(tmp_path.glob("*denoised*"))


def test_denoise_lesions_refuses_a_model_without_a_detector(
    command, model_path, tmp_path
):
    path, *_ = make_scan(tmp_path)
    output = command("denoise", model_path, path, "--lesions", status=2)
    assert "has no anomaly detector; train one" in output


def test_train_a_detector(
    command, tmp_path, monkeypatch, untrained, untrained_autoencoders
):
    sizes = {"widths": (4, 4), "blocks": 1}
    monkeypatch.setattr(AnomalyDetector.__init__, "__kwdefaults__", sizes | {"seed": 0})
    for number in range(6):
        make_scan(tmp_path, name=f"sub-{number}")
    sizes = ("--widths_vqvae", 4, 4, "--widths_ldm", 4, 8, "--code_dim", 2)
    steps = ("--steps_vqvae", 3, "--steps_ldm", 3, "--steps_detector", 3)
    places = ("--voxel_size", 8, "--cache_dir", "cache", "--batch_size", 2)
    command(*("train", tmp_path, *sizes, *steps, *places, "--validation", 0.3))
    history = (tmp_path / "history.csv").read_text().splitlines()
    assert "val_dice" in history[0]
    stages = [line.partition(",")[0] for line in history[1:]]
    assert list(dict.fromkeys(stages)) == ["autoencoder", "diffusion", "detector"]
    model = LatentDiffusion.load(tmp_path / "ldm.safetensors")
    assert model.detector_.history_["step"][-1] == 3
    assert not list(tmp_path.glob("*checkpoint*"))
