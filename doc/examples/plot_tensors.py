"""
Diffusion tensors: b = 0 and directions together
================================================

Channels need not be scans. Here DIPY fits tensors to simulated diffusion series, and
one model is trained on the b = 0 image, which has no unit, and the tensor of each voxel
together. It is trained on the logarithm of tensors, six maps with a known range and
unit: for any six generated numbers, the exponential is a valid tensor, with FA below 1
and positive diffusivities. The example is short, so generated maps are smoother than
training maps.
"""

# sphinx_gallery_thumbnail_number = 2

from pathlib import Path
import tempfile

from dipy.core.gradients import gradient_table
from dipy.core.sphere import HemiSphere, disperse_charges
from dipy.reconst.dti import (
    TensorModel,
    color_fa,
    fractional_anisotropy,
    from_lower_triangular,
    lower_triangular,
)
from dipy.sims.voxel import add_noise
import matplotlib.pyplot as plt
import nibabel as nib
import numpy as np
from virtual_cohort import make_cohort

from dipy_ldm import VQVAE, LatentDiffusion
from dipy_ldm.data import load_volumes
from dipy_ldm.data.channels import split_channels
from dipy_ldm.plots import plot_samples

# %%
# The anatomy is that of virtual brains of one scanner. Tissues are derived from the T1
# intensity: fluid is dark, white matter is bright.

scratch = tempfile.TemporaryDirectory()
folder = Path(scratch.name)
make_cohort(folder / "anatomy", 50, verbose=False, site="B")
anatomy = load_volumes(
    [folder / "anatomy"], voxel_size=8, cache_dir=folder / "cache", shuffle=True
)
brightness = np.asarray(anatomy.images[..., 0], "float32")
brains = brightness > 0.1
white = np.clip((brightness - 0.62) / 0.13, 0, 1)
fluid = np.clip((0.42 - brightness) / 0.2, 0, 1)
grey = 1 - white - fluid

# %%
# A series has 6 images at b = 0 and 30 directions at b = 1000 s/mm². Fibre directions
# vary in space, slightly differently in each brain. Water diffuses three times as fast
# along fibres as across, isotropically in grey matter, and freely in fluid.

rng = np.random.default_rng(0)
start = rng.normal(size=(30, 3))
start = HemiSphere(xyz=start / np.linalg.norm(start, axis=1, keepdims=True))
directions = disperse_charges(start, 500)[0].vertices
gradients = gradient_table(
    np.repeat([0, 1000], [6, 30]), bvecs=np.concatenate([np.zeros((6, 3)), directions])
)
places = np.moveaxis(np.indices(brightness.shape[1:]), 0, -1) @ anatomy.affine[:3, :3].T
places = (places + anatomy.affine[:3, 3]) / 40


def simulate(white, grey, fluid):
    """Return the noisy series of a subject, ``(x, y, z, 36)``."""
    x, y, z = np.moveaxis(places + rng.normal(scale=0.15, size=3), -1, 0)
    fibres = np.stack([np.cos(y + z), np.sin(x + z), np.cos(x - y)], -1)
    fibres /= np.linalg.norm(fibres, axis=-1, keepdims=True)
    along = np.square(fibres @ gradients.bvecs.T)
    b = gradients.bvals
    signal = 400 * white[..., None] * np.exp(-b * (0.5e-3 + 1.0e-3 * along))
    signal += 500 * grey[..., None] * np.exp(-b * 0.8e-3)
    signal += 1000 * fluid[..., None] * np.exp(-b * 3e-3)
    return add_noise(signal, 30, 400, noise_type="rician", rng=rng)


# %%
# DIPY's :class:`~dipy.reconst.dti.TensorModel` fits tensors. Their logarithm
# :footcite:p:`Arsigny2006` has the same eigenvectors, and the logarithms of the
# eigenvalues. Diffusivities are in µm²/ms, so that 1 becomes 0, the value outside
# brains. Eigenvalues below 0.3 and above 3.3 µm²/ms are noise here and are clipped, so
# that all six numbers are between -1.2 and 1.2. Each map is a file with a BIDS name.

