"""Loading one's own images."""

from PIL import Image
import numpy as np
import numpy.testing as npt
import pytest

from dipy_ldm._utils.checks import InputError
from dipy_ldm.data import load_images

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


def write_encrypted(path):
    np.savez(path / "a.npz", images=IMAGES)
    data = bytearray((path / "a.npz").read_bytes())
    data[6] |= 1
    data[data.index(b"PK\x01\x02") + 8] |= 1
    (path / "a.npz").write_bytes(data)


def write_damaged_npz(path):
    np.savez_compressed(path / "a.npz", images=IMAGES)
    data = (path / "a.npz").read_bytes()
    (path / "a.npz").write_bytes(data[:50] + bytes(255 - b for b in data[50:90]))


def write_another_compression(path):
    np.savez_compressed(path / "a.npz", images=IMAGES)
    data = bytearray((path / "a.npz").read_bytes())
    data[8] = data[data.index(b"PK\x01\x02") + 10] = 99
    (path / "a.npz").write_bytes(data)


def write_damaged_stream(path):
    np.savez_compressed(path / "a.npz", images=IMAGES)
    data = bytearray((path / "a.npz").read_bytes())
    for i in range(70, 90):
        data[i] ^= 255
    (path / "a.npz").write_bytes(data)


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


def write_text(path):
    (path / "a.png").write_text("no picture")


def write_truncated(path):
    np.save(path / "a.npy", IMAGES)
    (path / "a.npy").write_bytes((path / "a.npy").read_bytes()[:-9])


def write_truncated_png(path):
    noise = np.random.default_rng(0).integers(0, 255, (90, 90)).astype("uint8")
    Image.fromarray(noise).save(path / "a.png")
    (path / "a.png").write_bytes((path / "a.png").read_bytes()[:4000])


def write_objects(path):
    np.save(path / "a.npy", np.array([{}, None]), allow_pickle=True)


def write_strings(path):
    np.save(path / "a.npy", np.full((2, 2, 2), "x"))


def write_nan(path):
    np.save(path / "a.npy", np.where(IMAGES == IMAGES[1, 0, 0], np.nan, IMAGES))


def write_two_shapes(path):
    np.save(path / "a.npy", IMAGES)
    np.save(path / "b.npy", IMAGES[:, 1:])


def write_two_arrays(path):
    np.savez(path / "a.npz", one=IMAGES, two=IMAGES)


def write_no_array(path):
    np.savez(path / "a.npz")


def write_flat(path):
    np.save(path / "a.npy", IMAGES[0, 0])


def write_none(path):
    np.save(path / "a.npy", IMAGES[:0])


@pytest.mark.parametrize(
    ("write", "sentence"),
    [
        (write_text, "can't be read"),
        (write_truncated, "can't be read"),
        (write_truncated_png, "can't be read"),
        (write_objects, "can't be read"),
        (write_encrypted, "can't be read"),
        (write_damaged_npz, "can't be read"),
        (write_damaged_stream, "can't be read"),
        (write_another_compression, "can't be read"),
        (lambda path: write_header(path, b"(4, 6, 5), "), "can't be read"),
        (lambda path: write_header(path, b"(4, 6000000000, 500000), }"), "Unable to"),
        (write_bomb, "can't be read"),
        (write_png_chunk, "can't be read"),
        (write_transparent, "transparent in parts; save it"),
        (write_transparent_grey, "transparent in parts; save it"),
        (write_transparent_palette, "transparent in parts; save it"),
        (lambda path: write_depths(path, ["1", "L"]), "1 bits .* 8: .* as many bits"),
        (lambda path: write_depths(path, ["I;16", "L"]), "16 bits .* has 8"),
        (write_strings, "give real numbers"),
        (write_nan, "NaN or infinite"),
        (write_two_shapes, "of one shape"),
        (write_two_arrays, "name the one to use"),
        (write_no_array, "holds no array"),
        (write_flat, "has shape"),
        (write_none, "has shape"),
        (lambda path: None, "has no images"),
    ],
)
def test_bad_files_are_answered_with_their_cure(tmp_path, write, sentence):
    write(tmp_path)
    with pytest.raises(InputError, match=sentence) as refusal:
        load_images([tmp_path])
    assert str(tmp_path) in str(refusal.value)


def test_paths_that_are_none(tmp_path):
    with pytest.raises(InputError, match="there is no file"):
        load_images([tmp_path / "a.npy"])
    (tmp_path / "a.jpg").write_text("")
    with pytest.raises(InputError, match="of no known kind"):
        load_images([tmp_path / "a.jpg"])
