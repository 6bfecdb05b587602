"""Files of two-dimensional images are read unchanged, or refused."""

from hashlib import sha256
import struct
import zlib

from PIL import Image
import numpy as np
import numpy.testing as npt
import pytest

from dipy_ldm._utils.checks import InputError
from dipy_ldm.data import load_images
from dipy_ldm.data.images import load_mnist

IMAGES = np.random.default_rng(0).integers(0, 255, (4, 6, 5)).astype("uint8")


def test_load_images_from_arrays(tmp_path):
    np.save(tmp_path / "a.npy", IMAGES)
    np.savez(tmp_path / "b.npz", other=IMAGES[:1], images=IMAGES[..., None])
    images = load_images([tmp_path / "a.npy", tmp_path / "b.npz"])
    assert images.dtype == np.float32
    npt.assert_array_equal(images, np.concatenate([IMAGES, IMAGES])[..., None])
    npt.assert_array_equal(load_images([tmp_path]), images)
    npt.assert_array_equal(load_images([tmp_path / "*.np?"]), images)


@pytest.mark.parametrize(
    ("mode", "channels", "options"),
    [
        ("L", 1, {}),
        ("I;16", 1, {}),
        ("RGB", 3, {}),
        ("P", 3, {}),
        # An opaque alpha is no channel.
        ("LA", 1, {}),
        ("RGBA", 3, {}),
        ("P", 3, {"transparency": b"\xff"}),
    ],
)
def test_load_images_from_png(tmp_path, mode, channels, options):
    for i, image in enumerate(IMAGES):
        Image.fromarray(image).convert(mode).save(tmp_path / f"{i}.png", **options)
    images = load_images([tmp_path])
    assert images.shape == (4, 6, 5, channels)
    npt.assert_array_equal(images[..., 0], IMAGES)


def test_load_images_leaves_out_pictures_by_commands(tmp_path, caplog):
    for name in ("a", "samples", "training"):
        Image.fromarray(IMAGES[0]).save(tmp_path / f"{name}.png")
    assert len(load_images([tmp_path])) == 3
    np.savez(tmp_path / "samples.npz", images=IMAGES)
    (tmp_path / "history.csv").touch()
    with caplog.at_level("INFO", "dipy_ldm"):
        assert len(load_images([tmp_path])) == 5
    assert "samples.png" in caplog.text and "training.png" in caplog.text
    assert len(load_images([tmp_path / "training.png"])) == 1


def write_transparent(path):
    picture = Image.fromarray(IMAGES[0]).convert("RGBA")
    picture.putpixel((1, 2), (0, 0, 0, 254))
    picture.save(path / "a.png")


def write_png(mode, **options):
    """Return what writes an image of a mode."""
    picture = Image.fromarray(IMAGES[0]).convert(mode)
    return lambda path: picture.save(path / "a.png", **options)


def write_depths(path, modes):
    for mode in modes:
        Image.fromarray(IMAGES[0]).convert(mode).save(path / f"{mode[0]}.png")


def spoilt(save, change):
    """Return what writes a file, and changes its bytes."""

    def write(path):
        save(path)
        (file,) = path.iterdir()
        content = bytearray(file.read_bytes())
        change(content)
        file.write_bytes(content)

    return write


def save_npz(path):
    np.savez(path / "a.npz", images=IMAGES)


def save_compressed(path):
    np.savez_compressed(path / "a.npz", images=IMAGES)


def encrypt(content):
    content[6] |= 1
    content[content.index(b"PK\x01\x02") + 8] |= 1


def cut_and_invert(content):
    content[50:] = bytes(255 - b for b in content[50:90])


def compress_otherwise(content):
    content[8] = content[content.index(b"PK\x01\x02") + 10] = 99


def invert(content):
    content[70:90] = bytes(255 - b for b in content[70:90])


def cut_off(content):
    del content[-9:]


