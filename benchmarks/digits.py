"""Measure generated MNIST digits, and train the classifier that measures them.

The packaged classifier computes the features (128, after the activation of its last
hidden layer) and the confidence. It was trained neither on the test digits nor on the
first 10,000 training digits: these two are the reference, the best that samples could
be. Its accuracy on the test digits is 99.3 %, its mean top probability 0.994, and it is
confident (above 0.95) of 97.65 % of them.

``dipy_evaluate_ldm mnist --real_files mnist`` has more metrics, with intervals; this
compares with all test digits, and by digit.
"""

from functools import cached_property
import math
from typing import Any

from common import (
    add_sampling,
    generate,
    log,
    make_parser,
    png_path,
    print_scores,
    sampling,
    score_novelty,
)
import keras
import numpy as np

import dipy_ldm
from dipy_ldm import _serialization
from dipy_ldm._utils.checks import InputError, at_least
from dipy_ldm.data import load_mnist
from dipy_ldm.data.images import load_images
from dipy_ldm.evaluation import features
from dipy_ldm.metrics import frechet_distance, nearest_distance, precision_recall
from dipy_ldm.plots import save_montage

# Of the classifier: held-out training digits, and number of features.
HELD_OUT, FEATURES = 10_000, 128
CONFIDENT = 0.95
# Trained on the last 50,000 digits, shifted and with strong dropout, so that the
# confidence is calibrated.
RECIPE: dict[str, Any] = {
    "version": 1,  # Increase when the code below trains another classifier.
    "held_out": 10_000,
    "widths": [16, 32],
    "features": 128,
    "dropout": 0.6,
    "shift": 2,
    "epochs": 4,
    "batch_size": 128,
    "learning_rate": 3e-3,
    "seed": 0,
}


