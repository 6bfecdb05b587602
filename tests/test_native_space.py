"""Estimators on files and nibabel images, in the space of each scan."""

from itertools import product
import json
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import numpy.testing as npt
import pytest
from scans import blocky_volumes, grid_affine, make_scan, save

from dipy_ldm import VQVAE, InputError, LatentDiffusion
from dipy_ldm._native_space import (
    Scan,
    check_on_grid,
    hole_of_file,
    warn_of_probabilities,
)
from dipy_ldm._serialization import find
from dipy_ldm.data import load_volumes
from dipy_ldm.data._grid import Grid
from dipy_ldm.data._scans import read_cohort, require_affine
from dipy_ldm.data._sources import Source
from dipy_ldm.data._table_rows import join_to_files
from dipy_ldm.data.channels import Labels, as_channels
from dipy_ldm.data.volumes import Volumes
from dipy_ldm.workflows._process_scans import _grid_and_channels

pytestmark = pytest.mark.usefixtures("no_real_cache")
FIT = {"steps": 2, "batch_size": 4, "verbose": False}


@pytest.fixture(scope="module")
def model(model_path):
    return LatentDiffusion.load(model_path)


@pytest.fixture
def scan(tmp_path):
    return make_scan(tmp_path)[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder of eight volumes, in order."""
    path = tmp_path_factory.mktemp("cohort")
    for i, volume in enumerate(blocky_volumes()):
        save(path / f"sub-{i:02d}_T1w.nii.gz", volume[..., 0], grid_affine())
    return path


def test_files_folders_images_and_volumes_are_the_same_cohort(
    folder, untrained, untrained_autoencoders
):
    files = sorted(folder.glob("*.nii.gz"))
    volumes = load_volumes([folder])
    for images in (str(folder), files, [nib.load(f) for f in files], volumes):
        cohort = read_cohort(images)
        assert cohort.suffix == "T1w"
        assert cohort.subjects == [f"sub-{i:02d}" for i in range(8)]
        npt.assert_allclose(cohort.affine, grid_affine())
        npt.assert_array_equal(cohort.images, volumes.images)
    vqvae = VQVAE(widths=(4, 4), n_codes=16, code_dim=2, n_codebooks=1)
    vqvae.fit(folder, **FIT)
    assert vqvae.suffix_ == "T1w"
    npt.assert_allclose(vqvae.affine_, grid_affine())
    model = LatentDiffusion(vqvae, widths=(4, 8), guide=False)
    table = {"participant_id": [f"sub-{i:02d}" for i in (5, 4, 3, 2, 1, 0)]}
    table["age"] = [55.5, 54, 53, 52, 51, 50]
    model.fit(files[:6], table, validation_data=files[6:], **FIT)
    assert list(model.conditions_) == ["age"]
    with pytest.raises(InputError, match="sub-00 are in both"):
        model.fit(folder, validation_data=files[:1], **FIT)
    npt.assert_array_equal(vqvae.encode(files[0]), vqvae.encode(volumes.images[:1]))
    for use in (vqvae.encode, vqvae.predict, model.denoise):
        npt.assert_array_equal(use(volumes), use(volumes.images))


def test_volumes_of_another_grid_or_other_channels_are_refused(model):
    images, files = blocky_volumes(), [f"sub-{i}_T1w.nii" for i in range(8)]
    volumes = Volumes(images, None, grid_affine(), files)
    assert model.vqvae_._read_cohort(volumes).images is images
    volumes.channels = as_channels(["FA"])
    with pytest.raises(InputError, match="have other channels, labels or ranges"):
        model.vqvae_._read_cohort(volumes)
    for use in (model.vqvae_.encode, model.vqvae_.predict):
        with pytest.raises(InputError, match="have other channels, labels or ranges"):
            use(volumes)
    moved = Volumes(images, None, np.diag([2, 2, 2, 1]) @ grid_affine(), files)
    with pytest.raises(InputError, match="lie on another grid .*grid=Grid"):
        model.vqvae_._read_cohort(moved)
    with pytest.raises(InputError, match="lie on another grid .*grid=Grid"):
        VQVAE().fit(volumes, validation_data=moved, **FIT)


def test_models_of_arrays_of_another_range_refuse_files(model, scan, monkeypatch):
    volumes = Volumes(blocky_volumes(), None, grid_affine(), ["a"] * 8)
    monkeypatch.setattr(model.vqvae_, "intensity_", (0.0, 900.0))
    sentence = "fitted to arrays from 0 to 900; give"
    uses = model.denoise, model.vqvae_.encode, model.vqvae_.predict
    for use, images in product(uses, (scan, volumes)):
        with pytest.raises(InputError, match=sentence):
            use(images)
    with pytest.raises(InputError, match=sentence):
        _grid_and_channels(model.to_document(), "m", "denoise")
    for source, sentence in (
        (Source(1, [-900.0, 900.0], [], ""), "fitted to arrays from -900 to 900; give"),
        # Labels are as they were.
        (Source(1, [0.0, 7.0], [0, 7], ""), "not a segmentation"),
    ):
        monkeypatch.setattr(model, "source_", source)
        with pytest.raises(InputError, match=sentence):
            model.predict(source=scan)


class Tensor:
    """Stand for a tensor of PyTorch, whose type is none of NumPy."""

    dtype = object()
    ndim = 4

    def __array__(self, *args, **kwargs):
        return np.zeros((2, 5, 5, 1), "float32")


def test_read_cohort_of_arrays():
    assert read_cohort(Tensor()).images.shape == (2, 5, 5, 1)
    with pytest.raises(InputError, match="images differ in shape; give one array"):
        read_cohort([np.zeros((5, 5, 1)), np.zeros((5, 6, 1))])
    images = np.ma.masked_less(np.eye(5)[None, ..., None] - 1, 0)
    for masked in (images, list(images)):
        with pytest.raises(InputError, match="masked values in images, .*filled"):
            read_cohort(masked)
    assert read_cohort(np.ma.array(images.filled(0))).images.max() == 0


def test_a_scan_comes_back_in_its_own_space(model, scan, tmp_path):
    with pytest.raises(InputError, match="is given twice; give each scan once"):
        model.denoise([scan, scan])
    image = nib.load(scan)
    denoised = model.denoise(scan, seed=3)
    assert denoised.shape == image.shape
    npt.assert_allclose(denoised.affine, image.affine)
    (other,) = model.denoise([image], seed=3)
    npt.assert_array_equal(other.get_fdata(), denoised.get_fdata())
    assert other.facts["Sources"] == ["image-0/scan.nii"]
    nib.save(denoised, tmp_path / "out.nii")
    facts = json.loads((tmp_path / "out.json").read_text())
    assert facts["Sources"] == [str(scan)]
    assert (facts["Synthetic"], facts["Seed"]) == (True, 3)
    written = nib.load(tmp_path / "out.nii")
    npt.assert_array_equal(written.get_fdata(), denoised.get_fdata())
    assert b"synthetic: dipy_ldm" in bytes(written.header["descrip"])
    assert model.vqvae_.predict(scan).shape == image.shape


def test_command_and_python_give_the_same_volume(model, model_path, scan, command):
    image = nib.load(scan)
    image.set_sform(image.affine, 4)  # that of MNI
    nib.save(image, scan)
    command("denoise", model_path, scan, "--seed", 3)
    written = nib.load("scan_denoised.nii.gz")
    facts = json.loads(Path("scan_denoised.json").read_text())
    denoised = model.denoise(scan, seed=3, first=facts["Noise"])
    npt.assert_array_equal(written.get_fdata(), denoised.get_fdata())
    denoised.to_filename("python.nii.gz")
    for image in (written, denoised, nib.load("python.nii.gz")):
        assert image.header["sform_code"] == 4
    for name in ("Strength", "Sampler", "Steps", "Seed", "Noise", "Sources"):
        assert denoised.facts[name] == facts[name]


def test_inpainting_leaves_the_rest_to_the_bit(model, scan):
    image = nib.load(scan)
    hole = np.zeros(image.shape, "uint8")
    hole[10:18, 8:16, 8:18] = 1
    mask = nib.Nifti1Image(hole, image.affine)
    samples = model.inpaint(image, mask, n_samples=2, steps=2, resamplings=1)
    before = image.get_fdata(dtype=np.float32)
    for sample in samples:
        npt.assert_array_equal(sample.get_fdata()[hole == 0], before[hole == 0])
    assert (samples[0].get_fdata() != samples[1].get_fdata()).any()
    assert [sample.facts["Sample"] for sample in samples] == [0, 1]
    used = {"Samples": 2, "Resamplings": 1, "Steps": 2, "Seed": 0, "Noise": 0}
    used["Sources"] = ["image-0/scan.nii", "image-0/scan.nii"]  # and the mask
    assert used.items() <= samples[1].facts.items()
    (alone,) = model.inpaint([scan], [mask], steps=2, resamplings=1)
    npt.assert_allclose(alone.get_fdata(), samples[0].get_fdata(), rtol=1e-4)


def test_generated_images_are_written_with_their_provenance(
    model, tmp_path, monkeypatch
):
    first, second = model.predict(2, seed=5, steps=2, as_images=True)
    npt.assert_allclose(first.affine, grid_affine())
    arrays = model.predict(2, seed=5, steps=2)
    npt.assert_array_equal(second.get_fdata(), arrays[1, ..., 0])
    monkeypatch.setenv("HOME", str(tmp_path))
    nib.save(second, "~/sample.nii.gz", dtype="int16")
    written = nib.load(tmp_path / "sample.nii.gz")
    assert written.get_data_dtype() == np.int16
    npt.assert_allclose(written.get_fdata(), second.get_fdata(), atol=1e-3)
    facts = json.loads((tmp_path / "sample.json").read_text())
    assert (facts["Sample"], facts["Seed"], facts["Steps"]) == (1, 5, 2)
    # What others make of it is written by nibabel alone.
    second.slicer[:4].to_filename(tmp_path / "part.nii.gz")
    assert not (tmp_path / "part.json").exists()
    part = nib.load(tmp_path / "part.nii.gz")
    assert bytes(part.header["descrip"]).startswith(b"synthetic: dipy_ldm")
    with pytest.raises(InputError, match="unknown type of voxels 'smallest'"):
        first.to_filename(tmp_path / "b.nii.gz", dtype="smallest")
    with pytest.raises(InputError, match="mode has no effect on a synthetic image"):
        first.to_filename(tmp_path / "b.nii.gz", mode="compat")


def test_models_may_be_in_the_home_folder(model, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    model.save("~/ldm.safetensors")
    model.vqvae_.save("~/vqvae.safetensors")
    for name in ("ldm.safetensors", "vqvae.safetensors"):
        assert find(f"~/{name}") == find(Path(f"~/{name}")) == tmp_path / name
        assert (tmp_path / name).is_file()


NOT_FINITE = nib.Nifti1Image(np.full((9, 9, 9), np.nan), np.eye(4))


@pytest.mark.parametrize(
    ("method", "images", "sentence"),
    [
        ("denoise", ["a.nii", np.zeros((1, 4, 4, 4))], "arrays and files are mixed"),
        ("denoise", "missing.nii.gz", "there is no file missing.nii.gz"),
        (
            "denoise",
            iter(["a.nii"]),
            "images are an iterator, .*; give list\\(...\\) of",
        ),
        ("denoise", nib.GiftiImage(), "is not a volume but a GiftiImage"),
        (
            "denoise",
            nib.Nifti1Image(np.ones((9, 9, 9), "complex64"), np.eye(4)),
            "image-0 has complex voxels",
        ),
        ("denoise", NOT_FINITE, "^image-0/scan.nii has NaN or infinite values"),
        ("fit", NOT_FINITE, "^image-0/scan.nii has NaN or infinite values"),
    ],
)
def test_bad_images_are_refused_by_one_sentence(model, method, images, sentence):
    estimator = VQVAE() if method == "fit" else model
    with pytest.raises(InputError, match=sentence) as refusal:
        getattr(estimator, method)(images)
    assert "\n" not in str(refusal.value)


def test_images_far_apart_have_no_common_grid():
    shifted = np.eye(4)
    shifted[0, 3] = 1e4
    data = np.random.default_rng(0).random((9, 9, 9))
    with pytest.raises(InputError, match="the volumes lie far apart"):
        VQVAE().fit([nib.Nifti1Image(data, affine) for affine in (np.eye(4), shifted)])


def test_masks_of_another_grid_are_refused(model, scan):
    with pytest.raises(InputError, match="image-0/scan.nii has another grid"):
        model.inpaint(scan, nib.Nifti1Image(np.ones((5, 5, 5), "uint8"), np.eye(4)))


def test_hole_of_a_file_of_larger_voxels():
    hole, affine = np.zeros((8, 8, 8), bool), np.eye(4)
    hole[2, 2, 2:4] = True
    coarse = np.diag([2.0, 2, 2, 1])
    coarse[:3, 3] = 0.5
    file, grid, mask = Path("FA.nii"), Grid((4, 4, 4), coarse), Grid((8, 8, 8), affine)
    resampled = hole_of_file(file, grid, hole, mask)
    assert resampled[1, 1, 1]
    assert not resampled[:, :, 3].any()
    hole[:] = True
    with pytest.raises(InputError, match="the mask covers all of FA.nii; use"):
        hole_of_file(file, grid, hole, mask)


def test_masked_scan_of_labels_that_leave_the_grid(tmp_path):
    data = np.full((16, 8, 8, 1), 3, "float32")
    data[:, :4] = 7
    hole = np.zeros(data.shape[:3], bool)
    hole[4:12, 2:6, 2:6] = True
    labels, grid = Labels("dseg", labels=(3, 7)), Grid((8, 8, 8), np.eye(4))
    save(tmp_path / "dseg.nii", data[..., 0], np.eye(4))
    files = [tmp_path / "dseg.nii"]
    scan = Scan.read_masked([labels], files, hole, np.eye(4), grid)
    npt.assert_array_equal(scan.inpainted(scan.image), [data])
    npt.assert_array_equal(scan.hole, hole[:8])
    same = scan.masked([hole])
    npt.assert_array_equal(same.image, scan.image)
    npt.assert_array_equal(same.inpainted(same.image), [data])
    image = scan.masked([hole & False]).image
    npt.assert_array_equal(labels.to_values(image), data[:8, ..., 0])


def test_check_on_grid(caplog):
    file, grid = Path("mask.nii"), Grid((8, 8, 8), np.eye(4))
    hole = np.zeros((16, 8, 8), bool)
    hole[4:8, 2:6, 2:6] = True
    check_on_grid(file, hole, np.eye(4), grid)
    assert not caplog.text
    hole[8:12, 2:6, 2:6] = True
    check_on_grid(file, hole, np.eye(4), grid)
    assert "50 % of the mask mask.nii lies outside the grid" in caplog.text
    hole[:8] = False
    with pytest.raises(InputError, match="has nothing on the grid of the model"):
        check_on_grid(file, hole, np.eye(4), grid)
    point = np.zeros((32, 32, 32), bool)
    point[10, 10, 10] = True
    with pytest.raises(InputError, match="is too small for the voxels of the model"):
        check_on_grid(file, point, np.diag([0.25, 0.25, 0.25, 1]), grid)


def test_warn_of_probabilities(caplog):
    shares = np.linspace(0, 1, 11)
    warn_of_probabilities(Path("mask.nii"), shares)
    assert not caplog.text
    warn_of_probabilities(Path("mask.nii"), shares**2)
    assert "mask.nii above 0 are inpainted" in caplog.text


def test_warnings_name_the_file_in_the_arguments_of_their_record(
    model, scan, caplog, monkeypatch
):
    gaussian = SimpleNamespace(relative_distances=lambda x: np.full(len(x), 9.0))
    gaussian.max_distance = 4
    prior = SimpleNamespace(conditional_mean=None, gaussian=gaussian)
    monkeypatch.setattr(model._denoiser, "prior", prior)
    model.denoise(scan, strength=0)
    model.denoise(nib.load(scan), strength=0)
    names = [record.args[0] for record in caplog.records]
    assert names == [scan, Path("image-0/scan.nii")]


def test_conditions_are_joined_to_scans():
    files = [Path(f"sub-{i}_ses-a_T1w.nii.gz") for i in (1, 2)]
    table = {"participant_id": ["2", "1"], "age": [20, 10]}
    assert join_to_files(table, files) == {"age": [10, 20]}
    with pytest.raises(InputError, match="1 of 1 images have no row"):
        join_to_files(table, [Path("sub-3_T1w.nii.gz")])
    for conditions in (None, "none", {"age": 70}, {"age": [1, 2]}):
        assert join_to_files(conditions, files) == conditions
        assert join_to_files(conditions, []) == conditions


def test_scans_and_images_are_for_models_of_volumes(scan):
    of_images = LatentDiffusion.load("mnist")
    with pytest.raises(InputError, match="this model has no affine"):
        require_affine(None)
    with pytest.raises(InputError, match="two-dimensional images, but these are vol"):
        of_images.denoise(scan)
    with pytest.raises(InputError, match="inpaint them with LatentDiffusion.inpaint,"):
        _grid_and_channels(of_images.to_document(), "mnist", "inpaint")
    with pytest.raises(InputError, match="`as_images` is for models of volumes"):
        of_images.predict(1, as_images=True)
