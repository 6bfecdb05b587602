"""NIfTI files: all types are read, written files are correct, bad ones are reported."""

import errno
import gzip
import re
from unittest import mock

import nibabel as nib
import numpy as np
import numpy.testing as npt
import pytest
from scans import small_files

from dipy_ldm._utils.checks import InputError
from dipy_ldm.data import _nifti as nifti
from dipy_ldm.data._nifti import read_mask, read_volume, write_volume
from dipy_ldm.data._pairing import read_unnamed, refuse_bad

DATA = np.random.default_rng(0).integers(0, 200, (6, 5, 4)).astype("float32")
TWO = np.stack([DATA, 2 * DATA], -1)
AFFINE = np.array([[0, -2, 0, 9], [1.5, 0, 0, -7], [0, 0, 3, 5], [0, 0, 0, 1.0]])


def save(path, data=DATA, affine=AFFINE, kind=nib.Nifti1Image, **kwargs):
    nib.save(kind(data, affine, **kwargs), path)
    return path


def check_headers(files, channels=False, skip_bad=False):
    """Return the headers of good files, and complaints, as they are planned."""
    headers = read_unnamed(files, channels)
    tasks = refuse_bad("volumes", files, lambda: headers, skip_bad)
    return [task.info for task in tasks], headers.complaints


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize("dtype", ["u1", "i1", "<i2", ">i2", "u2", "i8", "f4", ">f8"])
def test_read_volume_of_every_version_and_type(tmp_path, kind, ending, dtype):
    data = (DATA / 2).astype(dtype)
    file = save(tmp_path / f"a{ending}", data, kind=kind, dtype=data.dtype)
    (info,), complaints = check_headers([file])
    read, affine = read_volume(file)
    assert (info.shape, info.channels, complaints) == (DATA.shape, 1, {})
    assert read.dtype == np.float32
    npt.assert_array_equal(read[..., 0], data)
    npt.assert_array_equal(affine, AFFINE)
    npt.assert_array_equal(info.affine, AFFINE)


def test_read_volume_applies_slope_and_intercept(tmp_path):
    image = nib.Nifti1Image(DATA.astype("int16"), AFFINE)
    image.header.set_slope_inter(0.5, -10)
    nib.save(image, tmp_path / "a.nii.gz")
    data, _ = read_volume(tmp_path / "a.nii.gz")
    npt.assert_allclose(data[..., 0], DATA * 0.5 - 10)


@pytest.mark.parametrize(
    ("shape", "channels"), [((6, 5, 4, 1), 1), ((6, 5, 4, 3), 3), ((6, 5, 4, 1, 3), 3)]
)
def test_read_volume_takes_further_axes_for_channels(tmp_path, rng, shape, channels):
    data = rng.random(shape, "float32")
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


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize("case", BAD_HEADERS)
def test_read_volume_refuses_bad_headers(tmp_path, case, ending):
    write, sentence = BAD_HEADERS[case]
    file = tmp_path / f"a{ending}"
    write(file)
    with pytest.raises(InputError, match=sentence) as refusal:
        read_volume(file)
    assert str(file) in str(refusal.value)


def test_read_volume_refuses_an_ending_of_mixed_letters(tmp_path):
    file = save(tmp_path / "a.nii.gz").rename(tmp_path / "a.Nii.gz")
    with pytest.raises(InputError, match="a.Nii.gz must end in .nii.* lower case"):
        read_volume(file)


def test_check_headers_refuses_surface_data(tmp_path):
    scalars = nib.cifti2.ScalarAxis(["thickness"])
    voxels = nib.cifti2.BrainModelAxis.from_mask(DATA > 0, affine=AFFINE)
    data = np.ones((1, len(voxels)), "float32")
    file = tmp_path / "a.dscalar.nii"
    nib.Cifti2Image(data, (scalars, voxels)).to_filename(file)
    with pytest.raises(InputError, match="a.dscalar.nii is not NIfTI; convert it"):
        check_headers([file])


@pytest.mark.parametrize(
    ("name", "n", "keep"),
    # Compressed: if no such volume could be packed so well.
    [("a.nii", 10, -9), ("a.nii.gz", 80, 1000)],
)
def test_check_headers_refuses_files_too_small_for_their_voxels(
    tmp_path, rng, name, n, keep
):
    cut(save(tmp_path / name, rng.random((n, n, n), "float32")), keep)
    with pytest.raises(InputError, match=f"{name} is cut off"):
        check_headers([tmp_path / name])