def halve(content):
    del content[len(content) // 2 :]


def enlarge(content):
    """Let a PNG file be of 20000 x 20000 pixels, by its header."""
    content[16:24] = struct.pack(">II", 20_000, 20_000)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))


def rename_chunk(content):
    place = content.index(b"IDAT")
    content[place : place + 4] = bytes(4)


def write_header(path, shape):
    np.save(path / "a.npy", IMAGES)
    data = (path / "a.npy").read_bytes()
    old = b"(4, 6, 5), }" + 40 * b" "
    (path / "a.npy").write_bytes(data.replace(old, shape.ljust(len(old)), 1))


def write_two_shapes(path):
    np.save(path / "a.npy", IMAGES)
    np.save(path / "b.npy", IMAGES[:, 1:])


def saved(array):
    """Return what writes an array."""
    return lambda path: np.save(path / "a.npy", array)


TRANSPARENT = "transparent in parts; save it"
BAD_FILES = {
    "text": (lambda path: (path / "a.png").write_text("no picture"), "can't be read"),
    "truncated": (spoilt(saved(IMAGES), cut_off), "can't be read"),
    "truncated PNG": (spoilt(write_png("L"), halve), "can't be read"),
    "objects": (saved(np.array([{}, None])), "can't be read"),
    "encrypted": (spoilt(save_npz, encrypt), "can't be read"),
    "damaged": (spoilt(save_compressed, cut_and_invert), "can't be read"),
    "damaged stream": (spoilt(save_compressed, invert), "can't be read"),
    "other compression": (spoilt(save_compressed, compress_otherwise), "can't be read"),
    "header": (lambda path: write_header(path, b"(4, 6, 5), "), "can't be read"),
    "huge": (lambda path: write_header(path, b"(4, 6000000000, 5000), }"), "Unable to"),
    "bomb": (spoilt(write_png("1"), enlarge), "can't be read .*decompression bomb"),
    "PNG chunk": (spoilt(write_png("L"), rename_chunk), "can't be read"),
    "RGBA": (write_transparent, TRANSPARENT),
    "transparent grey": (
        write_png("L", transparency=int(IMAGES[0, 0, 0])),
        TRANSPARENT,
    ),
    "transparent palette": (write_png("P", transparency=b"\0"), TRANSPARENT),
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
def test_load_images_refuses_bad_files(tmp_path, case):
    write, sentence = BAD_FILES[case]
    write(tmp_path)
    with pytest.raises(InputError, match=sentence) as refusal:
        load_images([tmp_path])
    assert str(tmp_path) in str(refusal.value)


def test_load_images_from_paths_of_any_kind(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a" / "b").mkdir(parents=True)
    for name in ("a/b/c.npy", "~1.npy"):
        np.save(tmp_path / name, IMAGES)
    for path in ("~/a/b/c.npy", "~/a/b", "~/a/*", "a/**/*.npy", "~1.npy"):
        for paths in (path, [path]):
            assert load_images(paths).shape == (4, 6, 5, 1)


def test_load_images_refuses_paths_that_are_none(tmp_path):
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


def idx_bytes(values):
    """Return an IDX file: 2048 and the rank, big-endian sizes, the values."""
    header = struct.pack(f">{1 + values.ndim}I", 2048 + values.ndim, *values.shape)
    return header + values.astype("uint8").tobytes()


@pytest.mark.parametrize("split", PUBLISHED)
def test_load_mnist_gives_every_pixel_and_label_as_published(split):
    images, labels = load_mnist(split)
    assert images.shape[1:] == (28, 28, 1)
    assert (images.dtype, labels.dtype) == (np.float32, np.int64)
    assert (images.min(), images.max()) == (0, 1)
    images *= 255
    pixels = np.rint(images[..., 0], out=images[..., 0])
    files = idx_bytes(pixels), idx_bytes(labels)
    assert tuple(sha256(file).hexdigest() for file in files) == PUBLISHED[split]


def test_load_mnist_refuses_another_split():
    with pytest.raises(InputError, match="unknown split 'all'; choose one of train, "):
        load_mnist("all")
