"""Volumes: files to arrays, through the cache, and back."""

from concurrent.futures import ThreadPoolExecutor
import errno
import shutil
from unittest import mock

import nibabel as nib
import numpy as np
import numpy.testing as npt
import pytest
from scans import disk_error, list_cached

from dipy_ldm._utils.checks import InputError
from dipy_ldm.data import (
    _conforming as conformed,
    _nifti as nifti,
    volumes,
)
from dipy_ldm.data._nifti import read_volume
from dipy_ldm.data.channels import Channel
from dipy_ldm.data.volumes import plan_volumes

SHAPE = (12, 10, 8)
ORIENTATIONS = ["RAS", "LPS", "PIR"]


def template(scale=1.0):
    """Return a smooth blob on nothing."""
    x, y, z = np.ogrid[:12, :10, :8]
    data = np.exp(-((x - 7) ** 2 + (y - 4) ** 2 + (z - 3) ** 2) / 8)
    return (scale * np.where(data > 0.05, data, 0)).astype("float32")


def save(path, data, affine=None, axes="RAS"):
    affine = np.diag([2, 3, 4, 1.0]) if affine is None else affine
    image = nib.Nifti1Image(data, affine)
    codes = nib.orientations.axcodes2ornt(axes)
    nib.save(image.as_reoriented(codes), path)
    return path


@pytest.fixture
def cohort(tmp_path):
    """Return a folder of three volumes of the same, in three orientations and units."""
    folder = tmp_path / "cohort"
    folder.mkdir()
    for i, axes in enumerate(ORIENTATIONS):
        save(folder / f"{i}.nii.gz", template(10.0**i), axes=axes)
    return folder


@pytest.fixture
def no_work(monkeypatch):
    """Return what to call for nothing to be conformed any more."""
    fail = mock.Mock(side_effect=AssertionError("conformed again"))
    return lambda: monkeypatch.setattr(conformed, "conform_channels", fail)


def test_load_volumes_of_any_orientation_and_unit(cohort, load):
    images, masks, affine, files, sources = load(cohort)
    assert masks is sources is None
    assert images.shape == (3, *SHAPE, 1)
    assert images.dtype == np.float32
    assert (images.min(), images.max()) == (0, 1)
    npt.assert_allclose(affine, np.diag([2, 3, 4, 1]))
    assert [file.name for file in files] == ["0.nii.gz", "1.nii.gz", "2.nii.gz"]
    npt.assert_allclose(images[1:], images[[0, 0]], atol=1e-5)
    npt.assert_allclose(images[0, ..., 0] > 0, template() > 0)
    assert isinstance(images, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        images[0] = 0


def test_load_volumes_conforms_files_once_also_if_moved(cohort, load, no_work):
    first = load(cohort)
    no_work()
    second = load(cohort / "0.nii.gz", cohort)
    npt.assert_array_equal(second.images, first.images)
    assert second.files == first.files
    moved = cohort.rename(cohort.with_name("moved"))
    assert {file.parent for file in load(moved).files} == {moved}


def test_load_volumes_of_other_content_and_settings(cohort, load):
    first = load(cohort).images
    assert load(cohort, voxel_size=4).images.shape == (3, 6, 8, 8, 1)
    assert load(cohort, shape=8).images.shape == (3, 8, 8, 8, 1)
    assert load(cohort / "1.nii.gz").images.shape == (1, *SHAPE, 1)
    save(cohort / "1.nii.gz", template()[::-1])
    assert not np.allclose(load(cohort).images[1], first[1])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("volumes.json", None),
        ("volumes.json", b""),
        ("volumes.json", b"[]"),
        ("volumes.json", b'{"kept": [0, 1, 7], "complaints": {}}'),
        ("volumes.json", b'{"kept": [0, 1], "complaints": {}}'),
        ("images.npy", None),
        ("images.npy", b""),
        ("images.npy", b"\x93NUMPY"),
        ("images.npy", b"cut off"),
    ],
)
def test_load_volumes_fills_a_damaged_cache_again(
    cohort, load, tmp_path, no_work, name, content
):
    first = load(cohort).images.copy()
    (folder,) = list_cached(tmp_path / "cache")
    if content is None:
        (folder / name).unlink()
    else:
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[:-99] if content == b"cut off" else content)
    npt.assert_array_equal(load(cohort).images, first)
    no_work()
    npt.assert_array_equal(load(cohort).images, first)
    assert list_cached(tmp_path / "cache") == [folder]


