"""NIfTI files for the tests that read them."""

from contextlib import contextmanager
import errno
import json
import resource

import nibabel as nib
import numpy as np

from dipy_ldm.data import _nifti as nifti

SPACE, SIZE = (12, 11, 13), 8.0
# Type, slope and intercept, version of the format, and whether it is compressed.
KINDS = {
    "int16": (">i2", 0.5, -3, nib.Nifti1Image, ".nii.gz"),
    "uint8": ("uint8", 1, 0, nib.Nifti1Image, ".nii"),
    "float64": ("float64", 1, 0, nib.Nifti2Image, ".nii.gz"),
}


def save(path, data, affine=None):
    data = np.asarray(data, "float32")
    affine = np.eye(4) if affine is None else np.asarray(affine, "float32")
    image = nib.Nifti1Image(data, None)
    image.header.set_sform(affine, 1)
    # Not by way of an image, which would refuse some of them.
    image.header["qform_code"] = 0
    nib.save(nib.Nifti1Image(data, None, image.header), path)


def places(shape, affine):
    """World coordinates of all voxels, ``(*shape, 3)``."""
    return np.moveaxis(np.indices(shape), 0, -1) @ affine[:3, :3].T + affine[:3, 3]


def list_cached(root):
    """Return all that is in a cache, except hashes of files."""
    return [path for path in root.iterdir() if path.name != "hashes.json"]


@contextmanager
def disk_error(monkeypatch, name):
    """Let reading a compressed file of this name fail within this context."""

    def fail(file):
        if file.name == name:
            raise OSError(errno.EIO, "Input/output error")
        return read(file)

    read = nifti.gzip.open
    with monkeypatch.context() as patch:
        patch.setattr(nifti.gzip, "open", fail)
        yield


def grid_affine():
    affine = np.diag([SIZE, SIZE, SIZE, 1])
    affine[:3, 3] = -SIZE * (np.array(SPACE) - 1) / 2
    return affine


def blocky_volumes():
    """Return 8 volumes on that grid, in blocks as large as those of a latent."""
    blocks = np.random.default_rng(0).random((8, 3, 3, 4, 1))
    return np.kron(blocks, np.ones((1, 4, 4, 4, 1)))[:, :12, :11, :13]


def soft_balls(n, seed, shape=(13, 12, 11), radii=(2, 4)):
    """Draw soft balls of different sizes and places, in [0, 1]."""
    rng = np.random.default_rng(seed)
    centre = np.array(shape) / 2 + rng.uniform(-2, 2, (n, 1, 1, 1, 3))
    radius = rng.uniform(*radii, (n, 1, 1, 1))
    distance = np.linalg.norm(np.stack(np.indices(shape), -1) - centre, axis=-1)
    return np.float32(1 / (1 + np.exp(distance - radius)))[..., None]


def ellipsoid(centre, radii, shape=(16, 20, 18)):
    """Return where voxels lie in an ellipsoid."""
    axes = zip(np.ogrid[tuple(map(slice, shape))], centre, radii, strict=True)
    return sum(((a - c) / r) ** 2 for a, c, r in axes) < 1


def write_volumes(folder, volumes, affine):
    """Write volumes into a new folder, named after it; return the folder."""
    folder.mkdir()
    for i, volume in enumerate(volumes):
        path = folder / f"{folder.name}-{i:03d}.nii.gz"
        save(path, 100 * volume[..., 0], affine)
    return folder


@contextmanager
def small_files(size):
    """Let no file grow beyond a size, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def make_scan(folder, kind="int16", name="scan"):
    """Write a scan in its own space; return its path and raw voxels."""
    dtype, slope, intercept, image_type, end = KINDS[kind]
    shape = (31, 24, 27)
    affine = np.array([[0, 0, 3.2, -40], [-3.5, 0.2, 0, 50], [0, 3.1, 0, -38.0]])
    affine = np.vstack([affine, [0, 0, 0, 1]])
    raw = np.random.default_rng(1).uniform(20, 200, shape).astype(dtype)
    order = ">" if dtype.startswith(">") else "<"
    image = image_type(raw, affine, image_type.header_class(endianness=order))
    image.set_data_dtype(raw.dtype)
    image.header.set_slope_inter(slope, intercept)
    image.header["descrip"] = b"echo 2.9"
    image.header["intent_name"] = b"mine"
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"kept"))
    path = folder / f"{name}{end}"
    nib.save(image, path)
    return path, raw, affine


def comment_of(image):
    """Return what an image carries as JSON in the extension of its header."""
    (comment,) = image.header.extensions
    return json.loads(comment.get_content().decode())


def raw_voxels(path):
    return np.asanyarray(nib.load(path).dataobj.get_unscaled())
