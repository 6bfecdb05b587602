"""
Reconstruct digits with a VQVAE
===============================

An autoencoder maps images to latents and back. This one is *vector-quantised*: each
latent vector is replaced by the nearest of a limited number of codes before decoding.
This example trains one on handwritten digits in about a minute, and shows its
reconstructions, their errors, and how many codes are used.
"""

import matplotlib.pyplot as plt
import numpy as np

from dipy_ldm import VQVAE
from dipy_ldm.data import load_mnist
from dipy_ldm.plots import montage, plot_reconstructions

# %%
# The package includes the digits. A few thousand of them are enough for an example.

digits, _ = load_mnist("train")
test_digits, _ = load_mnist("test")
vqvae = VQVAE(n_codes=256)
vqvae.fit(digits[:8000], validation_data=test_digits[:1000], epochs=3, verbose=False)

# %%
# Digits of 28 × 28 pixels are encoded as latents of 7 × 7 positions with three
# channels: a fifth of the values. Each position is then represented by the index of one
# code.

latents = vqvae.encode(test_digits[:16])
print("digits ", test_digits[:16].shape)
print("latents", latents.shape)
print("codes  ", vqvae.codes(latents).shape)

# %%
# The history has an entry for each epoch. Perplexity is the effective number of codes
# in use: the number if all were used equally often. Codes that are hardly used are
# replaced by encoded vectors.

for epoch, (error, usage, perplexity) in enumerate(
    zip(*(vqvae.history_[name] for name in ("val_mse", "usage", "perplexity"))), 1
):
    print(
        f"epoch {epoch}: error {error:.4f}, codes in use {usage:.0%}, "
        f"perplexity {perplexity:.0f}"
    )

# %%
# Test digits, and below them their reconstructions.

reconstructed = vqvae.predict(test_digits[:16])
plot_reconstructions(test_digits[:16], reconstructed)

# %%
# The errors are mostly at the edges of strokes.

errors = np.abs(reconstructed - test_digits[:16])
figure, ax = plt.subplots(figsize=(9, 0.9), layout="constrained")
shown = ax.imshow(
    montage(errors, columns=16, gap=0)[..., 0] * errors.max(), cmap="magma"
)
ax.set_axis_off()
figure.colorbar(shown, label="difference")
plt.show()

# %%
# The quality of reconstructions limits that of samples of a diffusion model of these
# latents. Inspect them before you train the second stage.
