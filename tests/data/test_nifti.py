"""NIfTI files: every kind is read, written files are true, bad ones are told."""

import errno
import gzip
from unittest import mock

import nibabel as nib
import numpy as np
import numpy.testing as npt
import pytest
from scans import small_files

from dipy_ldm._utils.checks import InputError
from dipy_ldm.data import _nifti as nifti
from dipy_ldm.data._nifti import check_headers, read_mask, read_volume, write_volume

DATA = np.random.default_rng(0).integers(0, 200, (6, 5, 4)).astype("float32")
TWO = np.stack([DATA, 2 * DATA], -1)
AFFINE = np.array([[0, -2, 0, 9], [1.5, 0, 0, -7], [0, 0, 3, 5], [0, 0, 0, 1.0]])


def save(path, data=DATA, affine=AFFINE, kind=nib.Nifti1Image, **kwargs):
    nib.save(kind(data, affine, **kwargs), path)
    return path


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize("dtype", ["u1", "i1", "<i2", ">i2", "u2", "i8", "f4", ">f8"])
def test_every_version_and_type_is_read(tmp_path, kind, ending, dtype):
    data = (DATA / 2).astype(dtype)
    file = save(tmp_path / f"a{ending}", data, kind=kind, dtype=data.dtype)
    (info,), complaints = check_headers([file])
    read, affine = read_volume(file)
    assert (info.shape, info.channels, complaints) == (DATA.shape, 1, {})
    assert read.dtype == np.float32
    npt.assert_array_equal(read[..., 0], data)
    npt.assert_array_equal(affine, AFFINE)
    npt.assert_array_equal(info.affine, AFFINE)


def test_slope_and_intercept_are_applied(tmp_path):
    image = nib.Nifti1Image(DATA.astype("int16"), AFFINE)
    image.header.set_slope_inter(0.5, -10)
    nib.save(image, tmp_path / "a.nii.gz")
    data, _ = read_volume(tmp_path / "a.nii.gz")
    npt.assert_allclose(data[..., 0], DATA * 0.5 - 10)


@pytest.mark.parametrize(
    ("shape", "channels"), [((6, 5, 4, 1), 1), ((6, 5, 4, 3), 3), ((6, 5, 4, 1, 3), 3)]
)
def test_further_axes_are_channels(tmp_path, shape, channels):
    data = np.random.default_rng(0).random(shape).astype("float32")
    file = save(tmp_path / "a.nii", data)
    (info,), _ = check_headers([file], channels=True)
    read, _ = read_volume(file, channels=True)
    assert (info.shape, info.channels) == ((6, 5, 4), channels)
    npt.assert_array_equal(read, data.reshape(6, 5, 4, channels))


def cut(path, keep):
    path.write_bytes(path.read_bytes()[:keep])


def write_rgb(path):
    colour = np.dtype([(name, "u1") for name in "RGB"])
    save(path, np.zeros((6, 5, 4), colour))


def write_affine(*diagonal):
    def write(path):
        image = nib.Nifti1Image(DATA, AFFINE)
        image.header.set_sform(np.diag([*diagonal, 1]), 1)
        # Through the bytes: nibabel writes the affine it was given.
        content = bytearray(image.to_bytes())
        content[280:328] = np.diag([*diagonal, 1]).astype("<f4")[:3].tobytes()
        packed = path.name.endswith("gz")
        path.write_bytes(gzip.compress(content) if packed else content)

    return write


BAD_HEADERS = {
    "empty": (lambda path: path.touch(), "is empty"),
    "missing": (lambda path: None, "there is no file"),
    "text": (lambda path: path.write_text("no volume" * 9), "can't be read as NIfTI"),
    "cut": (lambda path: cut(save(path), 100), "can't be read as NIfTI"),
    "flat": (lambda path: save(path, DATA[0]), "has shape .* or slices as"),
    "slice": (lambda path: save(path, DATA[:, :, :1]), "has shape .* or slices as"),
    "4-D": (lambda path: save(path, TWO), "has 2 volumes.* add `channels`"),
    "5-D": (lambda path: save(path, np.zeros((6, 5, 4, 2, 2), "f4")), "has shape"),
    "complex": (lambda path: save(path, DATA.astype("complex64")), "complex"),
    "colour": (write_rgb, "coloured"),
    "zero affine": (write_affine(0, 0, 0), "singular affine"),
    "NaN affine": (write_affine(1, np.nan, 1), "singular affine"),
    "singular affine": (write_affine(1, 1, 0), "singular affine"),
    "link": (lambda path: path.symlink_to("nowhere.nii"), "fetch it .datalad get"),
}


