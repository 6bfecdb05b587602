"""
Few scans: begin from the packaged autoencoder
==============================================

An autoencoder that learns from a dozen scans is a poor one for all others. The packaged
one has seen no person's scan, but heads of many shapes and contrasts, drawn from label
maps: it takes yours as they are, or learns a little more from them. Here are 12 brains
to learn from, and others to see what comes of it.
"""

# sphinx_gallery_thumbnail_number = 1

from pathlib import Path
import tempfile
import time

import matplotlib.pyplot as plt
import numpy as np
from virtual_cohort import make_cohort

from dipy_ldm import VQVAE
from dipy_ldm.data import load_volumes
from dipy_ldm.metrics import detail_correlation, psnr
from dipy_ldm.plots import planes

# %%
# Virtual brains stand for your scans. Put a folder of your own in their place.

scratch = tempfile.TemporaryDirectory()
folder = Path(scratch.name)
make_cohort(folder / "scans", 20, detailed=True, verbose=False)
volumes = load_volumes(
    [folder / "scans"], voxel_size=4, shuffle=True, cache_dir=folder / "cache"
)
images = np.asarray(volumes.images, "float32")
few, others = images[:12], images[12:]

# %%
# Three ways to an autoencoder: as it is packaged, which takes no training; fine-tuned
# on the scans; and from scratch, for as many steps.


def train(init=None):
    """Train an autoencoder for a short time."""
    return VQVAE().fit(
        few, init=init, affine=volumes.affine, steps=100, patch=32, verbose=False
    )


start = time.perf_counter()
ways = {
    "packaged": VQVAE.load("volumes").adapt(few, affine=volumes.affine),
    "fine-tuned": train("volumes"),
    "from scratch": train(),
}
print(f"{time.perf_counter() - start:.0f} s for both trainings")

# %%
# How near reconstructions of the other brains come to them, inside of the head, and how
# much of the fine detail is true.

inside = (others > 0.05).any(-1)
reconstructed = {name: vqvae.predict(others) for name, vqvae in ways.items()}
for name, result in reconstructed.items():
    near = psnr(result, others, inside).mean()
    true = detail_correlation(result, others, inside).mean()
    print(f"{name:13} {near:.1f} dB, {true:.2f} of the detail")

figure, axes = plt.subplots(4, 1, figsize=(6, 7), layout="constrained")
for ax, (name, stack) in zip(axes, {"a brain": others, **reconstructed}.items()):
    ax.imshow(planes(stack[:1], volumes.affine)[0], cmap="gray")
    ax.set(xticks=[], yticks=[])
    ax.set_ylabel(name)
plt.show()

# %%
# The diffusion model is then trained on the latents of either, as of any other
# autoencoder: ``LatentDiffusion(ways["packaged"]).fit(few)``. On the command line all
# of it is ``dipy_train_ldm scans/ --init volumes``, and ``--steps_vqvae 100`` is for
# fine-tuning. Of so few scans train it briefly, and look for copies among its samples
# (``dipy_audit_ldm``): :ref:`guide-planning` says after how many steps there are any.
