import json
import os
import re

import nibabel as nib
from nibabel.affines import apply_affine
import numpy as np
import numpy.testing as npt
from processes import run_python, with_all
import pytest
from scipy import ndimage
import scripts

from dipy_ldm.data._covariates import read_covariates

SCRIPT = scripts.EXAMPLES / "label_cohort.py"
AFFINE = nib.affines.from_matvec(np.eye(3) * 4, [-58, -58, -58])


@pytest.fixture(scope="module")
def cohort():
    return scripts.load(SCRIPT)


def draw_head(left=2):
    """Return a small head of 104 mm, axes to the right, the front and the top.

    It stands on a neck; the hippocampus has `left` layers on the left, and 2 on the
    right.
    """
    x, y, z = np.indices((30, 30, 30)) - 14.5
    radius = np.sqrt(x**2 + y**2 + z**2)
    right = x > 0
    labels = np.zeros(radius.shape, "int16")
    labels[(radius < 13) | ((np.hypot(x, y) < 8) & (z < 0))] = 507
    labels[radius < 11] = 515
    labels[radius < 10] = 24
    labels[radius < 9] = np.where(right, 42, 3)[radius < 9]
    labels[radius < 6] = np.where(right, 41, 2)[radius < 6]
    labels[12:15, 12:18, 12:18], labels[15:18, 12:18, 12:18] = 4, 43
    labels[10 - left : 10, 12:18, 10:16], labels[20:22, 12:18, 10:16] = 17, 53
    return labels


def save(labels, folder, name="head_01", affine=AFFINE, kind=nib.Nifti1Image):
    folder.mkdir(exist_ok=True)
    file = folder / f"{name}{'.mgz' if kind is nib.MGHImage else '.nii.gz'}"
    nib.save(kind(labels, affine), file)
    return file


@pytest.fixture(scope="module")
def heads(tmp_path_factory):
    folder = tmp_path_factory.mktemp("maps") / "heads"
    for number in (1, 2, 3):
        save(draw_head(), folder, f"head_{number:02d}")
    return folder


def canonical(file):
    image = nib.as_closest_canonical(nib.load(file))
    return image.get_fdata(), image.affine


def labels_of(file):
    return str(file).replace(".nii", "_dseg.nii")


def rows_of(folder):
    lines = (folder / "participants.tsv").read_text().splitlines()
    names = lines[0].split("\t")
    return [dict(zip(names, line.split("\t"), strict=True)) for line in lines[1:]]


@pytest.fixture(scope="module")
def many(cohort, heads, tmp_path_factory):
    """Return the files of a cohort of eight."""
    folder = tmp_path_factory.mktemp("many")
    return cohort.make_cohort(folder, 8, heads, voxel_size=(2, 6), dseg=True)


def brightness(cohort, folder, maps, contrasts=("T1w",), n=2, **options):
    """Return the brightness of white matter, cortex and ventricles of each scan."""
    options |= {"contrasts": contrasts, "dseg": True, "voxel_size": (3, 3)}
    levels = []
    for file in cohort.make_cohort(folder, n, maps, **options):
        (scan, _), (labels, _) = canonical(file), canonical(labels_of(file))
        groups = (2, 41), (3, 42), (4, 43)
        levels.append([np.median(scan[np.isin(labels, group)]) for group in groups])
    return np.array(levels)


def test_a_subject_depends_on_seed_and_number_alone(cohort, heads, tmp_path):
    options = {"voxel_size": (3, 4), "contrasts": ("T1w", "random")}
    files = cohort.make_cohort(tmp_path / "all", 2, heads, seed=5, **options)
    part = cohort.make_cohort(tmp_path / "part", 1, heads, seed=5, first=1, **options)
    other = cohort.make_cohort(tmp_path / "other", 1, heads, seed=6, first=1, **options)
    assert [file.name for file in files] == [
        f"sub-{i:04d}_{kind}.nii.gz" for i in range(2) for kind in options["contrasts"]
    ]
    for one, again, differs in zip(files[2:], part, other, strict=True):
        assert one.read_bytes() == again.read_bytes() != differs.read_bytes()
    assert rows_of(tmp_path / "all")[1:] == rows_of(tmp_path / "part")
    # And a scan not on which others there are.
    options["contrasts"] = ["random"]
    (alone,) = cohort.make_cohort(tmp_path / "alone", 1, heads, seed=5, **options)
    assert alone.read_bytes() == files[1].read_bytes()