LIMIT = 1.2
TENSOR = [f"desc-log{axes}" for axes in ("XX", "XY", "YY", "XZ", "YZ", "ZZ")]

for i, brain in enumerate(brains):
    series = simulate(white[i], grey[i], fluid[i]) * brain[..., None]
    fit = TensorModel(gradients).fit(series, mask=brain)
    values = np.log(1000 * fit.evals[brain]).clip(-LIMIT, LIMIT)
    vectors = fit.evecs[brain]
    logs = np.zeros((*brain.shape, 6))
    logs[brain] = lower_triangular(vectors * values[:, None] @ vectors.swapaxes(1, 2))
    maps = {f"{name}_dwimap": logs[..., j] for j, name in enumerate(TENSOR)}
    maps["b0"] = series[..., :6].mean(-1)
    for end, voxels in maps.items():
        image = nib.Nifti1Image(voxels.astype("float32"), anatomy.affine)
        path = folder / "maps" / f"sub-{i:02d}" / "dwi" / f"sub-{i:02d}_{end}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(image, path)

volumes = load_volumes(
    [folder / "maps"],
    channels=["b0", *(f"{name}=-{LIMIT}:{LIMIT}:log(um^2/ms)" for name in TENSOR)],
    cache_dir=folder / "cache",
)
for channel in volumes.channels:
    print(channel)

# %%
# Rows are channels and columns are subjects: three planes of b = 0 and of the six maps,
# in which 0 is grey.

images = np.asarray(volumes.images, "float32")
affine, channels = volumes.affine, volumes.channels
plot_samples(images[:3], affine=affine, channels=channels, columns=3)

# %%
# One autoencoder and one diffusion model are trained on all channels.

vqvae = VQVAE(widths=(16, 32), n_codes=256, n_codebooks=4, code_dim=8)
vqvae.fit(
    images, affine=affine, channels=channels, epochs=40, batch_size=4, verbose=False
)
model = LatentDiffusion(vqvae, widths=(32, 64))
model.fit(images, epochs=120, batch_size=8, verbose=False)

generated = model.predict(40, seed=1)

# %%
# The exponential has the same eigenvectors. Direction-encoded colour maps of FA, of
# three simulated brains (above) and generated ones (below): red is left-right, green
# anterior-posterior, and blue superior-inferior.


def read_tensors(images):
    """Return FA, MD in µm²/ms and colours of images."""
    maps = split_channels(images, channels)
    logs = from_lower_triangular(np.stack([maps[name] for name in TENSOR], -1))
    values, vectors = np.linalg.eigh(logs)
    # DIPY sorts them from the largest.
    values, vectors = np.exp(values[..., ::-1]), vectors[..., ::-1]
    fa = fractional_anisotropy(values)
    return fa, values.mean(-1), color_fa(fa, vectors)


tensors = {"simulated": read_tensors(images), "generated": read_tensors(generated)}
colours = np.concatenate([colours[:3] for *_, colours in tensors.values()])
plot_samples(colours, affine=affine, columns=3)

# %%
# No FA is above 1. The joint distribution of FA and MD shows whether the six maps are
# consistent: white matter has high FA and an MD of about 0.8 µm²/ms, fluid has FA near
# 0 and a high MD.

figure, axes = plt.subplots(1, 2, figsize=(8, 3.6), layout="constrained", sharey=True)
for ax, stack, (title, (fa, md, _)) in zip(axes, (images, generated), tensors.items()):
    print(f"{title}: FA {fa.min():.2f} to {fa.max():.2f}, MD to {md.max():.1f} µm²/ms")
    inside = stack[..., 0] > 0.1
    ax.hist2d(
        fa[inside],
        md[inside],
        bins=40,
        range=[[0, 0.8], [0, 3.5]],
        density=True,
        norm="log",
    )
    ax.set(title=title, xlabel="FA", ylabel="MD, µm²/ms" if ax is axes[0] else "")
plt.show()

# %%
# References
# ----------
#
# .. footbibliography::
