"""
Few scans: start from the packaged autoencoder
==============================================

An autoencoder that is trained on a dozen scans generalises poorly. The packaged one was
trained on no person's scans, but on heads of many shapes and contrasts, simulated from
label maps: use it as it is, or fine-tune it on your scans. This example trains on 12
brains and tests on others.
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
# Virtual brains stand in for your scans. Use a folder of your own instead.

scratch = tempfile.TemporaryDirectory()
folder = Path(scratch.name)
make_cohort(folder / "scans", 20, detailed=True, verbose=False)
volumes = load_volumes(
    [folder / "scans"], voxel_size=4, shuffle=True, cache_dir=folder / "cache"
)
images = np.asarray(volumes.images, "float32")
few, others = images[:12], images[12:]

# %%
# Three autoencoders: the packaged one, without training; the packaged one, fine-tuned
# on the scans; and one trained from scratch, for as many steps.


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
# The error of reconstructions of the other brains inside the head, and the correlation
# of their fine detail with the truth.

inside = (others > 0.05).any(-1)
reconstructed = {name: vqvae.predict(others) for name, vqvae in ways.items()}
for name, result in reconstructed.items():
    near = psnr(result, others, inside).mean()
    true = detail_correlation(result, others, inside).mean()
    print(f"{name:13} {near:.1f} dB, detail r = {true:.2f}")

figure, axes = plt.subplots(4, 1, figsize=(6, 7), layout="constrained")
for ax, (name, stack) in zip(axes, {"a brain": others, **reconstructed}.items()):
    ax.imshow(planes(stack[:1], volumes.affine)[0], cmap="gray")
    ax.set(xticks=[], yticks=[])
    ax.set_ylabel(name)
plt.show()

# %%
# The diffusion model is then trained on the latents of any of them:
# ``LatentDiffusion(ways["packaged"]).fit(few)``. On the command line, use
# ``dipy_train_ldm scans/ --init volumes``, with ``--steps_vqvae 100`` for fine-tuning.
# With so few scans, train it briefly and check its samples for copies of training
# images (``dipy_audit_ldm``): :ref:`guide-planning` has the numbers of steps after
# which they occur.