class Classifier:
    """Classifier, test digits and training digits, ready to score samples."""

    def __init__(self):
        self.network = features.classifier()
        self.train, self.train_labels = load_mnist("train")
        self.test, self.labels = load_mnist("test")
        self.held_out_features, _ = self.classify(self.train[:HELD_OUT])
        self.features, self.probabilities = self.classify(self.test)
        self.accuracy = share_of(self.probabilities, self.labels)

    def classify(self, images):
        """Classify images.

        Shapes: images ``(n, 28, 28, 1)``, features ``(n, 128)``, probabilities ``(n,
        10)``.
        """
        return self.network.predict(images, batch_size=500, verbose=0)

    def score_samples(self, images, labels=None):
        """Score samples, and as many held-out digits for reference.

        Shapes: images ``(n, 28, 28, 1)``, labels ``(n,)``.
        """
        sample_features, probabilities = self.classify(images)
        of_labels = {}
        if labels is not None:
            of_labels = {
                "as_asked": share_of(probabilities, labels),
                "as_asked_of_classes": [
                    share_of(probabilities[labels == digit], digit)
                    for digit in range(10)
                ],
            }
            of_labels |= self.score_classes(sample_features, labels)
        # As many as samples, since both metrics depend on the number.
        held_out = self.held_out_features[: len(images)]
        frechet = frechet_distance(sample_features, self.features)
        floor = frechet_distance(held_out, self.features)
        precision, recall = precision_recall(self.features, sample_features)
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

    def score_classes(self, features, labels):
        """Compare the samples of each digit with its test digits.

        Shapes: features ``(n, 128)``, labels ``(n,)``.
        """
        real_labels = self.train_labels[:HELD_OUT]
        parts = {
            "frechet_of_classes": (features, labels),
            "frechet_floor_of_classes": (self.held_out_features, real_labels),
        }
        return {
            name: [self._distance(rows[of == digit], digit) for digit in range(10)]
            for name, (rows, of) in parts.items()
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
        """Score an autoencoder, whose reconstructions limit the quality of samples."""
        reconstructed = vqvae.predict(self.test)
        features, _ = self.classify(reconstructed)
        used = np.unique(vqvae.codes(vqvae.encode(self.test)))
        return {
            "frechet_ceiling": frechet_distance(features, self.features),
            "vqvae_mse": float(np.mean((reconstructed - self.test) ** 2)),
            "codes_used": len(used),
            "n_codes": vqvae.n_codes,
        }


def share_of(probabilities, labels):
    """Return the share of images that are classified correctly."""
    return float(np.mean(probabilities.argmax(axis=1) == labels))


def confident(probabilities):
    """Return the share of images that are classified with confidence."""
    return float(np.mean(probabilities.max(axis=1) > CONFIDENT))


def read_samples(path):
    """Read samples from an .npz file.

    Shapes: result ``(n, 28, 28, 1)``.
    """
    images = load_images([path])
    if images.shape[1:] != (28, 28, 1):
        raise InputError(f"images must be (n, 28, 28, 1), not {images.shape}")
    if images.min(initial=0) < 0 or images.max(initial=0) > 1:
        raise InputError(f"the images in {path} must lie in [0, 1]", "rescale them")
    return images


def add_score_options(parser):
    """Add the options of :func:`score_digits`."""
    parser.add_argument("model", help="model file, mnist, or an .npz file of images")
    add_sampling(parser, n_samples=10_000, batch_size=256)
    parser.add_argument(
        "--unspecified",
        action="store_true",
        help="generate without labels, which are otherwise drawn",
    )
    parser.add_argument(
        "--montage", metavar="FILE", type=png_path, help="picture of 100 samples"
    )


def score_digits(options):
    """Score a model or an .npz file of samples."""
    model, scores, labels = None, {"model": options.model}, None
    if options.model.endswith(".npz"):
        images = read_samples(options.model)
    else:
        model = dipy_ldm.LatentDiffusion.load(options.model)
        at_least("n_samples", options.n_samples, FEATURES + 1)
        conditions = "none" if options.unspecified else None
        if "label" in model.conditions_ and not options.unspecified:
            # As predict draws them by default.
            conditions = model.draw_conditions(options.n_samples, seed=options.seed)
            labels = np.array(conditions["label"], int)
        images, seconds = generate(model, options, conditions)
        scores |= sampling(options) | {"seconds": seconds}
    # A covariance needs more samples than there are features.
    at_least("the number of samples", len(images), FEATURES + 1)
    if options.montage:
        save_montage(options.montage, images[:100])
    classifier = Classifier()
    log("scoring")
    scores |= {"n_samples": len(images)} | classifier.score_samples(images, labels)
    return scores if model is None else scores | classifier.score_vqvae(model.vqvae)


def add_classifier_options(parser):
    """Add the options of :func:`write_classifier`."""
    parser.add_argument("file", help="where to write it")


def write_classifier(options):
    """Retrain the packaged classifier, and write its weights in 16 bits."""
    keras.utils.set_random_seed(RECIPE["seed"])
    network = features.build_classifier(RECIPE)
    train_classifier(network, *load_mnist("train"))
    weights = _serialization.weights(network, "classifier")
    small = {name: values.astype("float16") for name, values in weights.items()}
    _serialization.save(options.file, "classifier", small, {"recipe": RECIPE})
    images, labels = load_mnist("test")
    _, probabilities = network.predict(images, batch_size=500, verbose=0)
    return {"accuracy": share_of(probabilities, labels)}


def train_classifier(network, images, labels):
    """Train the classifier on all digits but those that the recipe holds out.

    Shapes: images ``(n, 28, 28, 1)``, labels ``(n,)``.
    """
    images, labels = images[RECIPE["held_out"] :], labels[RECIPE["held_out"] :]
    epochs, batch_size = RECIPE["epochs"], RECIPE["batch_size"]
    rng = np.random.default_rng(RECIPE["seed"])
    steps = epochs * math.ceil(len(images) / batch_size)
    rate = keras.optimizers.schedules.CosineDecay(RECIPE["learning_rate"], steps)
    model = keras.Model(network.input, network.output[1])
    model.compile(keras.optimizers.Adam(rate), "sparse_categorical_crossentropy")
    for epoch in range(epochs):
        log(f"training the classifier: epoch {epoch + 1} of {epochs}")
        shifted = shift(images, RECIPE["shift"], rng)
        model.fit(shifted, labels, batch_size=batch_size, verbose=0)


def shift(images, most, rng):
    """Shift each image randomly by up to ``most`` pixels along each side.

    Shapes: images ``(n, height, width, channels)``.
    """
    n, height, width, _ = images.shape
    padded = np.pad(images, ((0, 0), (most, most), (most, most), (0, 0)))
    top, left = rng.integers(0, 2 * most + 1, (2, n, 1))
    rows, columns = top + np.arange(height), left + np.arange(width)
    return padded[np.arange(n)[:, None, None], rows[:, :, None], columns[:, None]]


MEASURES = {
    "score": (add_score_options, score_digits),
    "train_classifier": (add_classifier_options, write_classifier),
}


def main(arguments=None):
    """Print the scores as one line of JSON."""
    print_scores(make_parser(__doc__, MEASURES), arguments)


if __name__ == "__main__":
    main()