def test_ends_of_mixed_letters_are_refused(tmp_path):
    file = save(tmp_path / "a.nii.gz").rename(tmp_path / "a.Nii.gz")
    with pytest.raises(InputError, match="a.Nii.gz must end in .nii.* lower case"):
        read_volume(file)


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize("case", BAD_HEADERS)
def test_bad_headers_are_answered_with_their_cure(tmp_path, case, ending):
    write, sentence = BAD_HEADERS[case]
    file = tmp_path / f"a{ending}"
    write(file)
    for read in (read_volume, lambda file: check_headers([file])):
        with pytest.raises(InputError, match=sentence) as refusal:
            read(file)
        assert str(file) in str(refusal.value)
        assert str(refusal.value).count("\n") == 0


def test_surface_data_are_refused(tmp_path):
    scalars = nib.cifti2.ScalarAxis(["thickness"])
    voxels = nib.cifti2.BrainModelAxis.from_mask(DATA > 0, affine=AFFINE)
    data = np.ones((1, len(voxels)), "float32")
    file = tmp_path / "a.dscalar.nii"
    nib.Cifti2Image(data, (scalars, voxels)).to_filename(file)
    with pytest.raises(InputError, match="a.dscalar.nii is not NIfTI; convert it"):
        check_headers([file])


def test_truncated_file_is_refused_by_its_size(tmp_path):
    cut(save(tmp_path / "a.nii"), -9)
    with pytest.raises(InputError, match="is cut off"):
        check_headers([tmp_path / "a.nii"])
    # Compressed, if its size could hold no such volume however well it was packed.
    data = np.random.default_rng(0).random((80, 80, 80)).astype("float32")
    cut(save(tmp_path / "b.nii.gz", data), 1000)
    with pytest.raises(InputError, match="is cut off"):
        check_headers([tmp_path / "b.nii.gz"])


@pytest.mark.parametrize("keep", [-1, -9, -100, 20_000])
def test_truncated_compressed_file_is_refused_when_read(tmp_path, keep):
    data = np.random.default_rng(0).random((20, 20, 20)).astype("float32")
    file = save(tmp_path / "a.nii.gz", data)
    cut(file, keep)
    check_headers([file])
    with pytest.raises(InputError, match=r"a.nii.gz is cut off .*; copy"):
        read_volume(file)


def test_damaged_and_mistaken_compression_is_refused(tmp_path):
    data = np.random.default_rng(0).random((30, 30, 30)).astype("float32")
    content = bytearray(save(tmp_path / "a.nii.gz", data).read_bytes())
    content[5000:5100] = bytes(100)
    (tmp_path / "a.nii.gz").write_bytes(content)
    with pytest.raises(InputError, match="a.nii.gz is cut off or damaged"):
        read_volume(tmp_path / "a.nii.gz")
    save(tmp_path / "b.nii").rename(tmp_path / "b.nii.gz")
    with pytest.raises(InputError, match="incomplete or in another format"):
        read_volume(tmp_path / "b.nii.gz")


@pytest.mark.parametrize("end", [".nii", ".nii.gz"])
def test_failing_disk_is_distinguished_from_a_damaged_file(tmp_path, monkeypatch, end):
    file = save(tmp_path / f"a{end}")
    error = OSError(errno.EIO, "Input/output error")
    monkeypatch.setattr(nifti, "_float32", mock.Mock(side_effect=error))
    with pytest.raises(InputError, match=r"can't be read \(Input/output error\)"):
        read_volume(file)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
def test_values_that_are_not_finite_are_counted(tmp_path, value):
    data = DATA.astype("float64")
    data[:2, 3, 2] = value
    file = save(tmp_path / "a.nii.gz", data)
    with pytest.raises(InputError, match=r"a.nii.gz has NaN or infinite .* 2 voxels"):
        read_volume(file)


def test_a_constant_volume_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"a.nii is constant \(7\)"):
        read_volume(save(tmp_path / "a.nii", np.full((4, 4, 4), 7, "uint8")))


def test_one_report_names_all_bad_headers_and_the_rest_can_go_on(tmp_path, caplog):
    files = [save(tmp_path / f"good-{i}.nii") for i in range(3)]
    for i, (write, _) in enumerate(BAD_HEADERS.values()):
        files.insert(i, tmp_path / f"bad-{i}.nii")
        write(files[i])
    with pytest.raises(InputError, match=r"`skip_bad` .* \(3 good\)") as refusal:
        check_headers(files)
    lines = str(refusal.value).splitlines()
    assert len(lines) == len(BAD_HEADERS) + 1
    for i, line in enumerate(lines[:-1]):
        assert f"bad-{i}.nii" in line
    infos, complaints = check_headers(files, skip_bad=True)
    assert [info.file for info in infos] == files[-3:]
    assert list(complaints.values()) == lines[:-1]
    assert "bad-0.nii" in caplog.text
    with pytest.raises(InputError, match="bad-0.nii"):
        check_headers(files[:2], skip_bad=True)