def test_load_volumes_keeps_a_cache_that_can_not_be_read_now(cohort, load, monkeypatch):
    load(cohort)
    error = OSError(errno.ESTALE, "stale")
    monkeypatch.setattr(volumes.cache, "hold", mock.Mock(side_effect=error))
    with pytest.raises(OSError, match="stale"):
        load(cohort)


@pytest.mark.parametrize("skip_bad", [True, False])
def test_load_volumes_reads_a_file_again_after_an_error_of_the_disk(
    cohort, load, monkeypatch, no_work, skip_bad
):
    with disk_error(monkeypatch, "1.nii.gz"):
        for _ in range(2):
            assert len(load(cohort, skip_bad=True).images) == 2
    assert len(load(cohort, skip_bad=skip_bad).images) == 3
    no_work()
    assert len(load(cohort).images) == 3


def test_load_volumes_leaves_no_cache_when_interrupted(
    cohort, load, tmp_path, monkeypatch
):
    whole = load(cohort).images.copy()
    shutil.rmtree(tmp_path / "cache")

    def interrupt(task, *rest):
        if task.info.file.name == "2.nii.gz":
            raise KeyboardInterrupt
        return conform(task, *rest)

    conform = volumes.conform_task
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(volumes, "conform_task", interrupt)
        load(cohort)
    assert not list_cached(tmp_path / "cache")
    npt.assert_array_equal(load(cohort).images, whole)


def test_load_volumes_in_several_threads(cohort, load, tmp_path):
    with ThreadPoolExecutor(4) as threads:
        loaded = list(threads.map(load, [cohort] * 4))
    for each in loaded:
        npt.assert_array_equal(each.images, loaded[0].images)
    assert len(list_cached(tmp_path / "cache")) == 1


def test_load_volumes_keeps_the_order_of_files(tmp_path, load):
    for i in range(30):
        data = template()
        data[0, 0, 0] = 1 + i / 100
        data[0, 0, 1] = -1000 - i
        save(tmp_path / f"{i:02}.nii", np.roll(data, i % 7, 0))
    images, *_, files, _ = load(tmp_path / "*.nii")
    for image, file in zip(images, files, strict=True):
        data, _ = read_volume(file)
        assert np.corrcoef(image.ravel(), data.clip(0, 1).ravel())[0, 1] > 0.9


def test_read_refuses_a_volume_within_a_voxel(cohort):
    """Filtered, this would take minutes, and all memory."""
    file = save(cohort / "m.nii", template(), np.diag([2e-7, 3e-7, 4e-7, 1]))
    grid = volumes.Grid((12, 10, 8), np.diag([2.0, 3, 4, 1]))
    with pytest.raises(InputError, match=r"m.nii is smaller .* \(2 x 3 x 4 mm\)"):
        Channel("T1w").read(file, grid)
    slab = save(cohort / "slab.nii", template()[:, :, 2:4], np.diag([2, 3, 1.0, 1]))
    assert Channel("T1w").read(slab, grid)[0].max() > 0


def test_read_volume_names_a_file_larger_than_memory(tmp_path, monkeypatch):
    file = save(tmp_path / "large.nii.gz", template())
    monkeypatch.setattr(nifti, "_machine_memory", lambda: 4 * 959)
    sentence = r"large.nii.gz has more voxels \(12 x 10 x 8\) than fit into memory;"
    with pytest.raises(InputError, match=sentence):
        read_volume(file)
    monkeypatch.setattr(nifti, "_machine_memory", lambda: 4 * 960)
    read_volume(file)
    monkeypatch.setattr(nifti, "_float32", mock.Mock(side_effect=MemoryError))
    with pytest.raises(InputError, match=sentence):
        read_volume(file)


