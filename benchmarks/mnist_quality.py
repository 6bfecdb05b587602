"""Measure the quality of generated MNIST digits, as one line of JSON.

The packaged classifier, of benchmarks/digits_classifier.py, gives the features (128,
after the activation of its last hidden layer) and the confidence. It has seen neither
the test digits nor the first 10,000 training digits: these two stand beside the samples
as the best that samples could be. It is right for 99.3 % of the test digits, gives them
a mean top probability of 0.994, and is confident (above 0.95) of 97.65 % of them.

``dipy_evaluate_ldm mnist --real mnist`` has more figures, with intervals; this compares
with all test digits, and digit by digit.
"""

from functools import cached_property
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from common import (
    Parser,
    add_sampling,
    generate,
    picture,
    print_scores,
    sampling,
    score_novelty,
    tell,
)
import numpy as np

import dipy_ldm
from dipy_ldm._utils.checks import InputError, at_least
from dipy_ldm.data import load_mnist
from dipy_ldm.data.images import load_images
from dipy_ldm.evaluation import features
from dipy_ldm.metrics import frechet_distance, nearest_distance, precision_recall
from dipy_ldm.plots import save_montage

# Of the classifier: training digits that it has not seen, and numbers of a digit.
HELD_OUT, FEATURES = 10_000, 128
CONFIDENT = 0.95


class Judge:
    """Classifier, test digits and training digits, ready to score samples."""

    def __init__(self):
        self.network = features.classifier()
        self.train, self.train_labels = load_mnist("train")
        self.test, self.labels = load_mnist("test")
        self.held_out_features, _ = self.look(self.train[:HELD_OUT])
        self.features, self.probabilities = self.look(self.test)
        self.accuracy = share_of(self.probabilities, self.labels)

    def look(self, images):
        """Classify images.

        Parameters
        ----------
        images : ndarray
            Images, ``(n, 28, 28, 1)``.

        Returns
        -------
        features : ndarray
            Features, ``(n, 128)``.
        probabilities : ndarray
            Probability of each digit, ``(n, 10)``.
        """
        return self.network.predict(images, batch_size=500, verbose=0)

    def score_samples(self, images, asked=None):
        """Score samples, beside as many digits that no network was trained on.

        Parameters
        ----------
        images : ndarray
            Samples, ``(n, 28, 28, 1)`` in [0, 1].
        asked : ndarray of int, optional
            Digits that they were asked to be, ``(n,)``.

        Returns
        -------
        dict
            Figures by their names.
        """
        found, probabilities = self.look(images)
        of_labels = {}
        if asked is not None:
            of_labels = {"as_asked": share_of(probabilities, asked)}
            of_labels |= self.score_classes(found, asked)
        # As many as there are samples, since both measures depend on the number.
        held_out = self.held_out_features[: len(images)]
        frechet = frechet_distance(found, self.features)
        floor = frechet_distance(held_out, self.features)
        precision, recall = precision_recall(self.features, found)
        precision_real, recall_real = precision_recall(self.features, held_out)
        shares = np.bincount(probabilities.argmax(axis=1), minlength=10) / len(images)
        return {
            "classifier_accuracy": self.accuracy,
            "frechet": frechet,
            "frechet_floor": floor,
            "frechet_ratio": frechet / floor,
            "precision": precision,
            "recall": recall,
            "precision_real": precision_real,
            "recall_real": recall_real,
            "confident": confident(probabilities),
            "confident_real": confident(self.probabilities),
            "class_shares": shares.tolist(),
            **of_labels,
            **score_novelty(images, self.train, self.novelty_of_test),
        }

    def score_classes(self, features, asked):
        """Compare the samples of each digit with its test digits.

        Parameters
        ----------
        features : ndarray
            Features of the samples, ``(n, 128)``.
        asked : ndarray of int
            Digits that they were asked to be, ``(n,)``.

        Returns
        -------
        dict
            Fréchet distance of each digit, of the samples and of training digits that
            the classifier has not seen; None where there are too few.
        """
        seen = self.train_labels[:HELD_OUT]
        parts = {
            "frechet_of_classes": (features, asked),
            "frechet_floor_of_classes": (self.held_out_features, seen),
        }
        return {
            name: [self._distance(some[of == digit], digit) for digit in range(10)]
            for name, (some, of) in parts.items()
        }

    def _distance(self, features, digit):
        real = self.features[self.labels == digit]
        few = min(len(features), len(real)) <= FEATURES
        return None if few else frechet_distance(features, real)

    @cached_property
    def novelty_of_test(self):
        """Distance of each test digit to the nearest training digit, in pixels."""
        return nearest_distance(self.test, self.train)

    def score_vqvae(self, vqvae):
        """Score an autoencoder: samples can't be better than what it reconstructs.

        Parameters
        ----------
        vqvae : dipy_ldm.VQVAE
            Fitted autoencoder.

        Returns
        -------
        dict
            Figures by their names.
        """
        reconstructed = vqvae.predict(self.test)
        features, _ = self.look(reconstructed)
        used = np.unique(vqvae.codes(vqvae.encode(self.test)))
        return {
            "frechet_ceiling": frechet_distance(features, self.features),
            "vqvae_mse": float(np.mean((reconstructed - self.test) ** 2)),
            "codes_used": len(used),
            "n_codes": vqvae.n_codes,
        }