@pytest.mark.parametrize("end", ["bval", "bvec"])
def test_a_diffusion_series_is_no_volume_of_channels(tmp_path, end):
    file = save(tmp_path / "sub-1_dwi.nii.gz", TWO)
    check_headers([file], channels=True)
    (tmp_path / f"sub-1_dwi.{end}").write_text("0 1000")
    for channels in (True, False):
        with pytest.raises(InputError, match=rf"{end} is beside it.* give a volume"):
            check_headers([file], channels)
    check_headers([save(file, DATA)])


def test_the_volume_with_other_channels_than_most_is_named(tmp_path):
    files = [save(tmp_path / f"{i}.nii", TWO) for i in range(2)]
    files.insert(0, save(tmp_path / "odd.nii"))
    with pytest.raises(InputError, match=r"odd.nii has 1 channels where most have 2"):
        check_headers(files, channels=True)


def test_missing_orientation_is_logged(tmp_path, caplog):
    image = nib.Nifti1Image(DATA, None)
    image.header.set_zooms((1, 2, 3))
    nib.save(image, tmp_path / "a.nii")
    (info,), _ = check_headers([tmp_path / "a.nii"])
    assert not info.oriented
    assert "neither sform nor qform" in caplog.text
    caplog.clear()
    check_headers([save(tmp_path / "b.nii")])
    assert not caplog.text


@pytest.mark.parametrize("unit", ["meter", "micron"])
def test_another_unit_than_mm_is_logged(tmp_path, caplog, unit):
    image = nib.Nifti1Image(DATA, AFFINE)
    image.header.set_xyzt_units(unit, "sec")
    nib.save(image, tmp_path / "a.nii")
    check_headers([tmp_path / "a.nii"])
    assert "1 volumes have headers in m" in caplog.text
    caplog.clear()
    image.header.set_xyzt_units("mm", "sec")
    nib.save(image, tmp_path / "b.nii")
    check_headers([tmp_path / "b.nii"])
    assert not caplog.text


def test_reports_on_many_files_end(tmp_path):
    files = [tmp_path / f"{i}.nii" for i in range(60)]
    with pytest.raises(InputError, match="\nand 10 more$") as report:
        check_headers(files)
    assert len(str(report.value).splitlines()) == 51


def test_masks_are_shares(tmp_path, caplog):
    share = (DATA / 200).astype("float32")
    npt.assert_array_equal(read_mask(save(tmp_path / "a.nii", share))[..., 0], share)
    labels = (DATA > 150) * 17
    file = save(tmp_path / "b.nii", labels.astype("uint8"))
    npt.assert_array_equal(read_mask(file)[..., 0], DATA > 150)
    assert not caplog.text
    resampled = (1.1 * share - 0.05).astype("float32")
    file = save(tmp_path / "e.nii", resampled)
    npt.assert_array_equal(read_mask(file)[..., 0], resampled.clip(0, 1))
    file = save(tmp_path / "f.nii", 100 * share)
    npt.assert_array_equal(read_mask(file)[..., 0], share != 0)
    assert "f.nii has values from" in caplog.text
    caplog.clear()
    read_mask(file, warn=False)
    assert not caplog.text
    ones = np.ones((4, 4, 4), "uint8")
    npt.assert_array_equal(read_mask(save(tmp_path / "c.nii", ones))[..., 0], ones)
    with pytest.raises(InputError, match=r"mask .*d.nii is empty"):
        read_mask(save(tmp_path / "d.nii", 0 * ones))
    with pytest.raises(InputError, match=r"\(6, 5, 4, 2\); give one of them"):
        read_mask(save(tmp_path / "e.nii", TWO))


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_written_volumes_come_back(tmp_path, ending):
    file = tmp_path / f"a{ending}"
    write_volume(file, DATA[..., None], AFFINE, description="synthetic, seed 1 " * 9)
    image = nib.load(file)
    assert image.shape == DATA.shape
    assert image.get_data_dtype() == np.float32
    assert image.header.get_xyzt_units()[0] == "mm"
    assert image.header["sform_code"] == image.header["qform_code"] == 2
    npt.assert_allclose(image.get_qform(), AFFINE, atol=1e-5)
    text = image.header["descrip"].item().decode()
    assert text == ("synthetic, seed 1 " * 9)[:79]
    data, affine = read_volume(file)
    npt.assert_array_equal(data[..., 0], DATA)
    npt.assert_array_equal(affine, AFFINE)
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


