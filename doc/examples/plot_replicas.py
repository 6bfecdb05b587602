"""
One and two replicas give the same result
=========================================

Several GPUs share each batch of a training. Here two devices are simulated on one CPU,
so that the example runs anywhere; with GPUs omit the first lines, and the default
``strategy="auto"`` uses all of them.
"""

from dipy_ldm import VQVAE, make_strategy
from dipy_ldm.data import load_mnist

# isort: split
import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf  # after dipy_ldm, which turns oneDNN on

# %%
# Simulate two devices on one CPU, before anything else uses TensorFlow.

(processor,) = tf.config.list_physical_devices("CPU")
two = [tf.config.LogicalDeviceConfiguration()] * 2
tf.config.set_logical_device_configuration(processor, two)

# %%
# The batch size is that of all replicas together: each of two gets 32 of 64 digits.
# Float32 and a low learning rate keep rounding differences small on every CPU; over
# many steps they add up, faster at higher rates, until a latent between two codes is
# quantised to the other one.

digits, _ = load_mnist("train")


def train(strategy):
    vqvae = VQVAE(widths=(16, 16), n_codes=64)
    return vqvae.fit(
        digits[:800],
        validation_data=digits[-333:],
        epochs=4,
        learning_rate=0.0005,
        precision="float32",
        strategy=strategy,
        verbose=False,
    )


one = train("none")
both = train(make_strategy("mirrored", ["CPU:0", "CPU:1"]))

# %%
# Losses, errors on held-out digits (an odd number of them) and codes in use are the
# same up to rounding.

for name in ("loss", "mse", "val_mse", "usage"):
    a, b = (np.array(vqvae.history_[name]) for vqvae in (one, both))
    print(f"{name:8} {b}  largest difference {np.abs(a - b).max():.1e}")

epochs = range(1, 5)
plt.figure(figsize=(6, 4))
plt.plot(epochs, one.history_["val_mse"], "o-", label="one replica")
plt.plot(epochs, both.history_["val_mse"], "x--", label="two replicas")
plt.xticks(epochs)
plt.xlabel("epoch")
plt.ylabel("error of held-out digits")
plt.legend()
plt.show()

# %%
# So are the reconstructions.

np.testing.assert_allclose(one.predict(digits[:8]), both.predict(digits[:8]), atol=1e-3)
np.abs(one.predict(digits[:8]) - both.predict(digits[:8])).max()
