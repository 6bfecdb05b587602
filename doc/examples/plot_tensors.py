"""
Maps of diffusion: b = 0, FA and MD together
============================================

Channels need not be scans. Here DIPY fits tensors to simulated diffusion series, and
one model learns three maps of each subject together: the b = 0 image, which has no
unit; fractional anisotropy (FA), between 0 and 1; and mean diffusivity (MD), in mm²/s.
What it generates obeys their ranges, and agrees: where FA is high, MD is that of white
matter. The example is short, so that they are smoother than what they were learnt from.
"""

# sphinx_gallery_thumbnail_number = 3

from pathlib import Path
import tempfile

from dipy.core.gradients import gradient_table
from dipy.core.sphere import HemiSphere, disperse_charges
from dipy.reconst.dti import TensorModel
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
# Anatomy is that of virtual brains, by how bright a voxel is in T1: fluid is dark,
# white matter is bright.

scratch = tempfile.TemporaryDirectory()
folder = Path(scratch.name)
make_cohort(folder / "anatomy", 50, verbose=False)
anatomy = load_volumes(
    [folder / "anatomy"], voxel_size=8, cache_dir=folder / "cache", shuffle=True
)
brightness = np.asarray(anatomy.images[..., 0], "float32")
brains = brightness > 0.1
white = np.clip((brightness - 0.65) / 0.15, 0, 1)
fluid = np.clip((0.45 - brightness) / 0.2, 0, 1)
grey = 1 - white - fluid

# %%
# A series has 6 images at b = 0 and 30 directions at b = 1000 s/mm². Fibres turn from
# place to place. Water moves along them three times as easily as across, in grey matter
# equally in all directions, and freely in fluid.

rng = np.random.default_rng(0)
start = rng.normal(size=(30, 3))
start = HemiSphere(xyz=start / np.linalg.norm(start, axis=1, keepdims=True))
directions = disperse_charges(start, 500)[0].vertices
gradients = gradient_table(
    np.repeat([0, 1000], [6, 30]), bvecs=np.concatenate([np.zeros((6, 3)), directions])
)

places = np.moveaxis(np.indices(brightness.shape[1:]), 0, -1) @ anatomy.affine[:3, :3].T
x, y, z = np.moveaxis(places + anatomy.affine[:3, 3], -1, 0) / 40
fibres = np.stack([np.cos(y + z), np.sin(x + z), np.cos(x - y)], -1)
fibres /= np.linalg.norm(fibres, axis=-1, keepdims=True)


def simulate(white, grey, fluid):
    """Return the noisy series of a subject, ``(x, y, z, 36)``."""
    along = np.square(fibres @ gradients.bvecs.T)
    b = gradients.bvals
    signal = 400 * white[..., None] * np.exp(-b * (0.5e-3 + 1.0e-3 * along))
    signal += 500 * grey[..., None] * np.exp(-b * 0.8e-3)
    signal += 1000 * fluid[..., None] * np.exp(-b * 3e-3)
    return add_noise(signal, 30, 400, noise_type="rician", rng=rng)


# %%
# DIPY's :class:`~dipy.reconst.dti.TensorModel` makes the maps, and each is a file with
# a name of BIDS. They are clipped to what the quantities can be: noise leads beyond.

for i, brain in enumerate(brains):
    series = simulate(white[i], grey[i], fluid[i]) * brain[..., None]
    tensors = TensorModel(gradients).fit(series, mask=brain)
    maps = {
        "b0": series[..., :6].mean(-1),
        "desc-FA_dwimap": tensors.fa.clip(0, 1),
        "desc-MD_dwimap": tensors.md.clip(0, 0.004),
    }
    for end, values in maps.items():
        image = nib.Nifti1Image(values.astype("float32"), anatomy.affine)
        path = folder / "maps" / f"sub-{i:02d}" / "dwi" / f"sub-{i:02d}_{end}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(image, path)

volumes = load_volumes(
    [folder / "maps"], channels=["b0", "desc-FA", "desc-MD"], cache_dir=folder / "cache"
)
for channel in volumes.channels:
    print(channel)

# %%
# Each row is a map, and each column a subject: three planes of b = 0, FA and MD.

images = np.asarray(volumes.images, "float32")
affine, channels = volumes.affine, volumes.channels
plot_samples(images[:3], affine=affine, channels=channels, columns=3)

# %%
# One autoencoder and one diffusion model learn all of them.

vqvae = VQVAE(widths=(16, 32), n_codes=256, n_codebooks=4, code_dim=8)
vqvae.fit(
    images,
    affine=volumes.affine,
    channels=volumes.channels,
    epochs=30,
    batch_size=4,
    verbose=False,
)
model = LatentDiffusion(vqvae, widths=(32, 64))
model.fit(images, epochs=60, batch_size=8, verbose=False)

generated = model.predict(40, seed=1)
plot_samples(generated[:3], affine=affine, channels=channels, columns=3)

# %%
# In their units again, no value leaves its range. How often FA and MD occur together
# says whether the maps belong to each other: white matter has high FA and an MD of
# about 0.0008 mm²/s, fluid no FA and a high MD.

figure, axes = plt.subplots(1, 2, figsize=(8, 3.6), layout="constrained", sharey=True)
for ax, title, stack in zip(axes, ("simulated", "generated"), (images, generated)):
    maps = split_channels(stack, volumes.channels)
    fa, md = maps["desc-FA"], maps["desc-MD"]
    print(f"{title}: FA {fa.min():.2f} to {fa.max():.2f}, MD to {md.max():.4f} mm²/s")
    inside = md > 2e-4
    ax.hist2d(
        fa[inside],
        1000 * md[inside],
        bins=40,
        range=[[0, 0.8], [0, 3.5]],
        density=True,
        norm="log",
    )
    ax.set(title=title, xlabel="FA", ylabel="MD, 0.001 mm²/s" if ax is axes[0] else "")
plt.show()