@pytest.mark.parametrize("keep", [-1, -9, -100, 20_000, None])
def test_read_volume_refuses_damaged_compression(tmp_path, rng, keep):
    file = save(tmp_path / "a.nii.gz", rng.random((20, 20, 20), "float32"))
    content = file.read_bytes()
    file.write_bytes(
        content[:keep] if keep else content.replace(content[500:600], b"x")
    )
    check_headers([file])
    with pytest.raises(InputError, match=r"a.nii.gz is cut off or damaged; copy"):
        read_volume(file)


def test_read_volume_refuses_an_uncompressed_file_that_ends_in_gz(tmp_path):
    file = save(tmp_path / "b.nii").rename(tmp_path / "b.nii.gz")
    with pytest.raises(InputError, match="incomplete or in another format"):
        read_volume(file)


@pytest.mark.parametrize("end", [".nii", ".nii.gz"])
def test_read_volume_names_an_error_of_the_disk(tmp_path, monkeypatch, end):
    error = OSError(errno.EIO, "Input/output error")
    monkeypatch.setattr(nifti, "_float32", mock.Mock(side_effect=error))
    with pytest.raises(InputError, match=r"can't be read \(Input/output error\)"):
        read_volume(save(tmp_path / f"a{end}"))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
def test_read_volume_counts_values_that_are_not_finite(tmp_path, value):
    data = DATA.astype("float64")
    data[:2, 3, 2] = value
    file = save(tmp_path / "a.nii.gz", data)
    with pytest.raises(InputError, match=r"a.nii.gz has NaN or infinite .* 2 voxels"):
        read_volume(file)


def test_check_headers_reports_all_bad_headers(tmp_path, caplog):
    files = [save(tmp_path / f"good-{i}.nii") for i in range(3)]
    for i, (write, _) in enumerate(BAD_HEADERS.values()):
        files.insert(i, tmp_path / f"bad-{i}.nii")
        write(files[i])
    with pytest.raises(InputError, match=r"`skip_bad` .* \(3 good\)") as refusal:
        check_headers(files)
    lines = [str(error) for error in refusal.value.complaints]
    sentences = (sentence for _, sentence in BAD_HEADERS.values())
    for i, (line, sentence) in enumerate(zip(lines, sentences, strict=True)):
        assert re.search(f"bad-{i}.nii.*{sentence}|{sentence}.*bad-{i}.nii", line)
    infos, complaints = check_headers(files, skip_bad=True)
    assert [info.file for info in infos] == files[-3:]
    assert list(map(str, complaints.values())) == lines
    assert "bad-0.nii" in caplog.text
    with pytest.raises(InputError, match="bad-0.nii"):
        check_headers(files[:2], skip_bad=True)


@pytest.mark.parametrize("end", ["bval", "bvec"])
def test_check_headers_refuses_diffusion_series(tmp_path, end):
    file = save(tmp_path / "sub-1_dwi.nii.gz", TWO)
    check_headers([file], channels=True)
    (tmp_path / f"sub-1_dwi.{end}").write_text("0 1000")
    for channels in (True, False):
        with pytest.raises(InputError, match=rf"{end} is .*_b0\) .* in a training"):
            check_headers([file], channels)
    check_headers([save(file, DATA)])


def test_check_headers_names_the_volume_with_other_channels(tmp_path):
    files = [save(tmp_path / f"{i}.nii", TWO) for i in range(2)]
    files.insert(0, save(tmp_path / "odd.nii"))
    with pytest.raises(InputError, match=r"odd.nii has 1 channels where most have 2"):
        check_headers(files, channels=True)


@pytest.mark.parametrize(
    ("affine", "unit", "warning"),
    [
        (None, "mm", "1 volumes have neither sform nor qform"),
        (AFFINE, "meter", "1 volumes have headers in metres"),
        (AFFINE, "micron", "1 volumes have headers in micrometres"),
        (AFFINE, "mm", ""),
    ],
)
def test_check_headers_warns_of_spaces(tmp_path, caplog, affine, unit, warning):
    image = nib.Nifti1Image(DATA, affine)
    image.header.set_xyzt_units(unit, "sec")
    nib.save(image, tmp_path / "a.nii")
    (info,), _ = check_headers([tmp_path / "a.nii"])
    assert info.oriented == (affine is not None)
    assert warning in caplog.text
    assert bool(caplog.text) == bool(warning)


def test_check_headers_reports_up_to_50_files(tmp_path):
    files = [tmp_path / f"{i}.nii" for i in range(60)]
    with pytest.raises(InputError, match="\nand 10 more$") as report:
        check_headers(files)
    assert len(str(report.value).splitlines()) == 51


SHARE = (DATA / 200).astype("float32")
RINGING = (1.1 * SHARE - 0.05).astype("float32")
ONES = np.ones((4, 4, 4), "uint8")


