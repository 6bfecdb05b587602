"""Train and generate by one back-end of Keras, without TensorFlow if it is another.

Arguments: steps of each training, a folder, and whether it has model files to generate
by or is given some. In the folder then lies ``BACKEND.npz``: losses of each round, and
samples.
"""

import os
from pathlib import Path
import sys

backend = os.environ["KERAS_BACKEND"]
if backend != "tensorflow":
    # As if it were not installed.
    sys.modules["tensorflow"] = None

import numpy as np  # noqa: E402

from dipy_ldm import VQVAE, LatentDiffusion  # noqa: E402

steps, folder = int(sys.argv[1]), Path(sys.argv[2])
fit_options = {
    "batch_size": 4,
    "steps": steps,
    "precision": "float32",
    "verbose": False,
}
# With a higher rate rounding grows, until a latent gets another code.
fit_options |= {"learning_rate": 5e-4}
results = {}
for rank, side in {2: 16, 3: 12}.items():
    grid = np.indices((side,) * rank).reshape(rank, 1, *(side,) * rank)
    # Volumes are aligned: more of them is known before the denoiser is trained.
    reach = {2: 4, 3: 0.5}[rank]
    ends = side / 2 - reach, side / 2 + reach
    centres = np.random.default_rng(0).uniform(*ends, (rank, 16, *(1,) * rank))
    images = np.exp(-np.sum((grid - centres) ** 2, 0) / 8)[..., None].astype("float32")
    vqvae = VQVAE(widths=(8,), n_codes=16, code_dim=4)
    vqvae.fit(images, **fit_options)
    results[f"vqvae{rank}"] = vqvae.history_["loss"]
    # To compile takes the time: two networks of one level, or one of two.
    model = LatentDiffusion(vqvae, widths={2: (8,), 3: (8, 16)}[rank])
    model.fit(images, np.arange(16) % 2, **fit_options)
    assert (model.gaussian_ is None) == (rank == 2)
    results[f"ldm{rank}"] = model.history_["loss"]
    path = folder / f"{rank}.safetensors"
    if backend == "tensorflow":
        model.save(path)
    model = LatentDiffusion.load(path)
    samples = model.predict(2, steps=4, seed=1, guidance=2, conditions={"label": 1})
    results[f"samples{rank}"] = samples
    results[f"denoised{rank}"] = model.denoise(images[:2], steps=2)
np.savez(folder / f"{backend}.npz", **results)
