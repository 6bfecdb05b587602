"""Loading one's own images."""

from PIL import Image
import numpy as np
import numpy.testing as npt
import pytest

from dipy_ldm.data import load_images
from dipy_ldm.validation import InputError

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
