from collections import Counter
import json
import os
import sys

import nibabel as nib
import numpy as np
import numpy.testing as npt
from processes import run_python, with_all
import pytest
from scipy.ndimage import map_coordinates
import scripts

from dipy_ldm._utils.checks import InputError
from dipy_ldm.data._covariates import read_covariates
from dipy_ldm.data._grid import Grid, conform
from dipy_ldm.data._nifti import read_headers
from dipy_ldm.metrics import octave_energies

SCRIPT = scripts.EXAMPLES / "virtual_cohort.py"
GRID = Grid((48, 56, 48), nib.affines.from_matvec(np.eye(3) * 4, [-94, -130, -90]))


@pytest.fixture(scope="module")
def cohort():
    return scripts.load(SCRIPT)


@pytest.fixture(scope="module")
def images(cohort):
    return [cohort.make_subject(i)[0] for i in range(5)]


def draw(cohort, name, n, *arguments):
    """Draw something for each of several subjects."""
    function = getattr(cohort, name)
    return [function(np.random.default_rng(i), *arguments) for i in range(n)]


def conformed(image):
    """Bring an image to a coarse grid, and its intensities to about 0 to 1."""
    data = image.get_fdata(dtype=np.float32)
    data = data / np.percentile(data[data > 0], 99)
    return conform(data[..., None], image.affine, GRID)[..., 0]


def centre_of_mass(data, affine):
    weights = data / data.sum()
    indices = np.array([(weights * axis).sum() for axis in np.indices(data.shape)])
    return affine[:3, :3] @ indices + affine[:3, 3]


def jacobian_determinants(displacement, spacing):
    gradients = [np.gradient(displacement[..., i], spacing) for i in range(3)]
    return np.linalg.det(np.moveaxis(gradients, (0, 1), (-2, -1)) + np.eye(3))


def test_a_volume_depends_on_seed_and_number_alone(cohort, images, tmp_path):
    files = cohort.make_cohort(tmp_path / "all", 2)
    (part,) = cohort.make_cohort(tmp_path / "part", 1, first=1)
    (other,) = cohort.make_cohort(tmp_path / "other", 1, seed=6, first=1)
    names = ["sub-0000_T1w.nii.gz", "sub-0001_T1w.nii.gz"]
    assert [file.name for file in files] == names
    assert part.read_bytes() == files[1].read_bytes() != other.read_bytes()
    for file, image in zip(files, images[:2], strict=True):
        npt.assert_array_equal(nib.load(file).get_fdata(), image.get_fdata())
        npt.assert_array_equal(nib.load(file).affine, image.affine)
    infos, complaints = read_headers(files)
    assert not complaints
    assert all(info.oriented for info in infos)


def test_files_are_of_many_kinds(cohort):
    grids = draw(cohort, "draw_grid", 60)
    turned = Counter("".join(nib.aff2axcodes(grid.affine)) for grid in grids)
    assert set(turned) == set(cohort.ORIENTATIONS)
    sizes = np.array([nib.affines.voxel_sizes(grid.affine) for grid in grids])
    assert 1.5 <= sizes.min() < 1.7 < 2.8 < sizes.max() <= 3
    isotropic = np.isclose(np.ptp(sizes, axis=1), 0).mean()
    assert 0.4 < isotropic < 0.8
    brain = np.random.default_rng(0).random((5, 5, 5), dtype="float32")
    drawn = draw(cohort, "draw_image", 60, brain, np.eye(4))
    assert {image.get_data_dtype().name for image in drawn} == set(cohort.DTYPES)
    assert {type(image) for image in drawn} == {nib.Nifti1Image, nib.Nifti2Image}
    highest = [image.get_fdata().max() for image in drawn]
    assert 90 < min(highest) < 200 < 2000 < max(highest) < 4100