def test_variety_is_how_much_subjects_and_scans_differ(cohort, heads, tmp_path):
    def spreads(variety):
        options = {"variety": variety, "n": 3}
        folder = tmp_path / str(variety)
        levels = brightness(cohort, folder, heads, **options)
        scan, _ = canonical(folder / "sub-0000_T1w.nii.gz")
        labels, _ = canonical(folder / "sub-0000_T1w_dseg.nii.gz")
        white = scan[ndimage.binary_erosion(np.isin(labels, (2, 41)))]
        # Of contrasts, and of bias, texture and noise.
        return np.ptp(levels[:, 1] / levels[:, 0]), white.std() / white.mean()

    # Voxels at the edge of white matter are darker in any case.
    assert (np.divide(spreads(0.0), spreads(1.0)) < [0.3, 0.6]).all()
    npt.assert_allclose(cohort.draw_pose(np.random.default_rng(0), 0), np.eye(4))


def test_volumes_are_those_of_the_labels(cohort, heads, tmp_path):
    numbers = {"ventricles": (4, 43), "hippocampi": (17, 53)}
    numbers["brain"] = (2, 3, 17, 41, 42, 53)
    for size, tolerance in ((1, 0), (2, 0.06)):
        folder, sizes = tmp_path / str(size), (size, size)
        (file,) = cohort.make_cohort(folder, 1, heads, voxel_size=sizes, dseg=True)
        (row,), (labels, _) = rows_of(folder), canonical(labels_of(file))
        for name, group in numbers.items():
            counted = np.isin(labels, group).sum() * size**3 / 1000
            assert np.isclose(counted, float(row[name]), tolerance, atol=0.006)


def test_volumes_are_covariates(cohort, many):
    covariates = read_covariates(["brain", "ventricles", "hippocampi"], many)
    assert set(covariates.units.values()) == {"mL"}
    # 14 mL in the map, and subjects differ.
    assert np.ptp(covariates.values["ventricles"]) > 1
    assert 7 < np.mean(covariates.values["ventricles"]) < 28
    described = json.loads((many[0].parent / "participants.json").read_text())
    assert set(described) == set(cohort.COLUMNS)


def test_contrasts_have_their_order_of_tissues(cohort, heads, tmp_path):
    levels = brightness(cohort, tmp_path, heads, ("T1w", "T2w"))
    white, grey, fluid = levels[::2].T
    assert (white > 1.1 * grey).all()
    assert (grey > 1.5 * fluid).all()
    white, grey, fluid = levels[1::2].T
    assert (fluid > 1.3 * grey).all()
    assert (grey > 1.1 * white).all()


def test_random_contrasts_have_any_order(cohort):
    tissues = [cohort.INDEX[label] for label in (2, 3, 4)]
    looks = [
        cohort.draw_looks(np.random.default_rng(seed), "random", {})
        for seed in range(9)
    ]
    assert len({tuple(np.argsort(one.brightness[tissues])) for one in looks}) > 1


def test_t1_is_as_priors_have_it(cohort, tmp_path):
    folder = tmp_path / "maps"
    save(draw_head(), folder)
    arrays = {
        "generation_labels": [2, 41, 3, 42],
        "generation_classes_contrast_specific": [0, 0, 1, 1],
        # Cortex is the brighter one, and by how much hardly differs.
        "prior_means_t1": [[60, 200], [1, 1]],
        "prior_stds_t1": [[1, 1], [0, 0]],
    }
    for name, values in arrays.items():
        np.save(folder / f"{name}.npy", np.array(values))
    white, grey, _ = brightness(cohort, tmp_path / "out", folder).T
    assert (grey > 1.8 * white).all()


def test_mirrored_subjects_keep_left_labels_left(cohort, tmp_path):
    save(draw_head(left=6), tmp_path / "maps")
    how = {"voxel_size": (3, 3), "dseg": True}
    files = cohort.make_cohort(tmp_path / "out", 6, tmp_path / "maps", **how)
    rows = rows_of(tmp_path / "out")
    assert {row["anatomy"] for row in rows} == {"head_01", "head_01 mirrored"}
    for file, row in zip(files, rows, strict=True):
        labels, affine = canonical(labels_of(file))
        middle = {
            label: apply_affine(affine, np.argwhere(labels == label).mean(0))[0]
            for label in (2, 3, 4, 17, 41, 42, 43, 53)
        }
        assert max(middle[n] for n in (2, 3, 4, 17)) < -1
        assert min(middle[n] for n in (41, 42, 43, 53)) > 1
        larger = 53 if row["anatomy"].endswith("mirrored") else 17
        smaller = 70 - larger
        assert (labels == larger).sum() > 1.4 * (labels == smaller).sum()