def test_conditions_are_in_the_order_of_volumes(tmp_path, load, caplog):
    folder = tmp_path / "bids"
    folder.mkdir()
    for i in range(6):
        save(folder / f"sub-{i}_T1w.nii", template(1.0 + i) + 0.1 * (i % 2))
    rows = "".join(f"sub-{i}\t{60 + i}\t{'FM'[i % 2]}\n" for i in range(6))
    (folder / "participants.tsv").write_text(f"participant_id\tage\tsex\n{rows}")
    loaded = load(folder, shuffle=True)
    order = [int(name[-1]) for name in loaded.subjects]
    assert order != sorted(order)
    with caplog.at_level("INFO", "dipy_ldm"):
        conditions = loaded.conditions("age", "sex", coarsen={"age": 5})
    assert "6 subjects, from" in caplog.text
    ages = [60 if i < 3 else 65 for i in order]
    assert conditions == {"age": ages, "sex": ["FM"[i % 2] for i in order]}
    assert conditions.units == {"age": "years"}
    table = {"participant_id": [f"{i}" for i in range(6)], "iq": [*range(90, 96)]}
    assert loaded.conditions(table=table) == {"iq": [90 + i for i in order]}
    paths = {"path": [f"sub-{i}_T1w.nii" for i in range(6)], "iq": table["iq"]}
    paths["snr"] = np.array([np.inf] * 6)  # which nobody asks for
    assert loaded.conditions("iq", table=paths) == {"iq": [90 + i for i in order]}
    with pytest.raises(InputError, match="no column age; it has iq"):
        loaded.conditions("age", table=table)
    with pytest.raises(InputError, match="rows of the table can't be matched"):
        loaded.conditions(table={"iq": table["iq"]})


def test_plan_volumes_reads_lists_of_a_generator(cohort):
    (cohort / "list.csv").write_text("path,age\n0.nii.gz,61\n")
    planned = plan_volumes(cohort / name for name in ["list.csv"])
    (rows,) = planned.listed.values()
    assert rows[0].cells["age"] == "61"


def test_load_volumes_takes_a_fourth_axis_for_channels(tmp_path, load):
    both = np.stack([template(), template(50)[::-1]], -1)
    nib.save(nib.Nifti1Image(both, np.diag([2, 3, 4, 1.0])), tmp_path / "a.nii.gz")
    images = load(tmp_path, channels=True).images
    assert images.shape == (1, *SHAPE, 2)
    npt.assert_allclose(images[0, ..., 1], images[0, ::-1, ..., 0], atol=1e-5)
    with pytest.raises(InputError, match="add `channels`"):
        load(tmp_path)


def test_load_volumes_reports_all_bad_volumes(cohort, load, no_work, caplog):
    noise = np.random.default_rng(0).random((40, 40, 40)).astype("float32")
    broken = save(cohort / "1.nii.gz", noise, np.eye(4))
    broken.write_bytes(broken.read_bytes()[:100_000])
    save(cohort / "3.nii", np.full(SHAPE, 3.0))
    save(cohort / "4.nii", np.full(SHAPE, np.nan))
    with pytest.raises(InputError, match=r"`skip_bad` .* \(2 good\)") as report:
        load(cohort, shape=8)
    expected = ["1.nii.gz is cut off", "3.nii is constant (3)", "4.nii has NaN"]
    for error, sentence in zip(report.value.complaints, expected, strict=True):
        assert str(cohort / sentence) in error.problem
    # What was done is done.
    no_work()
    images, *_, files, _ = load(cohort, shape=8, skip_bad=True)
    assert [file.name for file in files] == ["0.nii.gz", "2.nii.gz"]
    assert images.shape == (2, 8, 8, 8, 1)
    npt.assert_allclose(images[1], images[0], atol=1e-5)
    assert {record.name for record in caplog.records} == {"dipy_ldm"}
    for sentence in expected:
        assert sentence in caplog.text
    with pytest.raises(InputError, match="1.nii.gz is cut off"):
        load(cohort, shape=8)
    moved = cohort.rename(cohort.with_name("moved"))
    complaints = load(moved, shape=8, skip_bad=True).complaints
    assert str(moved / expected[0]) in complaints[0].problem