def share_of(probabilities, labels):
    """Return the share of images that the classifier takes for what they shall be."""
    return float(np.mean(probabilities.argmax(axis=1) == labels))


def confident(probabilities):
    """Return the share of images whose digit is beyond doubt."""
    return float(np.mean(probabilities.max(axis=1) > CONFIDENT))


def read_samples(path):
    """Read samples from an .npz file.

    Parameters
    ----------
    path : str or Path
        File to read.

    Returns
    -------
    ndarray
        Samples, ``(n, 28, 28, 1)``.

    Raises
    ------
    InputError
        If the file does not hold digits in [0, 1].
    """
    images = load_images([path])
    if images.shape[1:] != (28, 28, 1):
        raise InputError(f"images must be (n, 28, 28, 1), not {images.shape}.")
    if images.min(initial=0) < 0 or images.max(initial=0) > 1:
        raise InputError(f"the images in {path} must lie in [0, 1]; rescale them.")
    return images


def measure(options):
    """Score the model or the samples that the command line names.

    Parameters
    ----------
    options : argparse.Namespace
        As of :func:`make_parser`.

    Returns
    -------
    dict
        Figures by their names.
    """
    model, scores, asked = None, {"model": options.model}, None
    if options.model.endswith(".npz"):
        images = read_samples(options.model)
    else:
        model = dipy_ldm.LatentDiffusion.load(options.model)
        at_least("n_samples", options.n_samples, FEATURES + 1)
        conditions = "none" if options.unspecified else None
        if "label" in model.conditions_ and not options.unspecified:
            # As without any option.
            conditions = model.draw_conditions(options.n_samples, seed=options.seed)
            asked = np.array(conditions["label"], int)
        images, seconds = generate(model, options, conditions)
        scores |= sampling(options) | {"seconds": seconds}
    # A covariance needs more samples than there are features.
    at_least("the number of samples", len(images), FEATURES + 1)
    if options.montage:
        save_montage(options.montage, images[:100])
    judge = Judge()
    tell("scoring")
    scores |= {"n_samples": len(images)} | judge.score_samples(images, asked)
    return scores if model is None else scores | judge.score_vqvae(model.vqvae)


def make_parser():
    """Describe the command line.

    Returns
    -------
    Parser
        Parser of the options of :func:`measure`.
    """
    parser = Parser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", help="model file, mnist, or an .npz file of images")
    add_sampling(parser, n_samples=10_000, batch_size=256)
    parser.add_argument(
        "--unspecified",
        action="store_true",
        help="leave labels unspecified, which are otherwise drawn",
    )
    parser.add_argument(
        "--montage", metavar="FILE", type=picture, help="picture of 100 samples"
    )
    return parser


def main(arguments=None):
    """Print the scores as one line of JSON.

    Parameters
    ----------
    arguments : sequence of str, optional
        Command line; that of the process if left out.
    """
    print_scores(make_parser(), measure, arguments)


if __name__ == "__main__":
    main()