def test_stripped_brains_are_alone(cohort, heads, tmp_path):
    how = {"voxel_size": (2, 2), "stripped": 1, "dseg": True}
    for file in cohort.make_cohort(tmp_path, 2, heads, **how):
        (scan, _), (labels, _) = canonical(file), canonical(labels_of(file))
        brain = np.isin(labels, (2, 3, 4, 17, 41, 42, 43, 53))
        assert not scan[labels == 0].any()
        assert (labels == 507).sum() < 0.02 * brain.sum()
        assert (scan[brain] > 0).mean() > 0.99
    assert {row["stripped"] for row in rows_of(tmp_path)} == {"True"}


def test_heads_end_in_air_but_for_the_neck(cohort, heads, tmp_path):
    (file,) = cohort.make_cohort(tmp_path, 1, heads, voxel_size=(2, 2), dseg=True)
    labels, _ = canonical(labels_of(file))
    assert (labels[:, :, 0] == 507).mean() > 0.05
    for axis in range(3):
        assert not np.take(labels, -1, axis).any()
    assert not labels[0].any() and not labels[:, 0].any()


def test_files_are_of_many_kinds(many):
    images = [nib.load(file) for file in many]
    assert len({nib.aff2axcodes(image.affine) for image in images}) > 2
    assert len({image.get_data_dtype() for image in images}) > 1
    sizes = np.array([image.header.get_zooms() for image in images])
    assert 2 <= sizes.min() < sizes.max() <= 6
    for file, image in zip(many, images, strict=True):
        labels = nib.load(labels_of(file))
        assert labels.shape == image.shape
        npt.assert_allclose(labels.affine, image.affine, atol=1e-4)


def test_each_map_comes_once_before_one_comes_again(many):
    names = [row["anatomy"].split()[0] for row in rows_of(many[0].parent)]
    for three in (names[:3], names[3:6]):
        assert sorted(three) == ["head_01", "head_02", "head_03"]


def test_find_maps_by_the_ends_of_their_names(cohort, heads, tmp_path):
    def names(*sides):
        return [file.name[:7] for file in cohort.find_maps(heads, *sides)]

    assert names(["01", "3"]) == ["head_01", "head_03"]
    assert names([], ["01", "3"]) == ["head_02"]
    dotted = ["a.01.nii.gz", "a.02.mgz", "a.02.nii"]
    for name in (*dotted, "a.02.txt"):
        (tmp_path / name).touch()
    assert [file.name for file in cohort.find_maps(tmp_path)] == dotted
    assert len(cohort.find_maps(tmp_path, ["02"])) == 2


@pytest.mark.parametrize("axes", ["RAS", "LIA", "PSR"])
def test_maps_may_have_any_axes_and_pose(cohort, tmp_path, axes):
    turns = nib.orientations.axcodes2ornt(axes)
    angle = np.deg2rad(12)
    tilt = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, 0, 0]])
    tilt[2] = 0, np.sin(angle), np.cos(angle)
    tilted = nib.affines.from_matvec(tilt, [40, -70, 9]) @ AFFINE
    # Structures are where the template has them, but half as far apart.
    labels = draw_head()
    landmarks = scripts.load(SCRIPT.with_name("label_maps.py")).LANDMARKS
    for number, place in landmarks.items():
        spot = np.rint(apply_affine(np.linalg.inv(AFFINE), np.array(place) / 2))
        labels[tuple(slice(int(i) - 1, int(i) + 1) for i in spot)] = number
    image = nib.Nifti1Image(labels, tilted).as_reoriented(
        nib.orientations.ornt_transform(turns, nib.orientations.axcodes2ornt("RAS"))
    )
    file = save(np.asarray(image.dataobj), tmp_path, "a", image.affine, nib.MGHImage)
    source = cohort.read_map(file)
    back = np.linalg.inv(source.to_voxels)
    # Their axes are straight again, and left is left.
    npt.assert_allclose(back[:3, :3] @ back[:3, :3].T, np.eye(3) * 16, atol=1e-3)
    left, right, up = (
        apply_affine(back, np.argwhere(source.labels == cohort.INDEX[n]).mean(0))
        for n in (10, 49, 11)
    )
    assert left[0] < -2 and right[0] > 2
    npt.assert_allclose(left[1:], right[1:], atol=2)
    assert up[1] > left[1] + 8


def test_parcels_are_mapped_to_their_tissue(cohort, tmp_path):
    labels = draw_head()
    parcels = labels.copy()
    for whole, parcel in ((3, 1024), (42, 12175), (2, 3001), (41, 5002)):
        parcels[labels == whole] = parcel
    plain = cohort.read_map(save(labels, tmp_path, "a")).labels
    npt.assert_array_equal(cohort.read_map(save(parcels, tmp_path, "b")).labels, plain)


