"""Compare codebooks: trained by gradient (the package's) and by moving averages.

Prints one line of JSON for each: the autoencoder's error on the test digits, and how
many codes the test digits use. Both see the same digits in the same order.
"""

import argparse
import json
import os
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from dipy_ldm import VQVAE  # before Keras, so that oneDNN is on

# isort: split
from keras import ops
import numpy as np

from dipy_ldm.autoencoder.quantizers import BOTTLENECKS, Codebook
from dipy_ldm.data import load_mnist


class AveragingCodebook(Codebook):
    """Codes that are moving averages of their vectors (van den Oord 2017, appendix).

    Written as an increment, so that a code that is moved (revived) stays there.
    """

    decay = 0.99

    def build(self, input_shape):
        """Create the codebook and the averaged counts."""
        super().build(input_shape)
        self.average = self.add_weight(
            shape=(self.n_codes,), initializer="ones", trainable=False, name="average"
        )

    def call(self, vectors, training=False):
        """Quantise; in training move the codes."""
        indices = self.nearest(vectors)
        codes = ops.stop_gradient(ops.take(self.codebook, indices, axis=0))
        self.add_loss(self.commitment * ops.mean((vectors - codes) ** 2))
        if training:
            self._move(ops.reshape(vectors, (-1, vectors.shape[-1])), indices)
        return vectors + ops.stop_gradient(codes - vectors)

    def _move(self, vectors, indices):
        chosen = ops.one_hot(ops.reshape(indices, (-1,)), self.n_codes)
        counts = ops.sum(chosen, axis=0)
        sums = ops.matmul(ops.transpose(chosen), vectors)
        self.counts.assign_add(counts)
        self.average.assign(self.decay * self.average + (1 - self.decay) * counts)
        pull = sums - counts[:, None] * self.codebook
        step = (1 - self.decay) * pull / (self.average[:, None] + 1e-5)
        self.codebook.assign_add(ops.stop_gradient(step))


BOTTLENECKS["averages"] = AveragingCodebook
CODEBOOKS = {"gradient": "codebook", "averages": "averages"}


def main():
    """Train with each codebook and print what comes out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n_images", type=int, default=12_800)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--n_codes", type=int, nargs="+", default=[256, 1024])
    options = parser.parse_args()
    images, test = load_mnist("train")[0][: options.n_images], load_mnist("test")[0]
    for n_codes in options.n_codes:
        for name, bottleneck in CODEBOOKS.items():
            start = time.perf_counter()
            vqvae = VQVAE(n_codes=n_codes, bottleneck=bottleneck)
            vqvae.fit(images, epochs=options.epochs)
            used = np.unique(vqvae.codes(vqvae.encode(test)))
            error = np.mean((vqvae.predict(test) - test) ** 2)
            line = {
                "codebook": name,
                "n_codes": n_codes,
                "mse": float(error),
                "codes_used": len(used),
                "perplexity": vqvae.history_["perplexity"][-1],
                "seconds": time.perf_counter() - start,
            }
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
