"""
Ask for what you want: conditions
=================================

A model that was told of each image what is known beside it, its label or an age, can
be asked for it. With the same noise for all that is asked for, what differs between
samples is due to what was asked.
"""

# sphinx_gallery_thumbnail_number = 1

import matplotlib.pyplot as plt
import numpy as np

from dipy_ldm import LatentDiffusion
from dipy_ldm.plots import montage

# %%
# The model of digits that comes with the package was told the label of each. What it
# knows stands in the model file, in names and numbers:

model = LatentDiffusion.load("mnist")
for name, condition in model.conditions_.items():
    print(f"{name}: {condition.kind}; {condition}")

# %%
# One noise walked through all labels. Each row begins with a noise of its own, and how
# it is written, its slant and its width, goes through all ten digits.

labels = np.arange(10)
rows = [
    model.predict(conditions={"label": labels}, seed=seed, same_noise=True)
    for seed in range(5)
]

figure, ax = plt.subplots(figsize=(7.5, 3.9), layout="constrained")
ax.imshow(montage(np.concatenate(rows), columns=10), cmap="gray")
middles = np.linspace(0, ax.get_xlim()[1], 21)[1::2]
ax.set(xticks=middles, xticklabels=labels, yticks=[], xlabel="asked for")
plt.show()

# %%
# What is not asked for is drawn, in the proportions of the training digits.

print(model.draw_conditions(20, seed=1))

figure, ax = plt.subplots(figsize=(7.5, 0.9), layout="constrained")
ax.imshow(montage(model.predict(20, seed=1), columns=20), cmap="gray")
ax.set_axis_off()
plt.show()

# %%
# Guidance makes the model surer of what it was asked for, and its samples more alike.

GUIDANCE = (1.0, 2.0, 4.0)

figure, axes = plt.subplots(1, 3, figsize=(9, 3.2), layout="constrained")
for ax, guidance in zip(axes, GUIDANCE):
    images = model.predict(36, conditions={"label": 4}, guidance=guidance, seed=5)
    ax.imshow(montage(images), cmap="gray")
    ax.set_title(f"guidance {guidance:g}")
    ax.set_axis_off()
plt.show()