@pytest.mark.parametrize(
    ("data", "mask", "warned"),
    [
        (SHARE, SHARE, False),
        (((DATA > 150) * 17).astype("uint8"), DATA > 150, False),
        (RINGING, RINGING.clip(0, 1), False),
        (100 * SHARE, SHARE != 0, True),
        (ONES, ONES, False),
    ],
)
def test_read_mask_gives_shares(tmp_path, caplog, data, mask, warned):
    file = save(tmp_path / "a.nii", data)
    npt.assert_array_equal(read_mask(file, warn=False)[..., 0], mask)
    assert not caplog.text
    npt.assert_array_equal(read_mask(file)[..., 0], mask)
    assert ("a.nii has values from" in caplog.text) == bool(caplog.text) == warned


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (0 * ONES, "the mask .*a.nii is empty"),
        (TWO, r"\(6, 5, 4, 2\); give one of them"),
    ],
)
def test_read_mask_refuses_other_volumes(tmp_path, data, sentence):
    with pytest.raises(InputError, match=sentence):
        read_mask(save(tmp_path / "a.nii", data))


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_write_volume_round_trip(tmp_path, monkeypatch, ending):
    monkeypatch.setenv("HOME", str(tmp_path))
    text, intent = "synthetic, seed 1 " * 9, ("label", "Größe" * 9)
    for name in "ab":
        path = f"~/{name}{ending}"
        write_volume(path, DATA[..., None], AFFINE, description=text, intent=intent)
    data, affine = read_volume(f"~/a{ending}")
    npt.assert_array_equal(data[..., 0], DATA)
    npt.assert_array_equal(affine, AFFINE)
    file, same = sorted(tmp_path.iterdir())
    assert file.read_bytes() == same.read_bytes()
    image = nib.load(file)
    assert image.shape == DATA.shape
    assert image.get_data_dtype() == np.float32
    assert image.header.get_xyzt_units()[0] == "mm"
    assert image.header["sform_code"] == image.header["qform_code"] == 2
    npt.assert_allclose(image.get_qform(), AFFINE, atol=1e-5)
    assert image.header["descrip"].item().decode() == text[:79]
    assert image.header.get_intent() == ("label", (), "Gr??eGr??eGr??e")
    write_volume(file, TWO, AFFINE)
    npt.assert_array_equal(read_volume(file, channels=True)[0], TWO)


def test_write_volume_keeps_shears_and_spaces(tmp_path):
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


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16", "int32"])
@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 3e4), (-1000, 2000), (-3, -1)])
def test_write_volume_fills_the_range_of_integers_and_keeps_zero(
    tmp_path, dtype, low, high
):
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


@pytest.mark.parametrize("kind", [bool, "int8", "uint8", "int32"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32"])
@pytest.mark.filterwarnings("error")
def test_write_volume_keeps_whole_numbers(tmp_path, kind, dtype):
    data = (DATA > 150).astype(kind)
    write_volume(tmp_path / "a.nii", data, AFFINE, dtype=dtype)
    npt.assert_array_equal(nib.load(tmp_path / "a.nii").get_fdata(), data)


@pytest.mark.parametrize("value", [0, 5, -5])
def test_write_volume_of_a_constant_as_integers(tmp_path, value):
    data = np.full((3, 3, 3), value, "float32")
    write_volume(tmp_path / "a.nii", data, AFFINE, dtype="uint8")
    npt.assert_allclose(nib.load(tmp_path / "a.nii").get_fdata(), value, rtol=1e-4)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_write_volume_of_infinite_values_needs_floats(tmp_path, value):
    data = np.where(DATA > 150, value, DATA)
    for dtype in ("uint8", "int16"):
        with pytest.raises(InputError, match=f"infinite values, which {dtype} can't"):
            write_volume(tmp_path / "a.nii", data, AFFINE, dtype=dtype)
    write_volume(tmp_path / "a.nii", data, AFFINE)
    npt.assert_array_equal(nib.load(tmp_path / "a.nii").get_fdata(), data)


def test_write_volume_refuses_names_types_and_places(tmp_path):
    with pytest.raises(InputError, match=r"must end in .nii or .nii.gz"):
        write_volume(tmp_path / "a.img", DATA, AFFINE)
    with pytest.raises(InputError, match="unknown type of voxels 'float16'"):
        write_volume(tmp_path / "a.nii", DATA, AFFINE, dtype="float16")
    with pytest.raises(OSError, match=r"can't write .*none/a.nii \(No such file"):
        write_volume(tmp_path / "none" / "a.nii", DATA, AFFINE)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_write_volume_leaves_nothing_on_a_full_disk(tmp_path, rng, name):
    data = rng.random((40, 40, 40), "float32")
    with small_files(100_000), pytest.raises(OSError, match="can't write .*free some"):
        write_volume(tmp_path / name, data, AFFINE)
    assert not list(tmp_path.iterdir())