@pytest.mark.parametrize("codes", ["RAS", "LPI", "PIR", "ASR", "SRA"])
def test_turned_grids_have_the_same_places(cohort, codes):
    shape, affine = (3, 4, 5), np.diag([2.0, 3, 4, 1])
    affine[:3, 3] = 7, 8, 9
    axes = nib.orientations.axcodes2ornt(codes)
    turned = cohort.turn_axes(shape, affine, axes)
    assert "".join(nib.aff2axcodes(turned.affine)) == codes
    before, after = (
        {*map(tuple, nib.affines.apply_affine(grid.affine, [*np.ndindex(grid.shape)]))}
        for grid in (Grid(shape, affine), turned)
    )
    assert before == after


def test_the_brain_is_where_the_template_is(cohort, images):
    (t1, _, _), affine = cohort.templates()
    expected = centre_of_mass(np.float64(t1 > 0.3), affine)
    for image in images:
        data = image.get_fdata()
        centre = centre_of_mass(np.float64(data > 0.3 * data.max()), image.affine)
        npt.assert_allclose(centre, expected, atol=4)


def test_left_and_right_are_kept(cohort):
    # Without deformation, all voxels of the template are found where they were.
    shape, affine = cohort.field_grid()
    nothing = cohort.Deformation(np.zeros((*shape, 3), "float32"), affine)
    (t1, _, _), template_affine = cohort.templates()
    for grid in draw(cohort, "draw_grid", 5):
        warped = cohort.warp(t1, grid, nothing, np.eye(4))
        step = np.linalg.solve(template_affine, grid.affine)
        places = np.moveaxis(np.indices(grid.shape), 0, -1)
        places = nib.affines.apply_affine(step, places)
        expected = map_coordinates(t1, np.moveaxis(places, -1, 0), order=1)
        # At the edge, where the brain stem ends, they differ in what is outside.
        assert np.mean(np.abs(warped - expected) > 1e-3) < 1e-3


def test_flow_forth_and_back_is_the_identity(cohort, rng):
    shape, _ = cohort.field_grid()
    noise = [cohort.smooth_noise(rng, shape, 9) for _ in range(3)]
    velocity = 2 * np.stack(noise, -1) * cohort.fade(shape)
    forward, back = cohort.integrate(velocity), cohort.integrate(-velocity)
    places = np.indices(shape) + np.moveaxis(forward, -1, 0) / cohort.FIELD_SPACING
    moved = [map_coordinates(back[..., i], places, order=1) for i in range(3)]
    undone = forward + np.stack(moved, -1)
    assert np.abs(forward).max() > 5
    assert np.abs(undone).max() < 1


def test_ventricles_swell_and_shrink(cohort):
    shape, affine = cohort.field_grid()
    (t1, grey, white), template_affine = cohort.templates()
    fluid = np.float32((t1 > 0.1) & (grey + white < 0.3))
    grid = Grid(t1.shape, template_affine)
    sizes = []
    for factor in (-0.4, 0, 0.4):
        velocity = factor * cohort.swelling(shape, affine) * cohort.fade(shape)
        deformation = cohort.Deformation(cohort.integrate(velocity), affine)
        warped = cohort.warp(fluid, grid, deformation, np.eye(4))
        # About the ventricles.
        sizes.append(warped[50:80, 55:100, 45:75].sum())
    assert sizes[0] < 0.8 * sizes[1] < 0.8 * 0.8 * sizes[2]


def test_subjects_differ_as_wholes_and_not_by_noise_alone(images):
    volumes = [conformed(image) for image in images]
    inside = np.mean(volumes, axis=0) > 0.3
    pairs = np.corrcoef([v[inside] for v in volumes])[np.tril_indices(len(volumes), -1)]
    assert 0.1 < min(pairs) <= max(pairs) < 0.9


def test_outside_of_the_brain_all_is_zero(images):
    for image in images:
        data = image.get_fdata()
        edge = np.ones(data.shape, bool)
        edge[1:-1, 1:-1, 1:-1] = False
        assert not data[edge].any()
        assert 0.1 < np.mean(data > 0) < 0.4
        assert data.min() == 0


