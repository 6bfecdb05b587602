"""Diffusion series as images with b-values, directions and source images."""

import itertools
import re

import nibabel as nib
import numpy as np
import numpy.testing as npt
import pytest
from scipy.spatial.transform import Rotation

from dipy_ldm import InputError
from dipy_ldm.data._bvals_bvecs import Gradients
from dipy_ldm.data._conforming import MeasuredSeries
from dipy_ldm.data._pairing import read_series

BVALS = np.array([0, 1000, 5, 1000, 2000.0])
# Along the world's axes, of length 1 where b is above 50.
DIRECTIONS = np.array([[0, 0, 0], [1, 0, 0], [0, 0, 0], [0.6, 0.8, 0], [0, -0.6, 0.8]])


def turned(axes):
    """Return an affine of voxels of 2 mm, with axes to L or R, or oblique."""
    oblique = Rotation.from_euler("ZX", [0.4, 0.4]).as_matrix()
    turns = {"LAS": np.diag([-1, 1, 1]), "RAS": np.eye(3), "oblique": oblique}
    affine = np.eye(4)
    affine[:3, :3] = 2 * turns[axes]
    return affine


AFFINE = turned("RAS")


def fsl_vectors(affine):
    """Return the directions as FSL has them: along voxels, the first to the left."""
    along = DIRECTIONS @ (affine[:3, :3] / 2)
    if np.linalg.det(affine[:3, :3]) > 0:
        along[:, 0] *= -1
    return along


def save_series(folder, name="sub-1_dwi", affine=AFFINE, scale=900, n=5, **changed):
    """Write a series of ``n`` volumes that are known shares of b = 0."""
    x = np.linspace(0.1, 1, 8)
    b0 = scale * x[:, None, None] * x[None, :, None] * np.ones(8)
    attenuation = np.array([1.02, 0.5, 0.98, 0.3, 0.1])
    data = (b0[..., None] * attenuation[:n]).astype("float32")
    nib.save(nib.Nifti1Image(data, affine), folder / f"{name}.nii.gz")
    tables = {"bval": BVALS[:n], "bvec": fsl_vectors(affine)[:n].T} | changed
    for end, table in tables.items():
        if table is not None:
            np.savetxt(folder / f"{name}.{end}", np.atleast_2d(table))
    return folder / f"{name}.nii.gz"


@pytest.mark.parametrize("axes", ["LAS", "RAS", "oblique"])
def test_load_volumes_gives_directions_in_the_world(tmp_path, load, axes):
    file = save_series(tmp_path, affine=turned(axes))
    gradients = load(file, dwi=True).gradients
    npt.assert_allclose(gradients["direction"], DIRECTIONS[[1, 3, 4]], atol=1e-6)
    assert gradients["bval"] == [1000, 1000, 2000]
    assert gradients.units == {"bval": "s/mm^2"}
    rotated = Gradients.beside(file, 5).rotated(turned(axes), turned("LAS"))
    npt.assert_allclose(rotated.bvecs, fsl_vectors(turned("LAS")), atol=1e-6)


VECTORS = fsl_vectors(AFFINE)


@pytest.mark.parametrize(
    ("bvals", "table", "bvecs"),
    [
        (BVALS[:3], VECTORS[:3].T, VECTORS[:3]),  # as columns, like FSL's
        ([1000], VECTORS[3:4], VECTORS[3:4]),
        ([1000], VECTORS[3:4].T, VECTORS[3:4]),
    ],
)
def test_gradients_of_three_directions_or_one_are_read(tmp_path, bvals, table, bvecs):
    np.savetxt(tmp_path / "a.bval", np.atleast_2d(bvals))
    np.savetxt(tmp_path / "a.bvec", table)
    gradients = Gradients.read(tmp_path / "a.bval", tmp_path / "a.bvec")
    npt.assert_array_equal(gradients.bvals, bvals)
    npt.assert_allclose(gradients.bvecs, bvecs, atol=1e-6)


def test_load_volumes_scales_series_by_their_b0(tmp_path, load):
    save_series(tmp_path)
    save_series(tmp_path, "sub-2_dwi", scale=30)
    volumes = load(tmp_path, dwi=True)
    assert volumes.images.shape == volumes.sources.shape == (6, 8, 8, 8, 1)
    attenuation = np.reshape([0.5, 0.3, 0.1] * 2, (6, 1, 1, 1, 1))
    inside = volumes.sources < 0.9
    attenuated = (attenuation * volumes.sources)[inside]
    npt.assert_allclose(volumes.images[inside], attenuated, rtol=1e-5)
    npt.assert_allclose(volumes.images[:3], volumes.images[3:], rtol=1e-5)
    assert volumes.subjects == ["sub-1"] * 3 + ["sub-2"] * 3
    assert load(tmp_path, dwi=True).images.filename == volumes.images.filename
    save_series(tmp_path, bval=BVALS + 100 * (BVALS > 50))
    changed = load(tmp_path, dwi=True)
    assert changed.images.filename != volumes.images.filename
    assert changed.gradients["bval"][:3] == [1100, 1100, 2100]


