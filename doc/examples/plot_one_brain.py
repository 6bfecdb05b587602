"""
One brain, as it might be: conditions of volumes
================================================

A model that was told of each volume how large the ventricles are makes one brain with
small ones and with large ones; with ages in place of millilitres, it would be one brain
through the years. To keep this page short, the cohort is small, the voxels are large,
and training ends after minutes.
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
# Virtual subjects, of whom a table says what is known, as ``participants.tsv`` of a
# BIDS dataset does. One in ten values is missing there.

scratch = tempfile.TemporaryDirectory()
folder = Path(scratch.name)
make_cohort(folder, 100, covariates=True, verbose=False)
print("".join((folder / "participants.tsv").open().readlines()[:5]))

# %%
# Volumes and table are brought together by the names of the files, and what is known
# of each volume has its order.

volumes = load_volumes([folder], voxel_size=6)
images = np.asarray(volumes.images, "float32")
known = read_covariates(["ventricles"], volumes.files).values
print({name: values[:5] for name, values in known.items()})

# %%
# The autoencoder knows nothing of the table; the denoiser is told of it. 16 volumes are
# held out, with what is known of them.


def part(start, stop):
    """Return some volumes' images, and what is known of them."""
    return images[start:stop], {name: v[start:stop] for name, v in known.items()}


(held_out, known_of_them), (train, known_of_train) = part(0, 16), part(16, 100)
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
    known_of_train,
    validation_data=held_out,
    validation_conditions=known_of_them,
    epochs=60,
    batch_size=8,
    verbose=False,
)
print(model.conditions_["ventricles"])

# %%
# One noise for all that is asked for: what differs between the brains is due to that.

SIZES = [8, 14, 20, 26, 32]

brains = model.predict(conditions={"ventricles": SIZES}, seed=3, same_noise=True)
figure, axes = plt.subplots(5, 1, figsize=(4.4, 7.2), layout="constrained")
for ax, picture, size in zip(axes, planes(brains, volumes.affine), SIZES):
    ax.imshow(picture, cmap="gray")
    ax.set(xticks=[], yticks=[])
    ax.set_ylabel(f"{size} mL", rotation=0, ha="right", va="center")
plt.show()

# %%
# The last minus the first shows what the condition changes, here as the mean of eight
# brains: the middle gets darker, and what lies around moves outwards. Of your own scan
# ``dipy_denoise_ldm --conditions ventricles=30 --strength 0.6 --difference`` writes the
# like, with the sign of what was taken away.

few, many = (
    planes(model.predict(8, conditions={"ventricles": size}, seed=3), volumes.affine)
    for size in (SIZES[0], SIZES[-1])
)
change = (many - few).mean(0)
limit = np.abs(change).max()
figure, ax = plt.subplots(figsize=(6, 2.4), layout="constrained")
shown = ax.imshow(change, cmap="RdBu_r", vmin=-limit, vmax=limit)
ax.set_axis_off()
figure.colorbar(shown, ax=ax, label="of the range")
plt.show()
