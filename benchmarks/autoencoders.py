"""Compare autoencoders: detail of volumes, codebooks on digits, short trainings.

Each measure prints one line of JSON per training.
"""

import itertools
import time

from common import make_parser, png_path, print_scores, vary_scan
from dipy.data import get_fnames
from keras import ops
import numpy as np
from volumes import score_structure, score_vqvae

from dipy_ldm import VQVAE, _presets
from dipy_ldm._utils.checks import InputError
from dipy_ldm.autoencoder.quantizers import BOTTLENECKS, Codebook
from dipy_ldm.data import load_mnist, load_volumes
from dipy_ldm.data._batches import Augmentation
from dipy_ldm.data._grid import Grid
from dipy_ldm.data._image_checks import survey
from dipy_ldm.plots import planes, save_montage


def add_detail_options(parser):
    """Add the options of :func:`measure_detail`."""
    parser.add_argument("--train", nargs="+", required=True, help="volumes")
    parser.add_argument("--real", nargs="+", required=True, help="held-out volumes")
    parser.add_argument("--voxel_size", type=float, default=4)
    parser.add_argument("--patch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--learning_rate", type=float)
    parser.add_argument("--code_dim", type=int, default=_presets.VOLUMES.code_dim)
    parser.add_argument("--n_codebooks", type=int, default=_presets.VOLUMES.n_codebooks)
    parser.add_argument("--noise", type=float, default=0.1, help="of the augmentation")
    parser.add_argument("--n_held_out", type=int, default=20)
    parser.add_argument("--montage", metavar="FILE", type=png_path)


def measure_detail(options):
    """Train on volumes, and score reconstructions without and with sharpening."""
    train = load_volumes(options.train, voxel_size=options.voxel_size, shuffle=True)
    grid = Grid(train.images.shape[1:4], train.affine)
    held_out = load_volumes(options.real, grid=grid).images[: options.n_held_out]
    start = time.perf_counter()
    sizes = {"code_dim": options.code_dim, "n_codebooks": options.n_codebooks}
    vqvae = VQVAE(**sizes).fit(
        train.images,
        steps=options.steps,
        batch_size=4,
        patch=options.patch,
        augment=Augmentation(shift=2, intensity=0.05, noise=options.noise),
        learning_rate=options.learning_rate,
    )
    seconds = time.perf_counter() - start
    # Without sharpening, and with the gain that decoding uses.
    for gain in dict.fromkeys([0.0, vqvae.sharpening_]):
        vqvae.sharpening_ = gain
        reconstructed = vqvae.predict(held_out)
        scores = score_vqvae(vqvae, held_out, reconstructed)
        structure = score_structure(held_out, held_out, reconstructed)
        scores["octaves"] = structure["vqvae_octaves"]
        scores["sharpness"] = float(sharpness(reconstructed) / sharpness(held_out))
        yield {**sizes, "sharpening": gain, **scores, "seconds": seconds}
    if options.montage:
        pictures = np.concatenate([held_out[:1], reconstructed[:1]])
        slices = planes(pictures, train.affine)
        save_montage(options.montage, slices, columns=1, scale=4)


def sharpness(volumes):
    """Return the mean squared difference of neighbouring voxels."""
    return np.mean([np.mean(np.diff(volumes, axis=axis) ** 2) for axis in (1, 2, 3)])


class AveragingCodebook(Codebook):
    """Codes that are moving averages of their vectors (van den Oord 2017, appendix).

    Updates are increments, so that revived codes stay where they are moved to.
    """

    decay = 0.99

    def build(self, input_shape):
        """Create the codebook and the averaged counts."""
        super().build(input_shape)
        self.average = self.add_weight(
            shape=(self.n_codes,), initializer="ones", trainable=False, name="average"
        )

    def call(self, vectors, training=False):
        """Quantise; in training, update the codes."""
        indices = self.nearest(vectors)
        codes = ops.stop_gradient(self.quantise(vectors))
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


def add_codebook_options(parser):
    """Add the options of :func:`compare_codebooks`."""
    parser.add_argument("--n_images", type=int, default=12_800)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--n_codes", type=int, nargs="+", default=[256, 1024])


def compare_codebooks(options):
    """Compare codes that are trained by gradient with moving averages."""
    images, test = load_mnist("train")[0][: options.n_images], load_mnist("test")[0]
    for n_codes, name in itertools.product(options.n_codes, CODEBOOKS):
        start = time.perf_counter()
        vqvae = VQVAE(n_codes=n_codes, bottleneck=CODEBOOKS[name])
        vqvae.fit(images, epochs=options.epochs)
        yield {
            "codebook": name,
            "n_codes": n_codes,
            "mse": float(np.mean((vqvae.predict(test) - test) ** 2)),
            "codes_used": len(np.unique(vqvae.codes(vqvae.encode(test)))),
            "perplexity": vqvae.history_["perplexity"][-1],
            "seconds": time.perf_counter() - start,
        }


def add_collapse_options(parser):
    """Add the options of :func:`train_briefly`."""
    parser.add_argument("--train", nargs="+", help="volumes, instead of DIPY's")
    parser.add_argument("--voxel_size", type=float, default=8)
    parser.add_argument("--n", nargs="+", type=int, default=[6, 20])
    parser.add_argument("--steps", nargs="+", type=int, default=[120])
    parser.add_argument("--batch_size", type=int, default=2)
    parser.add_argument(
        "--learning_rates", nargs="+", type=float, default=[5e-4, 1e-3, 2e-3, 4e-3]
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])


def train_briefly(options):
    """Run many short trainings on few scans, to check that none collapses."""
    files = options.train or [get_fnames(name="aniso_vox")]
    loaded = load_volumes(files, voxel_size=options.voxel_size, shuffle=True).images
    trainings = itertools.product(
        options.n, options.steps, options.learning_rates, options.seeds
    )
    for n, steps, rate, seed in trainings:
        volumes = np.array(loaded[:n]) if options.train else vary_scan(loaded[0], n)
        fit = {"steps": steps, "learning_rate": rate, "batch_size": options.batch_size}
        yield {
            "n": len(volumes),
            "steps": steps,
            "learning_rate": rate,
            "seed": seed,
            **score_brief_training(volumes, seed, fit),
        }


def score_brief_training(volumes, seed, fit):
    """Train an autoencoder and measure its reconstructions."""
    start = time.perf_counter()
    usual, message = _presets.VOLUMES, None
    vqvae = VQVAE(code_dim=usual.code_dim, n_codebooks=usual.n_codebooks, seed=seed)
    fit |= {"augment": Augmentation(shift=2, intensity=0.05, noise=0.1)}
    try:
        vqvae.fit(volumes, verbose=False, **fit)
    except InputError as error:
        message = str(error)
    reconstructed = vqvae.predict(volumes)
    pair = volumes.ravel(), reconstructed.ravel()
    return {
        "correlation": round(float(np.corrcoef(*pair)[0, 1]), 3),
        "mse": round(float(np.mean((volumes - reconstructed) ** 2)), 5),
        "mean volume": round(survey(volumes).spread, 5),
        "said": message,
        "seconds": round(time.perf_counter() - start),
    }


MEASURES = {
    "detail": (add_detail_options, measure_detail),
    "codebooks": (add_codebook_options, compare_codebooks),
    "collapse": (add_collapse_options, train_briefly),
}


if __name__ == "__main__":
    print_scores(make_parser(__doc__, MEASURES))