def test_load_volumes_of_nothing_good_leaves_no_cache(cohort, load, tmp_path):
    for file in cohort.iterdir():
        save(file, np.zeros(SHAPE, "float32"))
    with pytest.raises(InputError, match=r"is constant \(0\)"):
        load(cohort, skip_bad=True)
    assert not list_cached(tmp_path / "cache")


def test_load_volumes_refuses_a_volume_off_the_grid(cohort, load):
    affine = np.eye(4)
    affine[0, 3] = 2000
    save(cohort / "3.nii", template(), affine)
    with pytest.raises(InputError, match="0.nii.gz has nothing on the grid"):
        load(cohort, shape=8)


@pytest.fixture
def masked(cohort, tmp_path):
    """Return the masks of the cohort."""
    folder = tmp_path / "masks"
    folder.mkdir()
    for i, axes in enumerate(ORIENTATIONS):
        mask = (template() > 0.3).astype("uint8") * (1, 255, 3)[i]
        save(folder / f"{i}.nii", mask, axes=axes)
    return folder


def test_load_volumes_conforms_masks(cohort, masked, load, no_work):
    images, masks, *_ = load(cohort, mask_files=[masked])
    assert isinstance(masks, np.memmap)
    assert masks.dtype == np.uint8
    npt.assert_array_equal(masks, np.broadcast_to(template() > 0.3, masks.shape))
    assert images[masks == 1].min() > images[masks == 0].max()
    halved = load(cohort, mask_files=[masked], voxel_size=(4, 3, 4)).masks
    assert set(np.unique(halved)) == {0, 1}
    assert abs(2 * halved.sum() / masks.sum() - 1) < 0.2
    no_work()
    npt.assert_array_equal(load(cohort, mask_files=[masked]).masks, masks)
    with pytest.raises(AssertionError, match="conformed again"):
        load(cohort)


def test_load_volumes_warns_of_similar_masks_together(cohort, load, tmp_path, caplog):
    files = [tmp_path / f"m{i}.nii" for i in range(3)]
    for file, axes in zip(files, ORIENTATIONS, strict=True):
        save(file, 0.1 + 9 * template(), axes=axes)
    with caplog.at_level("WARNING"):
        load(cohort, mask_files=files)
    (message,) = caplog.messages
    assert f"the mask {files[0]} has values from 0.1 to 9" in message
    assert message.endswith(f"holds for 2 more: {files[1]}, {files[2]}.")


def test_load_volumes_refuses_masks_on_other_grids(cohort, masked, load):
    with pytest.raises(InputError, match="there are 2 masks for 3 volumes"):
        load(cohort, mask_files=[masked / "0.nii", masked / "1.nii"])
    save(masked / "1.nii", template()[1:])
    save(masked / "2.nii", template(), np.diag([2, 2, 2, 1.0]))
    with pytest.raises(InputError) as refusal:
        load(cohort, mask_files=[masked])
    for name in ("masks/1.nii ", "cohort/1.nii.gz", "masks/2.nii ", "cohort/2.nii.gz"):
        assert name in str(refusal.value)
    _, masks, _, files, _ = load(cohort, mask_files=[masked], skip_bad=True)
    assert (len(masks), [file.name for file in files]) == (1, ["0.nii.gz"])


