"""The benchmark of diffusion series: simulation and scores."""

import nibabel as nib
import numpy as np
import numpy.testing as npt
import pytest
import scripts

from dipy_ldm.data import load_volumes


@pytest.fixture(scope="module")
def series():
    return scripts.load("benchmarks/series.py")


@pytest.fixture
def subject(series, tmp_path):
    """Return a subject of white matter alone."""
    affine = np.diag([-4.0, 4, 4, 1])
    image = nib.Nifti1Image(np.full((6, 5, 4), 2, "int16"), affine)
    nib.save(image, tmp_path / "sub-0003_T2w_dseg.nii.gz")
    return series.Subject(tmp_path / "sub-0003_T2w_dseg.nii.gz")


@pytest.fixture
def table(series):
    directions = np.concatenate([np.zeros((1, 3)), series.spread(12, 0)])
    return np.array([0.0] + [1000.0] * 12), directions


def test_tensors_without_noise_are_the_truth(series, subject, table):
    shape, affine = (6, 5, 4), subject.affine
    data = subject.series(shape, affine, *table, snr=None)
    mask = np.ones(shape, bool)
    _, fibre, across = (x[mask] for x in subject.tensors(shape, affine))
    fa, main = series.fit(data, *table, mask)
    npt.assert_allclose(series.angles(main, fibre), 0, atol=0.1)
    npt.assert_allclose(fa, series.true_fa(across), atol=1e-3)


def test_written_series_are_those_of_the_world(series, subject, tmp_path):
    series.write(subject, tmp_path / "sub-0003_dwi.nii.gz")
    file, cache = tmp_path / "sub-0003_dwi.nii.gz", tmp_path / "cache"
    volumes = load_volumes([file], dwi=True, cache_dir=cache)
    shells = series.SHELLS.items()
    directions = np.concatenate([series.spread(n, [3, b]) for b, n in shells])
    npt.assert_allclose(volumes.gradients["direction"], directions, atol=1e-5)
