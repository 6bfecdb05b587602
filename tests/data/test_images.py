"""None"""

from hashlib import sha256
import struct

from PIL import Image
import numpy as np
import numpy.testing as npt
import pytest

from dipy_ldm._utils.checks import InputError
from dipy_ldm.data import load_images
from dipy_ldm.data.images import load_mnist

IMAGES = np.random.default_rng(0).integers(0, 255, (4, 6, 5)).astype("uint8")


def test_npy_and_npz(tmp_path):
    np.save(tmp_path / "a.npy", IMAGES)
    np.savez(tmp_path / "b.npz", other=IMAGES[:1], images=IMAGES[..., None])
    images = load_images([tmp_path / "a.npy", tmp_path / "b.npz"])
    assert images.dtype == np.float32
    npt.assert_array_equal(images, np.concatenate([IMAGES, IMAGES])[..., None])
    npt.assert_array_equal(load_images([tmp_path]), images)
    npt.assert_array_equal(load_images([tmp_path / "*.np?"]), images)


@pytest.mark.parametrize("mode", ["L", "RGB", "I;16", "P"])
def test_folder_of_png(tmp_path, mode):
    for i, image in enumerate(IMAGES):
        picture = Image.fromarray(image)
        picture.convert(mode).save(tmp_path / f"{i}.png")
    images = load_images([tmp_path])
    channels = 3 if mode in ("RGB", "P") else 1
    assert images.shape == (4, 6, 5, channels)
    npt.assert_array_equal(images[..., 0], IMAGES)


def test_pictures_by_commands_are_no_images(tmp_path, caplog):
    for name in ("a", "samples", "training"):
        Image.fromarray(IMAGES[0]).save(tmp_path / f"{name}.png")
    assert len(load_images([tmp_path])) == 3
    np.savez(tmp_path / "samples.npz", images=IMAGES)
    (tmp_path / "history.csv").touch()
    with caplog.at_level("INFO", "dipy_ldm"):
        assert len(load_images([tmp_path])) == 5
    assert "samples.png" in caplog.text and "training.png" in caplog.text
    assert len(load_images([tmp_path / "training.png"])) == 1


@pytest.mark.parametrize("mode", ["LA", "RGBA", "P"])
def test_an_opaque_alpha_is_no_channel(tmp_path, mode):
    for i, image in enumerate(IMAGES):
        picture = Image.fromarray(image)
        if mode == "P":
            picture.convert(mode).save(tmp_path / f"{i}.png", transparency=b"\xff")
        else:
            picture.convert(mode).save(tmp_path / f"{i}.png")
    images = load_images([tmp_path])
    assert images.shape == (4, 6, 5, 1 if mode == "LA" else 3)
    npt.assert_array_equal(images[..., 0], IMAGES)


def write_transparent(path):
    picture = Image.fromarray(IMAGES[0]).convert("RGBA")
    picture.putpixel((1, 2), (0, 0, 0, 254))
    picture.save(path / "a.png")


def write_transparent_grey(path):
    Image.fromarray(IMAGES[0]).save(path / "a.png", transparency=int(IMAGES[0, 0, 0]))


def write_transparent_palette(path):
    Image.fromarray(IMAGES[0]).convert("P").save(path / "a.png", transparency=b"\0")


def write_depths(path, modes):
    for mode in modes:
        Image.fromarray(IMAGES[0]).convert(mode).save(path / f"{mode[0]}.png")


def spoilt_npz(change, save=np.savez_compressed):
    """Return what writes arrays, and changes the bytes of the file."""

    def write(path):
        save(path / "a.npz", images=IMAGES)
        data = bytearray((path / "a.npz").read_bytes())
        change(data)
        (path / "a.npz").write_bytes(data)

    return write


def encrypt(data):
    data[6] |= 1
    data[data.index(b"PK\x01\x02") + 8] |= 1


def cut_and_invert(data):
    data[50:] = bytes(255 - b for b in data[50:90])


def compress_otherwise(data):
    data[8] = data[data.index(b"PK\x01\x02") + 10] = 99


def invert(data):
    data[70:90] = bytes(255 - b for b in data[70:90])


def write_header(path, shape):
    np.save(path / "a.npy", IMAGES)
    data = (path / "a.npy").read_bytes()
    old = b"(4, 6, 5), }" + 40 * b" "
    (path / "a.npy").write_bytes(data.replace(old, shape.ljust(len(old)), 1))


def write_bomb(path):
    Image.new("1", (20_000, 20_000)).save(path / "a.png")


def write_png_chunk(path):
    Image.fromarray(IMAGES[0]).save(path / "a.png")
    data = (path / "a.png").read_bytes()
    (path / "a.png").write_bytes(data.replace(b"IDAT", b"\0\0\0\0"))


def write_truncated(path):
    np.save(path / "a.npy", IMAGES)
    (path / "a.npy").write_bytes((path / "a.npy").read_bytes()[:-9])


