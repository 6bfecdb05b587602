"""
Train on volumes
================

From a folder of T1 volumes to generated ones. To keep this page short, the cohort is
small, the voxels are large, and training takes minutes, so generated brains do not look
real. The same steps at full size are in :ref:`the guide <guide-first-volumes>`.
"""

# sphinx_gallery_thumbnail_number = 4

from pathlib import Path
import tempfile

import nibabel as nib
import numpy as np
from virtual_cohort import make_cohort

from dipy_ldm import VQVAE, LatentDiffusion
from dipy_ldm.data import load_volumes
from dipy_ldm.metrics import multiscale_ssim
from dipy_ldm.plots import plot_history, plot_reconstructions, plot_samples

# %%
# A cohort of virtual subjects, simulated from the MNI152 template of nilearn by
# :download:`virtual_cohort.py <../examples/virtual_cohort.py>`. Use your own files
# instead.

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
# The files differ like those of several scanners. They are resampled to one grid, here
# of 8 mm, and scaled to intensities from 0 to 1.

volumes = load_volumes(files, voxel_size=8, cache_dir=folder / "cache")
images = np.asarray(volumes.images, "float32")
train, held_out = images[:72], images[72:]
print(images.shape)
plot_samples(train[:4], affine=volumes.affine, columns=4)

# %%
# First train the autoencoder. Compare held-out volumes with their reconstructions
# (below each) to see whether it is good enough; the similarity of equal volumes is 1.

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
plot_reconstructions(held_out[:4], reconstructed[:4], affine=volumes.affine)

# %%
# Then train the diffusion model on its latents.

model = LatentDiffusion(vqvae, widths=(32, 64))
model.fit(
    train,
    validation_data=held_out,
    epochs=60,
    batch_size=8,
    verbose=False,
)
plot_history(model)

# %%
# Generate new volumes from noise, as NIfTI images on the grid of the model.

generated = model.predict(4, seed=1, as_images=True)
for number, image in enumerate(generated):
    image.to_filename(folder / f"generated-{number}.nii.gz")
print(generated[0].affine)
plot_samples(generated, columns=4)