def test_load_volumes_keeps_series_of_a_subject_together(tmp_path, load):
    for name in ("sub-1_run-1_dwi", "sub-2_dwi", "sub-1_run-2_dwi", "other"):
        save_series(tmp_path, name)
    save_series(tmp_path, "sub-2_dwi", n=4)
    subjects = load(tmp_path, dwi=True, shuffle=True).subjects
    counts = [len([*own]) for _, own in itertools.groupby(subjects)]
    assert sorted(counts) == [2, 3, 6]


def test_load_volumes_shares_a_mask_among_the_volumes_of_a_series(tmp_path, load):
    file, mask = save_series(tmp_path), np.zeros((8, 8, 8), "uint8")
    mask[2:5] = 1
    nib.save(nib.Nifti1Image(mask, AFFINE), tmp_path / "mask.nii")
    masks = load(file, dwi=True, mask_files=[tmp_path / "mask.nii"]).masks
    npt.assert_array_equal(masks, [mask] * 3)


ALONG_X = DIRECTIONS[[1] * 5]
NAN_BVALS = np.where(BVALS == 5, np.nan, BVALS)
UNREADABLE = "can't be read as b-values and directions"
BAD = {
    "no-bval": ({"bval": None}, "has no .bval beside it"),
    "no-bvec": ({"bvec": None}, "has no .bvec beside it"),
    "short": ({"bval": BVALS[:4], "bvec": DIRECTIONS[:4].T}, "5 volumes, and .* 4 dir"),
    "unequal": ({"bvec": DIRECTIONS[:4].T}, "has 5 b-values and .* 4 directions"),
    "unit": ({"bvec": 2 * DIRECTIONS.T}, "not of length 1 .* leave out .*traces"),
    "no-b0": ({"bval": BVALS + 700, "bvec": ALONG_X.T}, "no volume with b up to 50"),
    "all-b0": ({"bval": 0 * BVALS}, "no volume with b above 50"),
    "nan": ({"bval": NAN_BVALS}, f"{UNREADABLE} .a b-value is negative or NaN"),
    "text": ({"bval": None}, UNREADABLE),
}


def test_load_volumes_reports_all_bad_series(tmp_path, load):
    for name, (changed, _) in BAD.items():
        save_series(tmp_path, name, **changed)
    save_series(tmp_path, "good")
    (tmp_path / "text.bval").write_text("zero")
    nib.save(nib.Nifti1Image(np.ones((8, 8, 8)), AFFINE), tmp_path / "volume.nii")
    with pytest.raises(InputError, match=r"`skip_bad` .* \(1 good\)") as refusal:
        load(tmp_path, dwi=True)
    report = str(refusal.value)
    assert len(report.splitlines()) == len(BAD) + 2
    for name, (_, sentence) in BAD.items():
        assert re.search(f"/{name}[.].*{sentence}", report)
    assert (
        "volume.nii has shape (8, 8, 8), and is not a diffusion series; giv" in report
    )
    assert len(load(tmp_path, dwi=True, skip_bad=True).images) == 3


@pytest.mark.parametrize("name", ["channels", "source_files", "source_channels"])
def test_load_volumes_refuses_other_channels_and_sources_of_series(
    tmp_path, load, name
):
    file = save_series(tmp_path)
    with pytest.raises(InputError, match=f"the source; leave out `{name}`"):
        load(file, dwi=True, **{name: [tmp_path]})


@pytest.mark.parametrize("end", [b"", b"checksum"], ids=["cut off", "wrong checksum"])
def test_load_volumes_names_a_damaged_series(tmp_path, load, end):
    file = save_series(tmp_path)
    file.write_bytes(file.read_bytes()[:-8] + end)
    save_series(tmp_path, "sub-2_dwi")
    with pytest.raises(InputError, match="sub-1_dwi.nii.gz is cut off or damaged"):
        load(tmp_path, dwi=True)
    assert load(tmp_path, dwi=True, skip_bad=True).subjects == ["sub-2"] * 3


def test_load_volumes_keeps_good_volumes_of_a_series(tmp_path, load, caplog):
    file = save_series(tmp_path)
    data = nib.load(file).get_fdata(dtype="float32")
    data[..., 3], data[0, 0, 0, 1] = 0, np.nan
    nib.save(nib.Nifti1Image(data, AFFINE), file)
    with pytest.raises(InputError, match=r"volume 1 of .*sub-1_dwi.* NaN") as refusal:
        load(file, dwi=True)
    assert f"volume 3 of {file} is empty; leave it out" in str(refusal.value)
    assert str(refusal.value).endswith("to go on without them (1 good volume).")
    assert load(file, dwi=True, skip_bad=True).gradients["bval"] == [2000]
    assert "skipped 2 bad volumes of 1 file:" in caplog.text


def test_measured_series_name_all_bad_volumes(tmp_path):
    file = save_series(tmp_path)
    data = nib.load(file).get_fdata(dtype="float32")
    data[0, 0, 0, [1, 4]] = np.nan
    nib.save(nib.Nifti1Image(data, AFFINE), file)
    ((task,), _) = read_series([file])
    with pytest.raises(InputError, match=r"volume 1 of .* NaN .*\nvolume 4 of .* NaN"):
        MeasuredSeries.of(task).load(file)