def test_detailed_subjects_have_more_detail(cohort, images):
    plain = images[:2]
    detailed = [cohort.make_subject(i, detailed=True)[0] for i in range(2)]
    assert all(max(image.header.get_zooms()) <= 1.6 for image in detailed)
    # On one grid, relative to how much the volumes vary at all.
    finer = Grid((96, 112, 96), GRID.affine @ np.diag([0.5, 0.5, 0.5, 1]))
    shares = []
    for subjects in (plain, detailed):
        data = [conform(i.get_fdata()[..., None], i.affine, finer) for i in subjects]
        fine, whole = octave_energies(np.stack(data))[:, 0], np.var(data, (1, 2, 3, 4))
        shares.append(np.mean(fine / whole))
    assert shares[1] > 2 * shares[0]


def test_detailed_subjects_fold_differently_and_tear_nowhere(cohort):
    drawn = (draw(cohort, "draw_deformation", 4, fine) for fine in (False, True))
    for whole, fine in zip(*drawn, strict=True):
        determinants = jacobian_determinants(fine.displacement, cohort.FIELD_SPACING)
        assert determinants.min() > 0.1
        beside = fine.displacement - whole.displacement
        assert 0.5 < beside.std() < 1.5


def test_main(cohort, tmp_path, capsys):
    cohort.main([str(tmp_path / "cohort"), "--n", "1", "--first", "7"])
    assert (tmp_path / "cohort" / "sub-0007_T1w.nii.gz").is_file()
    assert "virtual subjects" in capsys.readouterr().err


def test_the_script_refuses_bad_numbers(tmp_path):
    words = (tmp_path, "--n", 0)
    # nilearn comes with the tests, too.
    ended = run_python(SCRIPT, *words, env=with_all(os.environ), check=False)
    assert ended.returncode == 1
    assert "n must be at least 1, not 0." in ended.stderr


@pytest.mark.parametrize(
    ("folder", "options", "message"),
    [
        ("new", ["--first", "-1"], "first must be at least 0, not -1."),
        ("new", ["--seed", "-1"], "seed must be at least 0, not -1."),
        ("file", [], "can't create the folder .*file \\(File exists\\); name"),
    ],
)
def test_main_refuses(cohort, tmp_path, folder, options, message):
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit, match=message):
        cohort.main([str(tmp_path / folder), "--n", "1", *options])


def test_lesions_are_checked(cohort, tmp_path):
    with pytest.raises(InputError, match="diameter must be at least 1"):
        cohort.make_cohort(tmp_path, 1, lesion=cohort.Lesion(0))
    with pytest.raises(InputError, match="darkness"):
        cohort.make_cohort(tmp_path, 1, lesion=cohort.Lesion(10, 2))


def test_covariates_are_written_beside_the_volumes(cohort, tmp_path):
    cohort.make_cohort(tmp_path, 2, seed=2, covariates=True)
    # The next part leaves the rows of the first.
    cohort.make_cohort(tmp_path, 1, first=2, seed=2, covariates=True)
    covariates = read_covariates(
        list(cohort.COVARIATES), sorted(tmp_path.glob("*.nii.gz"))
    )
    assert covariates.units == {"ventricles": "mL", "offset": "mm", "contrast": "%"}
    assert set(covariates.levels["group"]) == {"control", "patient"}
    _, facts = cohort.make_subject(1, 2, traits=cohort.draw_traits(1, 2))
    for name, values in covariates.values.items():
        assert len(values) == 3
        assert values[1] in (None, facts[name])


