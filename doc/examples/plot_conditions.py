"""
Generate by conditions
======================

A model that was trained with conditions, such as labels or ages, generates samples from
them. With the same noise for all samples, they differ only by their conditions.
"""

# sphinx_gallery_thumbnail_number = 1

import matplotlib.pyplot as plt
import numpy as np

from dipy_ldm import LatentDiffusion
from dipy_ldm.plots import montage

# %%
# The packaged model of digits is conditioned on labels. The model file has their names
# and counts:

model = LatentDiffusion.load("mnist")
for name, condition in model.conditions_.items():
    print(f"{name}: {condition.kind}; {condition}")

# %%
# The same noise for all labels: each row starts from one noise, and the slant and width
# of the handwriting are the same for all ten digits.

labels = np.arange(10)
rows = [
    model.predict(conditions={"label": labels}, seed=seed, same_noise=True)
    for seed in range(5)
]

figure, ax = plt.subplots(figsize=(7.5, 3.9), layout="constrained")
ax.imshow(montage(np.concatenate(rows), columns=10), cmap="gray")
middles = np.linspace(0, ax.get_xlim()[1], 21)[1::2]
ax.set(xticks=middles, xticklabels=labels, yticks=[], xlabel="requested label")
plt.show()

# %%
# Without given conditions, labels are drawn in the proportions of the training digits.

print(model.draw_conditions(20, seed=1))

figure, ax = plt.subplots(figsize=(7.5, 0.9), layout="constrained")
ax.imshow(montage(model.predict(20, seed=1), columns=20), cmap="gray")
ax.set_axis_off()
plt.show()

# %%
# Guidance makes samples follow their condition more closely, and vary less.

GUIDANCE = (1.0, 2.0, 4.0)

figure, axes = plt.subplots(1, 3, figsize=(9, 3.2), layout="constrained")
for ax, guidance in zip(axes, GUIDANCE):
    images = model.predict(36, conditions={"label": 4}, guidance=guidance, seed=5)
    ax.imshow(montage(images), cmap="gray")
    ax.set_title(f"guidance {guidance:g}")
    ax.set_axis_off()
plt.show()