def test_shears_have_no_qform_and_spaces_are_kept(tmp_path):
    file, sheared = tmp_path / "a.nii", AFFINE.copy()
    sheared[0, 0] = 0.5
    write_volume(file, DATA, sheared, space=4)
    image = nib.load(file)
    assert (nifti.space_of(file), int(image.header["qform_code"])) == (4, 0)
    npt.assert_allclose(image.affine, sheared)
    image.header["sform_code"] = 0
    image.header["qform_code"] = 1
    nib.save(nib.Nifti1Image(DATA, None, image.header), file)
    assert nifti.space_of(file) == 1
    # That of none is known from the size of voxels alone.
    own = nib.Nifti1Image(DATA, None).header.get_base_affine()
    for affine, space in ((own, 0), (AFFINE, nifti.ALIGNED)):
        write_volume(file, DATA, affine, space=0)
        assert nifti.space_of(file) == space
        npt.assert_allclose(nib.load(file).affine, affine)


def test_names_of_channels_may_have_any_letters(tmp_path):
    write_volume(tmp_path / "a.nii", DATA, AFFINE, intent=("label", "Größe" * 9))
    intent = nib.load(tmp_path / "a.nii").header.get_intent()
    assert intent == ("label", (), "Gr??eGr??eGr??e")


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_files_may_be_in_the_home_folder(tmp_path, monkeypatch, ending):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_volume(f"~/a{ending}", DATA, AFFINE)
    assert [path.name for path in tmp_path.iterdir()] == [f"a{ending}"]
    npt.assert_array_equal(read_volume(f"~/a{ending}")[0][..., 0], DATA)


def test_channels_are_a_fourth_axis(tmp_path):
    write_volume(tmp_path / "a.nii", TWO, AFFINE)
    npt.assert_array_equal(read_volume(tmp_path / "a.nii", channels=True)[0], TWO)


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16", "int32"])
@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 3e4), (-1000, 2000), (-3, -1)])
def test_integers_use_their_range_and_keep_zero(tmp_path, dtype, low, high):
    data = np.linspace(low, high, 6 * 5 * 4).reshape(6, 5, 4).astype("float32")
    data[0, 0, 0] = 0
    write_volume(tmp_path / "a.nii", data, AFFINE, dtype=dtype)
    image = nib.load(tmp_path / "a.nii")
    assert image.get_data_dtype() == dtype
    levels = 2.0 ** (8 * np.dtype(dtype).itemsize - 1) - 1
    error = max(abs(low), abs(high), high - low) / levels + 1e-6 * abs(data).max()
    read = image.get_fdata()
    npt.assert_allclose(read, data, atol=0.51 * error)
    assert (read[data == 0] == 0).all()


@pytest.mark.parametrize("given", [bool, "int8", "uint8", "int32"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32"])
@pytest.mark.filterwarnings("error")
def test_whole_numbers_are_written_as_they_are(tmp_path, given, dtype):
    data = (DATA > 150).astype(given)
    write_volume(tmp_path / "a.nii", data, AFFINE, dtype=dtype)
    npt.assert_array_equal(nib.load(tmp_path / "a.nii").get_fdata(), data)


def test_a_constant_can_be_written_as_integers(tmp_path):
    for value in (0, 5, -5):
        data = np.full((3, 3, 3), value, "float32")
        write_volume(tmp_path / "a.nii", data, AFFINE, dtype="uint8")
        read = nib.load(tmp_path / "a.nii").get_fdata()
        npt.assert_allclose(read, value, rtol=1e-4)


def test_the_same_volume_makes_the_same_bytes(tmp_path):
    for name in ("a.nii.gz", "b.nii.gz"):
        write_volume(tmp_path / name, DATA, AFFINE)
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_whole_numbers_are_finite(tmp_path, value):
    data = np.where(DATA > 150, value, DATA)
    for dtype in ("uint8", "int16"):
        with pytest.raises(InputError, match=f"infinite values, which {dtype} can't"):
            write_volume(tmp_path / "a.nii", data, AFFINE, dtype=dtype)
    write_volume(tmp_path / "a.nii", data, AFFINE)
    npt.assert_array_equal(nib.load(tmp_path / "a.nii").get_fdata(), data)


def test_write_errors_are_one_sentence(tmp_path):
    with pytest.raises(InputError, match=r"must end in .nii or .nii.gz"):
        write_volume(tmp_path / "a.img", DATA, AFFINE)
    with pytest.raises(InputError, match="unknown type of voxels 'float16'"):
        write_volume(tmp_path / "a.nii", DATA, AFFINE, dtype="float16")
    with pytest.raises(OSError, match=r"can't write .*none/a.nii \(No such file"):
        write_volume(tmp_path / "none" / "a.nii", DATA, AFFINE)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_a_full_disk_leaves_nothing_half_written(tmp_path, name):
    data = np.random.default_rng(0).random((40, 40, 40)).astype("float32")
    with small_files(100_000), pytest.raises(OSError, match="can't write .*free some"):
        write_volume(tmp_path / name, data, AFFINE)
    assert not list(tmp_path.iterdir())
