"""
Train on volumes
================

From a folder of T1 volumes to new ones. To keep this page short, the cohort is small,
the voxels are large, and training ends after minutes: what comes out are brains, none
of which would be taken for real. The same steps with more of each are in :ref:`the
guide <guide-first-volumes>`.
"""

# sphinx_gallery_thumbnail_number = 4

from pathlib import Path
import tempfile

import matplotlib.pyplot as plt
import nibabel as nib
import numpy as np
from virtual_cohort import make_cohort

from dipy_ldm import VQVAE, LatentDiffusion
from dipy_ldm.data import load_volumes, write_volume
from dipy_ldm.metrics import multiscale_ssim
from dipy_ldm.plots import montage, planes

# %%
# A cohort of virtual subjects, made from the MNI152 template that comes with nilearn.
# The script beside this one does it, :download:`virtual_cohort.py
# <../examples/virtual_cohort.py>`. Put the files of your own in its place.

scratch = tempfile.TemporaryDirectory()
folder = Path(scratch.name)
make_cohort(folder / "cohort", 80, verbose=False)
files = sorted((folder / "cohort").glob("*.nii.gz"))

for file in files[:4]:
    image = nib.load(file)
    sizes = " × ".join(f"{size:.2g}" for size in image.header.get_zooms())
    axes = "".join(nib.aff2axcodes(image.affine))
    print(f"{file.name}  {image.shape}  {sizes} mm  {axes}  {image.get_data_dtype()}")

# %%
# The files differ as those of several scanners do. They are brought to one grid, here
# of 8 mm, and to intensities from 0 to 1.

volumes = load_volumes(files, voxel_size=8, cache_dir=folder / "cache")
images = np.asarray(volumes.images, "float32")
train, held_out = images[:72], images[72:]
print(images.shape)


def show(stacks, columns=4):
    """Show three planes of each volume, one row for each name."""
    figure, axes = plt.subplots(
        len(stacks), 1, figsize=(9, 1.15 * len(stacks)), layout="constrained"
    )
    for ax, (name, stack) in zip(np.atleast_1d(axes), stacks.items()):
        pictures = planes(stack[:columns], volumes.affine)
        ax.imshow(montage(pictures, columns=columns), cmap="gray")
        ax.set(xticks=[], yticks=[])
        ax.set_ylabel(name, rotation=0, ha="right", va="center")
    plt.show()


show({"volumes": train})

# %%
# First the autoencoder. Held-out volumes show whether it is good enough; the
# similarity of two equal volumes is 1.

vqvae = VQVAE(widths=(16, 32), n_codes=256, n_codebooks=4, code_dim=8)
vqvae.fit(
    train,
    validation_data=held_out,
    affine=volumes.affine,
    epochs=30,
    batch_size=4,
    verbose=False,
)
reconstructed = vqvae.predict(held_out)
print(f"mean squared error {vqvae.history_['val_mse'][-1]:.4f}")
print(f"similarity {multiscale_ssim(held_out, reconstructed).mean():.3f}")
show({"held out": held_out, "reconstructed": reconstructed})

# %%
# Then the diffusion model of its latents.

model = LatentDiffusion(vqvae, widths=(32, 64))
model.fit(
    train,
    validation_data=held_out,
    epochs=60,
    batch_size=8,
    verbose=False,
)

figure, ax = plt.subplots(figsize=(5.5, 3.2), layout="constrained")
for name in ("loss", "val_loss"):
    ax.plot(model.history_[name], label=name)
ax.set(xlabel="epoch", ylabel="loss")
ax.legend()
plt.show()

# %%
# New volumes from noise, beside real ones. The grid of the model has an affine, with
# which they become NIfTI files.

generated = model.predict(4, seed=1)
show({"real": held_out, "generated": generated})

for number, volume in enumerate(generated):
    path = folder / f"generated-{number}.nii.gz"
    write_volume(path, volume, volumes.affine, description="synthetic")
print(nib.load(folder / "generated-0.nii.gz").affine)
