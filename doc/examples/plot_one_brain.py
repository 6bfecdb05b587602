"""
One brain with several conditions
=================================

A model that is conditioned on the volume of the ventricles generates one brain with
small ones and with large ones; conditioned on age, it would show one brain over the
years. To keep this page short, the cohort is small, the voxels are large, and training
takes minutes.
"""

# sphinx_gallery_thumbnail_number = 2

from pathlib import Path
import tempfile

import matplotlib.pyplot as plt
import numpy as np
from virtual_cohort import make_cohort

from dipy_ldm import VQVAE, LatentDiffusion
from dipy_ldm.data import load_volumes, read_covariates
from dipy_ldm.plots import planes

# %%
# Virtual subjects, with their covariates in a table like ``participants.tsv`` of a BIDS
# dataset. One in ten values is missing.

scratch = tempfile.TemporaryDirectory()
folder = Path(scratch.name)
make_cohort(folder, 100, covariates=True, verbose=False)
print("".join((folder / "participants.tsv").open().readlines()[:5]))

# %%
# Covariates are matched by file names, in the order of the volumes.

volumes = load_volumes([folder], voxel_size=6)
images = np.asarray(volumes.images, "float32")
covariates = read_covariates(["ventricles"], volumes.files).values
print({name: values[:5] for name, values in covariates.items()})

# %%
# The autoencoder needs no covariates; the denoiser is conditioned on them. 16 volumes
# are held out, with their covariates.


def part(start, stop):
    """Return the images and covariates of a range of volumes."""
    rows = slice(start, stop)
    return images[rows], {name: values[rows] for name, values in covariates.items()}


(held_out, held_out_covariates), (train, train_covariates) = part(0, 16), part(16, 100)
vqvae = VQVAE(widths=(16, 32), n_codes=256, n_codebooks=4, code_dim=8)
vqvae.fit(
    train,
    validation_data=held_out,
    affine=volumes.affine,
    epochs=25,
    batch_size=4,
    verbose=False,
)
model = LatentDiffusion(vqvae, widths=(32, 64))
model.fit(
    train,
    train_covariates,
    validation_data=held_out,
    validation_conditions=held_out_covariates,
    epochs=60,
    batch_size=8,
    verbose=False,
)
print(model.conditions_["ventricles"])

# %%
# With the same noise for all conditions, brains differ by the condition alone.

SIZES = [8, 14, 20, 26, 32]

brains = model.predict(conditions={"ventricles": SIZES}, seed=3, same_noise=True)
figure, axes = plt.subplots(5, 1, figsize=(4.4, 7.2), layout="constrained")
for ax, picture, size in zip(axes, planes(brains, volumes.affine), SIZES):
    ax.imshow(picture, cmap="gray")
    ax.set(xticks=[], yticks=[])
    ax.set_ylabel(f"{size} mL", rotation=0, ha="right", va="center")
plt.show()

# %%
# The last minus the first shows what the condition changes, averaged over eight brains:
# the ventricles expand, so the centre gets darker. For your own scan,
# ``dipy_denoise_ldm --conditions ventricles=30 --strength 0.6 --difference`` writes the
# same with the opposite sign.

few, many = (
    planes(model.predict(8, conditions={"ventricles": size}, seed=3), volumes.affine)
    for size in (SIZES[0], SIZES[-1])
)
change = (many - few).mean(0)
limit = np.abs(change).max()
figure, ax = plt.subplots(figsize=(6, 2.4), layout="constrained")
shown = ax.imshow(change, cmap="RdBu_r", vmin=-limit, vmax=limit)
ax.set_axis_off()
figure.colorbar(shown, ax=ax, label="share of the range")
plt.show()