def test_islands_outside_of_the_head_are_gone(cohort, tmp_path):
    labels = draw_head()
    labels[1, 1, 1] = 24
    source = cohort.read_map(save(labels, tmp_path))
    fluid = source.labels == cohort.INDEX[24]
    assert fluid.sum() == (labels == 24).sum() - 1


def test_brains_without_fluid_get_fluid(cohort, tmp_path):
    labels = draw_head()
    labels[(labels > 500) | (labels == 24)] = 0
    # A deep fold.
    labels[5:12, 14] = 0
    source = cohort.read_map(save(labels, tmp_path))
    fluid = source.labels == cohort.INDEX[24]
    assert fluid[6, 10].any()
    assert 0.02 < fluid.sum() / (labels > 0).sum() < 0.5
    # Nothing beyond the map, which ends at the brain, adds to it.
    assert fluid[1].sum() < fluid[2].sum()


def test_shapes_are_no_heads(cohort, tmp_path):
    (file,) = cohort.make_cohort(tmp_path, 1, voxel_size=(4, 4))
    assert file.name == "sub-0000_shapes.nii.gz"
    assert not (tmp_path / "participants.tsv").exists()
    scan, _ = canonical(file)
    inside = scan > 0.1 * scan.max()
    assert 0.05 < inside.mean() < 0.9
    assert scan[inside].std() > 0.05 * scan.max()


def refusal(cohort, folder, maps, *options):
    with pytest.raises(SystemExit) as error:
        cohort.main([str(folder), "--n", "1", "--maps", str(maps), *options])
    return str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda labels: labels * 1.5, "has fractions, but labels are whole numbers"),
        (lambda labels: np.where(labels == 2, np.nan, labels), "has fractions"),
        (lambda labels: np.stack([labels] * 2, -1), "has 4 dimensions"),
        (lambda labels: np.where(labels == 2, 9999, labels), r"table \(9999\); add"),
        (lambda labels: np.where(labels == 2, -7, labels), r"table \(-7\); add"),
        (lambda labels: labels * (labels > 500), "has no label of a brain"),
        (lambda labels: labels * 0, "is empty"),
    ],
)
def test_bad_maps_get_one_sentence(cohort, tmp_path, change, message):
    save(np.asarray(change(draw_head()), "float32"), tmp_path / "maps")
    sentence = refusal(cohort, tmp_path / "out", tmp_path / "maps")
    assert re.search(message, sentence)
    assert sentence.endswith(".") and "head_01" in sentence


def test_a_folder_without_maps_gets_one_sentence(cohort, tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        message = refusal(cohort, tmp_path / "out", folder)
        assert "there are no label maps" in message
    (tmp_path / "bad.nii.gz").write_bytes(b"no image")
    message = refusal(cohort, tmp_path / "out", tmp_path)
    assert "bad.nii.gz can't be read" in message


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--n 0", "n must be at least 1"),
        ("--seed -1", "seed must be at least 0"),
        ("--voxel_size 3 2", "the smaller first, not 3.0 and 2.0"),
        ("--voxel_size nan 2", "two numbers from 0.5 to 10 mm"),
        ("--stripped 2", "stripped"),
        ("--except 07", "ends in 07; the first is head_01"),
        ("--except 1 2 3", "leave out fewer"),
    ],
)
def test_bad_options_get_one_sentence(cohort, heads, tmp_path, options, message):
    assert message in refusal(cohort, tmp_path, heads, *options.split())


def test_shapes_have_no_label_maps(cohort, tmp_path):
    options = "--dseg", "--only 1", "--stripped 1", "--contrasts T2w"
    for option in map(str.split, options):
        with pytest.raises(SystemExit, match="random shapes have no label maps; name"):
            cohort.main([str(tmp_path), "--n", "1", *option])


def test_the_script(heads, tmp_path):
    options = ["--n", 1, "--first", 7, "--maps", heads, "--only", "02", "--dseg"]
    options += ["--voxel_size", 4, 4]
    run_python(SCRIPT, tmp_path / "cohort", *options, env=with_all(os.environ))
    names = {file.name for file in (tmp_path / "cohort").iterdir()}
    scans = {"sub-0007_T1w.nii.gz", "sub-0007_T1w_dseg.nii.gz"}
    assert names == {"participants.json", "participants.tsv", *scans}
    assert rows_of(tmp_path / "cohort")[0]["anatomy"].startswith("head_02")