def test_load_volumes_skips_volumes_with_bad_masks(cohort, masked, load):
    (masked / "0.nii").write_text("no mask")
    save(masked / "1.nii", np.zeros(SHAPE, "uint8"), axes="LPS")
    with pytest.raises(InputError, match="masks/0.nii can't be read"):
        load(cohort, mask_files=[masked])
    _, masks, _, files, _ = load(cohort, mask_files=[masked], skip_bad=True)
    assert (len(masks), [file.name for file in files]) == (1, ["2.nii.gz"])
    masked = masked.rename(masked.with_name("moved"))
    (complaint,) = load(cohort, mask_files=[masked], skip_bad=True).complaints
    assert str(masked / "1.nii") in complaint.problem
    for i in (1, 2):
        (cohort / f"{i}.nii.gz").write_text("no volume")
    with pytest.raises(InputError, match="moved/0.nii can't be read"):
        load(cohort, mask_files=[masked], skip_bad=True)


def test_load_volumes_keeps_masks_and_volumes_apart_in_the_cache(cohort, load):
    image, other = cohort / "0.nii.gz", save(cohort / "other.nii", template(3))
    assert load(image, mask_files=[other]).masks is not None
    assert len(load(image, other).images) == 2


def test_load_volumes_shares_a_mask(tmp_path, load):
    for i in range(2):
        save(tmp_path / f"{i}.nii", template(1 + i))
    mask = save(tmp_path / "mask.nii.gz", (template() > 0.3).astype("uint8"))
    masks = load(tmp_path / "?.nii", mask_files=[mask, mask]).masks
    npt.assert_array_equal(masks[0], masks[1])
    save(tmp_path / "0.nii", template()[1:])
    with pytest.raises(InputError, match=r"0.nii.*\n.*skip_bad"):
        load(tmp_path / "?.nii", mask_files=[mask, mask])
    load(tmp_path / "?.nii", mask_files=[mask, mask], skip_bad=True)


def test_load_volumes_refuses_masks_that_are_empty_on_the_grid(cohort, masked, load):
    corner = np.zeros(SHAPE, "uint8")
    corner[0, 0, 0] = 1
    for i, axes in enumerate(ORIENTATIONS):
        save(masked / f"{i}.nii", corner, axes=axes)
    with pytest.raises(InputError, match=r"masks/0.nii has nothing on the grid"):
        load(cohort, mask_files=[masked], shape=6)


def test_load_volumes_shows_progress_on_request(cohort, load, capfd):
    load(cohort)
    assert capfd.readouterr().err == ""
    load(cohort, shape=8, verbose=True)
    assert "conform: 100%" in capfd.readouterr().err


@pytest.mark.parametrize("shape", [(91, 109, 91), (65, 33, 17)])
def test_bring_back_inverts_read(tmp_path, load, shape):
    x, y, z = (np.linspace(-1, 1, n) for n in shape)
    data = 700 * np.exp(-3 * (x[:, None, None] ** 2 + y[:, None] ** 2 + z**2))
    affine = np.diag([-2, 2, 2, 1.0])
    affine[:3, 3] = 90, -126, -72
    file = save(tmp_path / "a.nii", data.astype("float32"), affine)
    own, _ = read_volume(file)
    for voxel_size, tolerance in ((2, 1e-3), (3, 60)):
        images, _, grid_affine, *_ = load(file, voxel_size=voxel_size)
        grid = volumes.Grid(images.shape[1:4], grid_affine)
        image, origin = Channel("T1w").read(file, grid)
        npt.assert_array_equal(image, images[0])
        back = Channel("T1w").bring_back(image, origin)
        assert back.shape == own.shape
        # The brightest voxels were clipped.
        clipped = own.clip(max=origin.intensities.high)
        npt.assert_allclose(back, clipped, atol=tolerance)