def test_contrasts_of_a_head_have_the_covariates_of_its_t1(cohort, tmp_path):
    def make(folder, **options):
        files = cohort.make_cohort(tmp_path / folder, 1, **options)
        return files, (tmp_path / folder / "participants.tsv")

    files, table = make("both", contrasts=("T1w", "T2w"), covariates=True)
    names = [file.name for file in files]
    assert names == ["sub-0000_T1w.nii.gz", "sub-0000_T2w.nii.gz"]
    t1, t2 = (conformed(nib.load(file)) for file in files)
    inside = t1 > 0.2
    # The same head, whose fluid is dark in the one and bright in the other.
    assert ((t2 > 0.2) == inside).mean() > 0.97
    assert np.corrcoef(t1[inside], t2[inside])[0, 1] < -0.3
    (alone,), table_of_one = make("one", contrasts=("T2w",), covariates=True)
    assert alone.read_bytes() == files[1].read_bytes()
    assert table_of_one.read_text() == table.read_text()
    # Those of an earlier cohort go.
    _, table = make("one")
    assert table.read_text() == "participant_id\nsub-0000\n"


def test_the_template_needs_nilearn(cohort, tmp_path, monkeypatch):
    cohort.templates.cache_clear()
    monkeypatch.setitem(sys.modules, "nilearn", None)
    with pytest.raises(SystemExit, match="is part of nilearn; pip install it"):
        cohort.main([str(tmp_path / "new"), "--n", "1"])
    assert not (tmp_path / "new").exists()


def test_scans_of_a_site_are_those_of_its_scanner(cohort, tmp_path):
    for site in "AB":
        cohort.make_cohort(tmp_path / site, 1, first=4, verbose=False, site=site)
    old, new = (nib.load(tmp_path / s / "sub-0004_T1w.nii.gz") for s in "AB")
    npt.assert_allclose(old.header.get_zooms(), 2.6, rtol=1e-6)
    npt.assert_allclose(new.header.get_zooms(), 1.7, rtol=1e-6)
    # Of one head.
    outlines = [conformed(image) > 0.1 for image in (old, new)]
    share = np.logical_and(*outlines).sum() / np.logical_or(*outlines).sum()
    assert share > 0.9
    table = (tmp_path / "B" / "participants.tsv").read_text()
    assert table == "participant_id\tsite\nsub-0004\tB\n"


def test_columns_of_an_earlier_part_stay(cohort, tmp_path):
    (tmp_path / "sub-0000_T1w.nii.gz").touch()
    cohort.write_table(tmp_path, {"sub-0000": {"group": "patient"}}, {"group": {}})
    cohort.write_table(tmp_path, {"sub-0001": {"site": "A"}}, cohort.SITE)
    table = (tmp_path / "participants.tsv").read_text().splitlines()
    assert table[0] == "participant_id\tgroup\tsite"
    assert table[1:] == ["sub-0000\tpatient\tn/a", "sub-0001\tn/a\tA"]
    columns = json.loads((tmp_path / "participants.json").read_text())
    assert columns == {"group": {}, **cohort.SITE}


def test_covariates_match_measurements(cohort):
    few, many = (cohort.Traits(-0.2, -8, None), cohort.Traits(0.4, 8, cohort.Lesion()))
    (thin, a), (wide, b) = (cohort.make_subject(5, traits=t) for t in (few, many))
    assert b["ventricles"] > 1.3 * a["ventricles"]
    assert b["offset"] > a["offset"] + 6
    assert a["contrast"] == b["contrast"]
    assert (a["group"], b["group"]) == ("control", "patient")
    thin, wide = conformed(thin), conformed(wide)
    place = np.linalg.solve(GRID.affine, [*cohort.LESION_CENTRE, 1])[:3].astype(int)
    around = tuple(slice(i - 3, i + 4) for i in place)
    assert wide[around].min() < thin[around].min() - 0.1


def test_covariates_need_traits(cohort, images):
    image, covariates = cohort.make_subject(4)
    assert covariates == {}
    npt.assert_array_equal(image.get_fdata(), images[4].get_fdata())