def write_truncated_png(path):
    noise = np.random.default_rng(0).integers(0, 255, (90, 90)).astype("uint8")
    Image.fromarray(noise).save(path / "a.png")
    (path / "a.png").write_bytes((path / "a.png").read_bytes()[:4000])


def write_two_shapes(path):
    np.save(path / "a.npy", IMAGES)
    np.save(path / "b.npy", IMAGES[:, 1:])


def saved(array):
    """Return what writes an array."""
    return lambda path: np.save(path / "a.npy", array)


BAD_FILES = {
    "text": (lambda path: (path / "a.png").write_text("no picture"), "can't be read"),
    "truncated": (write_truncated, "can't be read"),
    "truncated PNG": (write_truncated_png, "can't be read"),
    "objects": (saved(np.array([{}, None])), "can't be read"),
    "encrypted": (spoilt_npz(encrypt, np.savez), "can't be read"),
    "damaged": (spoilt_npz(cut_and_invert), "can't be read"),
    "damaged stream": (spoilt_npz(invert), "can't be read"),
    "other compression": (spoilt_npz(compress_otherwise), "can't be read"),
    "header": (lambda path: write_header(path, b"(4, 6, 5), "), "can't be read"),
    "huge": (lambda path: write_header(path, b"(4, 6000000000, 5000), }"), "Unable to"),
    "bomb": (write_bomb, "can't be read"),
    "PNG chunk": (write_png_chunk, "can't be read"),
    "RGBA": (write_transparent, "transparent in parts; save it"),
    "transparent grey": (write_transparent_grey, "transparent in parts; save it"),
    "transparent palette": (write_transparent_palette, "transparent in parts; save it"),
    "1 bit": (lambda path: write_depths(path, ["1", "L"]), "1 bits .* has 8; .* same"),
    "16 bits": (lambda path: write_depths(path, ["I;16", "L"]), "16 bits .* has 8"),
    "strings": (saved(np.full((2, 2, 2), "x")), "give real numbers"),
    "NaN": (saved(np.where(IMAGES == IMAGES[1, 0, 0], np.nan, 1.0)), "NaN or infinite"),
    "two shapes": (write_two_shapes, "of one shape"),
    "two arrays": (
        lambda path: np.savez(path / "a.npz", one=IMAGES, two=IMAGES),
        "name the one to use",
    ),
    "no array": (lambda path: np.savez(path / "a.npz"), "holds no array"),
    "flat": (saved(IMAGES[0, 0]), "has shape"),
    "none": (saved(IMAGES[:0]), "has shape"),
    "empty folder": (lambda path: None, "has no images"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_files_are_answered_with_their_cure(tmp_path, case):
    write, sentence = BAD_FILES[case]
    write(tmp_path)
    with pytest.raises(InputError, match=sentence) as refusal:
        load_images([tmp_path])
    assert str(tmp_path) in str(refusal.value)


def test_images_are_found_by_the_paths_that_volumes_take(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a" / "b").mkdir(parents=True)
    for name in ("a/b/c.npy", "~1.npy"):
        np.save(tmp_path / name, IMAGES)
    for path in ("~/a/b/c.npy", "~/a/b", "~/a/*", "a/**/*.npy", "~1.npy"):
        for paths in (path, [path]):
            assert load_images(paths).shape == (4, 6, 5, 1)


def test_paths_that_are_none(tmp_path):
    with pytest.raises(InputError, match="there is no file"):
        load_images([tmp_path / "a.npy"])
    (tmp_path / "a.jpg").write_text("")
    with pytest.raises(InputError, match="of no known kind"):
        load_images([tmp_path / "a.jpg"])
    with pytest.raises(InputError, match="there are no images"):
        load_images([])


# The four files as their authors published them, decompressed.
PUBLISHED = {
    "train": (
        "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    ),
    "test": (
        "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    ),
}
SIZES = {"train": 60000, "test": 10000}


def idx_bytes(values):
    """An IDX file: two zeros, 8 for uint8, the rank, big-endian sizes, the values."""
    header = struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape)
    return header + values.astype(np.uint8).tobytes()


@pytest.mark.parametrize("split", PUBLISHED)
def test_every_pixel_and_label_is_as_published(split):
    images, labels = load_mnist(split)
    files = idx_bytes(np.rint(images[..., 0] * 255)), idx_bytes(labels)
    assert tuple(sha256(file).hexdigest() for file in files) == PUBLISHED[split]
    assert images.shape == (SIZES[split], 28, 28, 1)
    assert images.dtype == np.float32
    assert (images.min(), images.max()) == (0, 1)
    assert labels.shape == (SIZES[split],)
    assert labels.dtype == np.int64
    assert set(labels) == set(range(10))


def test_another_split_is_refused():
    with pytest.raises(InputError, match="unknown split 'all'; choose one of train, "):
        load_mnist("all")