def test_bring_back_keeps_voxels_off_the_grid(cohort, load):
    grid = volumes.Grid((6, 6, 4), load(cohort).affine)
    image, origin = Channel("T1w").read(cohort / "2.nii.gz", grid)
    back = Channel("T1w").bring_back(np.ones_like(image), origin)
    own, _ = read_volume(cohort / "2.nii.gz")
    changed = ~np.isclose(back, own)
    assert changed.sum() == 6 * 6 * 4
    npt.assert_allclose(back[changed], origin.intensities.high[0])
    repeated = np.stack([0 * image, np.full_like(image, 0.1 * np.sqrt(2))])
    spread = Channel("T1w").spread(repeated, origin)
    npt.assert_array_equal(spread > 0, changed)
    npt.assert_allclose(spread[changed], 0.1 * origin.intensities.high[0], rtol=1e-5)


def release_all(root):
    """Do what the end of a process does."""
    for folder in root.iterdir():
        volumes.cache.release(folder)


def test_load_volumes_limits_the_cache(cohort, load, tmp_path, caplog):
    def count():
        return len(list_cached(tmp_path / "cache"))

    caplog.set_level("INFO", "dipy_ldm")
    load(cohort, shape=8)
    load(cohort, shape=6)
    assert f"cached in {tmp_path / 'cache'}" in caplog.messages[-1]
    assert "GB in 2 folders" in caplog.messages[-1]
    release_all(tmp_path / "cache")
    load(cohort, shape=4, cache_limit=1)
    assert count() == 3
    load(cohort, shape=4, cache_limit=3 * 8**3 * 4 / 1e9)
    assert count() == 2
    with pytest.raises(InputError, match="cache_limit must be at least 0"):
        load(cohort, cache_limit=-1)


def test_load_volumes_frees_space_before_it_is_needed(
    cohort, load, tmp_path, monkeypatch
):
    load(cohort, shape=8)
    release_all(tmp_path / "cache")

    def fill(folder, plan, verbose):
        assert not list_cached(tmp_path / "cache")
        raise KeyboardInterrupt

    monkeypatch.setattr(volumes, "_fill", fill)
    with pytest.raises(KeyboardInterrupt):
        load(cohort, shape=6, cache_limit=3 * 6**3 * 4 / 1e9)


@pytest.mark.parametrize("far", [0, 500])
@pytest.mark.parametrize(
    "options",
    [
        {"channels": ["T1w", "T2w"]},
        {"suffix": "T1w", "source_channels": ["T2w"]},
        {"suffix": "T1w", "source_files": ["T2w"]},
        {"suffix": "T1w", "source_files": ["T2w"], "source_channels": ["T2w"]},
    ],
)
def test_files_of_other_spaces_are_refused(tmp_path, monkeypatch, options, far):
    """By names, or by headers where names say nothing."""
    monkeypatch.chdir(tmp_path)
    for folder in ("T1w", "T2w"):
        (tmp_path / folder).mkdir()
    data, affine = np.random.default_rng(0).random((9, 9, 9)), np.diag([2, 3, 4, 1.0])
    affine[:3, 3] = far
    space = "" if far else "space-MNI_"
    for i in range(2):
        save(f"T1w/sub-{i}_T1w.nii", data)
        save(f"T2w/sub-{i}_{space}T2w.nii", data, affine)
    places = ["T1w"] if "source_files" in options else ["T1w", "T2w"]
    with pytest.raises(InputError, match="are in different spaces, by") as refused:
        volumes.load_volumes(places, cache_dir="cache", **options)
    assert [file.name for file in refused.value.files] == [
        "sub-0_T1w.nii",
        f"sub-0_{space}T2w.nii",
    ]
    if far:
        return
    # The source in the space of the volume is taken, wherever else it is, too.
    for i in range(2):
        save(f"T2w/sub-{i}_T2w.nii", data[::-1])
    images, _, _, files, sources = volumes.load_volumes(
        places, cache_dir="cache", **options
    )
    assert [file.name for file in files] == ["sub-0_T1w.nii", "sub-1_T1w.nii"]
    second = images[..., 1] if sources is None else sources[..., 0]
    npt.assert_allclose(second, images[:, ::-1, ..., 0], atol=1e-6)
