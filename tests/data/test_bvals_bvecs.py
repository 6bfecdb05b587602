"""Diffusion series as images with b-values, directions and sources."""

import itertools
import re

import nibabel as nib
import numpy as np
import numpy.testing as npt
import pytest

from dipy_ldm import InputError
from dipy_ldm.data import load_volumes
from dipy_ldm.data._bvals_bvecs import Gradients

AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])
AFFINE[:3, 3] = -7
BVALS = np.array([0, 1000, 5, 1000, 2000.0])
# In the world, of length 1 where b is above 50.
DIRECTIONS = np.array([[0, 0, 0], [1, 0, 0], [0, 0, 0], [0.6, 0.8, 0], [0, -0.6, 0.8]])


def turned(axes):
    """Return an affine with axes to L or R, and otherwise as AFFINE, or oblique."""
    if axes != "oblique":
        flip = np.diag([-1.0 if axes == "LAS" else 1, 1, 1, 1])
        flip[0, 3] = 7 if axes == "LAS" else 0
        return AFFINE @ flip
    a, b = np.cos(0.4), np.sin(0.4)
    turn = np.array([[a, -b, 0, 0], [b, a, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    tilt = np.array([[1, 0, 0, 0], [0, a, -b, 0], [0, b, a, 0], [0, 0, 0, 1]])
    return turn @ tilt @ AFFINE


def fsl_vectors(affine):
    """Return the directions as FSL has them: along voxels, the first to the left."""
    along = DIRECTIONS @ (affine[:3, :3] / 2)
    if np.linalg.det(affine[:3, :3]) > 0:
        along[:, 0] *= -1
    return along


def save_series(folder, name="sub-1_dwi", affine=AFFINE, scale=900, **changed):
    """Write a series whose volumes lose what is known of b = 0."""
    x = np.linspace(0.1, 1, 8)
    b0 = scale * x[:, None, None] * x[None, :, None] * np.ones(8)
    attenuation = np.array([1.02, 0.5, 0.98, 0.3, 0.1])
    data = (b0[..., None] * attenuation).astype("float32")
    nib.save(nib.Nifti1Image(data, affine), folder / f"{name}.nii.gz")
    tables = {"bval": BVALS, "bvec": fsl_vectors(affine).T} | changed
    for end, table in tables.items():
        if table is not None:
            np.savetxt(folder / f"{name}.{end}", np.atleast_2d(table))
    return folder / f"{name}.nii.gz"


@pytest.mark.parametrize("axes", ["LAS", "RAS", "oblique"])
def test_directions_are_those_of_the_world(tmp_path, axes):
    file = save_series(tmp_path, affine=turned(axes))
    volumes = load_volumes([file], dwi=True, cache_dir=tmp_path)
    directions = volumes.gradients["direction"]
    npt.assert_allclose(directions, DIRECTIONS[[1, 3, 4]], atol=1e-6)
    assert volumes.gradients["bval"] == [1000, 1000, 2000]
    assert volumes.gradients.units == {"bval": "s/mm^2"}
    back = Gradients.beside(file, 5).rotated(turned(axes), turned("LAS"))
    npt.assert_allclose(back.bvecs, fsl_vectors(turned("LAS")), atol=1e-6)


def test_three_vectors_are_columns(tmp_path):
    np.savetxt(tmp_path / "a.bval", BVALS[None, :3])
    np.savetxt(tmp_path / "a.bvec", fsl_vectors(AFFINE)[:3].T)
    bvecs = Gradients.read(tmp_path / "a.bval", tmp_path / "a.bvec").bvecs
    npt.assert_allclose(bvecs, fsl_vectors(AFFINE)[:3], atol=1e-6)


def test_volumes_have_the_scale_of_their_b0(tmp_path):
    save_series(tmp_path)
    save_series(tmp_path, "sub-2_dwi", scale=30)
    volumes = load_volumes([tmp_path], dwi=True, cache_dir=tmp_path / "cache")
    assert volumes.images.shape == volumes.sources.shape == (6, 8, 8, 8, 1)
    inside = volumes.sources < 0.9
    for number, attenuation in enumerate([0.5, 0.3, 0.1] * 2):
        image, source = volumes.images[number], volumes.sources[number]
        lost = image[inside[number]], attenuation * source[inside[number]]
        npt.assert_allclose(*lost, rtol=1e-5)
    npt.assert_allclose(volumes.images[:3], volumes.images[3:], rtol=1e-5)
    assert volumes.subjects == ["sub-1"] * 3 + ["sub-2"] * 3
    before = volumes.images.filename
    again = load_volumes([tmp_path], dwi=True, cache_dir=tmp_path / "cache")
    assert again.images.filename == before
    save_series(tmp_path, bval=BVALS + 100 * (BVALS > 50))
    again = load_volumes([tmp_path], dwi=True, cache_dir=tmp_path / "cache")
    assert again.images.filename != before
    assert again.gradients["bval"][:3] == [1100, 1100, 2100]


def test_series_of_a_subject_stay_together(tmp_path):
    for name in ("sub-1_run-1_dwi", "sub-2_dwi", "sub-1_run-2_dwi", "other"):
        save_series(tmp_path, name)
    file = tmp_path / "sub-2_dwi.nii.gz"
    nib.save(nib.Nifti1Image(nib.load(file).get_fdata()[..., :4], AFFINE), file)
    np.savetxt(file.with_name("sub-2_dwi.bval"), BVALS[None, :4])
    np.savetxt(file.with_name("sub-2_dwi.bvec"), fsl_vectors(AFFINE)[:4].T)
    how = {"dwi": True, "shuffle": True, "cache_dir": tmp_path / "cache"}
    subjects = load_volumes([tmp_path], **how).subjects
    changes = sum(a != b for a, b in itertools.pairwise(subjects))
    assert changes == len(set(subjects)) - 1 == 2
    assert sorted(subjects.count(s) for s in set(subjects)) == [2, 3, 6]


def test_masks_are_of_series(tmp_path):
    file = save_series(tmp_path)
    mask = np.zeros((8, 8, 8), "uint8")
    mask[2:5] = 1
    nib.save(nib.Nifti1Image(mask, AFFINE), tmp_path / "mask.nii")
    how = {"dwi": True, "mask_files": [tmp_path / "mask.nii"], "cache_dir": tmp_path}
    npt.assert_array_equal(load_volumes([file], **how).masks, [mask] * 3)


ALONG_X = DIRECTIONS[[1] * 5]
BAD = {
    "no-bval": ({"bval": None}, "has no .bval beside it"),
    "no-bvec": ({"bvec": None}, "has no .bvec beside it"),
    "short": ({"bval": BVALS[:4], "bvec": DIRECTIONS[:4].T}, "5 volumes, and .* 4 dir"),
    "unequal": ({"bvec": DIRECTIONS[:4].T}, "has 5 b-values and .* 4 directions"),
    "unit": ({"bvec": 2 * DIRECTIONS.T}, "not of length 1 .* leave out .*traces"),
    "no-b0": ({"bval": BVALS + 700, "bvec": ALONG_X.T}, "no volume with b up to 50"),
    "all-b0": ({"bval": 0 * BVALS}, "no volume with b above 50"),
}


def test_all_bad_series_are_in_one_report(tmp_path):
    for name, (changed, _) in BAD.items():
        save_series(tmp_path, name, **changed)
    save_series(tmp_path, "good")
    (tmp_path / "text.bval").write_text("zero")
    save_series(tmp_path, "nan", bval=np.where(BVALS == 5, np.nan, BVALS))
    save_series(tmp_path, "text", bval=None)
    nib.save(nib.Nifti1Image(np.ones((8, 8, 8)), AFFINE), tmp_path / "volume.nii")
    how = {"dwi": True, "cache_dir": tmp_path / "cache"}
    with pytest.raises(InputError, match=r"`skip_bad` .* \(1 good\)") as refusal:
        load_volumes([tmp_path], **how)
    lines = str(refusal.value).splitlines()
    assert len(lines) == len(BAD) + 4
    for name, (_, sentence) in BAD.items():
        (line,) = (line for line in lines if f"/{name}." in line)
        assert re.search(sentence, line)
    assert "can't be read as b-values and directions" in refusal.value.args[0]
    assert "(a b-value is negative or NaN)" in refusal.value.args[0]
    assert "is not a diffusion series; give 4-D files" in refusal.value.args[0]
    assert len(load_volumes([tmp_path], skip_bad=True, **how).images) == 3


def test_a_single_direction_is_read(tmp_path):
    vector = np.array([[0.6, 0.8, 0]])
    np.savetxt(tmp_path / "a.bval", [1000])
    for table in (vector, vector.T):
        np.savetxt(tmp_path / "a.bvec", table)
        gradients = Gradients.read(tmp_path / "a.bval", tmp_path / "a.bvec")
        npt.assert_array_equal(gradients.bvals, [1000])
        npt.assert_array_equal(gradients.bvecs, vector)


@pytest.mark.parametrize("name", ["channels", "source_files"])
def test_series_have_no_channels_and_sources_of_their_own(tmp_path, name):
    option = {"channels": True, "source_files": [tmp_path]}[name]
    file = save_series(tmp_path)
    with pytest.raises(InputError, match=f"the source; leave out `{name}`"):
        load_volumes([file], dwi=True, **{name: option})


def test_a_series_that_is_cut_off_is_named(tmp_path):
    file = save_series(tmp_path, "sub-1_dwi")
    file.write_bytes(file.read_bytes()[:-40])
    save_series(tmp_path, "sub-2_dwi")
    how = {"dwi": True, "cache_dir": tmp_path / "cache"}
    with pytest.raises(InputError, match=r"sub-1_dwi.nii.gz is cut off"):
        load_volumes([tmp_path], **how)
    assert load_volumes([tmp_path], skip_bad=True, **how).subjects[-3:] == ["sub-2"] * 3


def test_a_series_with_a_wrong_checksum_is_named(tmp_path):
    file = save_series(tmp_path)
    content = file.read_bytes()
    file.write_bytes(content[:-8] + bytes(4) + content[-4:])
    with pytest.raises(InputError, match="is cut off or damaged"):
        load_volumes([file], dwi=True, cache_dir=tmp_path / "cache")


def test_bad_volumes_of_a_series_are_named_and_the_rest_is_kept(tmp_path):
    file = save_series(tmp_path)
    data = nib.load(file).get_fdata(dtype="float32")
    data[..., 3], data[0, 0, 0, 1] = 0, np.nan
    nib.save(nib.Nifti1Image(data, AFFINE), file)
    how = {"dwi": True, "cache_dir": tmp_path / "cache"}
    with pytest.raises(InputError, match=r"volume 1 of .*sub-1_dwi.* NaN") as refusal:
        load_volumes([file], **how)
    assert f"volume 3 of {file} is empty; leave it out" in str(refusal.value)
    assert load_volumes([file], skip_bad=True, **how).gradients["bval"] == [2000]
