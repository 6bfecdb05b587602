"""
Reconstruct digits with a VQVAE
===============================

An autoencoder maps images to latents and back. This one is *vector-quantised*: the
decoder sees, in place of each latent vector, the nearest of a limited number of codes.
Here one learns handwritten digits in about a minute, and we look at what it restores,
what it loses, and how many of its codes it uses.
"""

import matplotlib.pyplot as plt
import numpy as np

from dipy_ldm import VQVAE
from dipy_ldm.data import load_mnist
from dipy_ldm.plots import montage, plot_reconstructions

# %%
# The digits come with the package. Some thousands of them are enough for an example.

digits, _ = load_mnist("train")
test_digits, _ = load_mnist("test")
vqvae = VQVAE(n_codes=256)
vqvae.fit(digits[:8000], validation_data=test_digits[:1000], epochs=3, verbose=False)

# %%
# Digits of 28 × 28 pixels become latents of 7 × 7 places with three channels: a fifth
# of the numbers. What is kept of each place is the number of one code.

latents = vqvae.encode(test_digits[:16])
print("digits ", test_digits[:16].shape)
print("latents", latents.shape)
print("codes  ", vqvae.codes(latents).shape)

# %%
# The history has a line for each epoch. Perplexity is the number of codes that would be
# used if all were used equally often; a code that is hardly used is moved to an encoded
# vector.

for epoch, (error, usage, perplexity) in enumerate(
    zip(*(vqvae.history_[name] for name in ("val_mse", "usage", "perplexity"))), 1
):
    print(
        f"epoch {epoch}: error {error:.4f}, codes in use {usage:.0%}, "
        f"perplexity {perplexity:.0f}"
    )

# %%
# Digits that the autoencoder has not seen, and below them what it made of them.

reconstructed = vqvae.predict(test_digits[:16])
plot_reconstructions(test_digits[:16], reconstructed)

# %%
# What is lost shows in the difference: some of the edges of strokes.

errors = np.abs(reconstructed - test_digits[:16])
figure, ax = plt.subplots(figsize=(9, 0.9), layout="constrained")
shown = ax.imshow(
    montage(errors, columns=16, gap=0)[..., 0] * errors.max(), cmap="magma"
)
ax.set_axis_off()
figure.colorbar(shown, label="difference")
plt.show()

# %%
# The decoder knows nothing but these codes, so that the quality of reconstructions is
# the best that a diffusion model of the latents can reach. Look at them before you
# train the second stage.
