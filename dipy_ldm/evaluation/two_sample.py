"""Classifier two-sample tests of generated against real images.

A network or a logistic regression is trained to separate the two sets, and tested on
held-out images: by chance, the area under the curve (AUC) is 0.5. Unlike distances, it
detects any systematic difference :footcite:p:`LopezPaz2017`.

References
----------
.. footbibliography::
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import keras
from keras import layers, ops
import numpy as np
import numpy.typing as npt
from scipy import ndimage, optimize, special

from dipy_ldm import InputError, _backend
from dipy_ldm.evaluation._memorization import area_under_curve
from dipy_ldm.metrics import Interval
from dipy_ldm.metrics.distributions import as_rows
from dipy_ldm.metrics.intervals import (
    bootstrap_share,
    fewest_subjects,
    subjects_of,
)
from dipy_ldm.nn._building import SeededInitializer, conv, seeded
from dipy_ldm.prior import _ridge as regression

__all__ = ["NetworkTest", "logistic_test", "network_test"]

# Images of each set; with fewer, a negative result is uninformative.
MIN_IMAGES = 40
# Highest grey level, and the values that become black: rounding and the decoder leave
# smaller ones in backgrounds that are exactly zero in real volumes.
_LEVELS, _BLACK = 255, 0.02
# Accepted values beyond [0, 1], as from resampling.
_RANGE_TOLERANCE = 0.1
# About 60,000 weights. The last layer depends on positions, to detect content on the
# wrong side of the head.
_WIDTHS = (24, 40, 64, 48)
# Steps of a round, images of each set in a batch, and planes of each image and axis.
_STEPS, _BATCH_IMAGES, _TRAINING_PLANES = 30, 8, 2
# Training stops after these rounds or at this training accuracy.
_MAX_ROUNDS, _TARGET_ACCURACY, _LEARNING_RATE = 40, 0.99, 3e-3
# Planes of each axis in tests, the range where they lie, and shifts in training. No
# flips, which would hide swapped sides.
_TEST_PLANES, _INNER, _MAX_SHIFT = 10, (0.15, 0.85), 2
# Best recognised images of each half, for saliency maps.
_N_SHOWN = 4
# Logistic regression: folds, penalties in units of the largest variance, and the limit
# of iterations, of which separable sets would take thousands.
_FOLDS, _PENALTIES, _MAX_ITERATIONS = 5, np.logspace(-4, 0, 5), 50


class NetworkTest(NamedTuple):
    """Result of a classifier two-sample test.

    Parameters
    ----------
    auc : Interval
        Area under the curve: the probability that a generated image has higher log
        odds than a real one; 0.5 by chance.
    learnt : float
        Final accuracy on the training half, the lower of two networks.
    rounds : int
        Rounds of training, the higher of two networks.
    log_odds : tuple of ndarray
        Log odds of being generated, of real images, ``(n,)``, and of generated ones,
        ``(m,)``, by the network that was not trained on them.
    recognised : ndarray
        Indices of the best recognised generated images, ``(k,)``, the best first.
    maps : ndarray
        Saliency maps of these: gradient times input, ``(k, *space, 1)``.
    """

    auc: Interval
    learnt: float
    rounds: int
    log_odds: tuple[np.ndarray, np.ndarray]
    recognised: np.ndarray
    maps: np.ndarray


def network_test(
    real: npt.ArrayLike,
    generated: npt.ArrayLike,
    *,
    subjects: Sequence[npt.ArrayLike | None] = (None, None),
    seed: int = 0,
) -> NetworkTest:
    """Test whether a convolutional network separates generated from real images.

    It is trained on half of both sets, for at most 1,200 steps or until its accuracy is
    99 %, and tested on the other half; then the halves are swapped. Log odds of volumes
    are means over planes of three orientations. Images have 256 grey levels, with the
    darkest 2 % of the range black, to hide differences in storage.

    Parameters
    ----------
    real, generated : array_like
        Images in [0, 1], ``(n, *space, channels)`` and ``(m, *space, channels)``, at
        least 40 of each.
    subjects : sequence of array_like or None
        Subject of each image, ``(n,)`` and ``(m,)``: a subject is in the same half of
        both sets, and intervals are those of subjects. Default: all differ.
    seed : int
        Of halves, initial weights, batches and the bootstrap.

    Returns
    -------
    NetworkTest
        Area under the curve, log odds and saliency maps.

    Raises
    ------
    InputError
        If a set has fewer than 40 images, the shapes differ, or values lie outside of
        [0, 1].
    """
    sides = [to_uint8(images) for images in (real, generated)]
    as_rows(real, generated, minimum=MIN_IMAGES)  # few samples, and other shapes
    folds = _split(subjects, [len(side) for side in sides], 2, seed)
    cutter = _Cutter(sides[0].shape[1:])
    shares = np.linspace(0, 1, _TEST_PLANES if len(cutter.axes) > 1 else 1)
    log_odds, histories = [np.zeros(len(side)) for side in sides], []
    recognised, maps = [], []
    for fold in range(2):
        network, *history = _train(
            cutter, [x[f != fold] for x, f in zip(sides, folds)], [seed, fold]
        )
        histories.append(history)
        for images, own, odds in zip(sides, folds, log_odds):
            planes = (cutter.planes(image, shares) for image in images[own == fold])
            odds[own == fold] = [
                ops.convert_to_numpy(network(x)).mean() for x in planes
            ]
        best = [i for i in np.argsort(-log_odds[1]) if folds[1][i] == fold][:_N_SHOWN]
        recognised += best
        gradient = _backend.gradients(partial(network, training=False))
        maps += [cutter.saliency(gradient, sides[1][i]) for i in best]
    order = np.argsort(-log_odds[1][recognised])
    shape = (len(maps), *np.shape(real)[1:-1], 1)
    return NetworkTest(
        _auc(log_odds, folds, subjects, seed),
        float(min(accuracy for accuracy, _ in histories)),
        max(rounds for _, rounds in histories),
        (log_odds[0], log_odds[1]),
        np.array(recognised)[order],
        np.array(maps)[order].reshape(shape),
    )


def logistic_test(
    real: npt.ArrayLike,
    generated: npt.ArrayLike,
    *,
    subjects: Sequence[npt.ArrayLike | None] = (None, None),
    seed: int = 0,
) -> Interval:
    """Test whether a logistic regression separates generated from real images.

    By five-fold cross-validation, with the penalty chosen by an inner cross-validation.

    Parameters
    ----------
    real, generated : array_like
        Features, ``(n, features)`` and ``(m, features)``, of at least 40 images each.
    subjects, seed
        As of :func:`network_test`.

    Returns
    -------
    Interval
        Area under the curve; 0.5 by chance.

    Raises
    ------
    InputError
        If a set has fewer than 40 images, or the shapes differ.
    """
    sides = list(as_rows(real, generated, minimum=MIN_IMAGES))
    sizes = [len(side) for side in sides]
    left, spreads, _ = regression.decompose(np.concatenate(sides).astype(float))
    labels = np.repeat([-1.0, 1.0], sizes)
    folds = _split(subjects, sizes, _FOLDS, seed)
    penalties = max(spreads**2, default=1.0) * _PENALTIES
    odds = _held_out_log_odds(left * spreads, labels, np.concatenate(folds), penalties)
    return _auc(np.split(odds, sizes[:1]), folds, subjects, seed)


def to_uint8(images: npt.ArrayLike) -> np.ndarray:
    """Quantise images in [0, 1] to 256 grey levels, uint8."""
    images = np.asarray(images, "float32")
    low, high = images.min(), images.max()
    if not (low >= -_RANGE_TOLERANCE and high <= 1 + _RANGE_TOLERANCE):  # nor NaN
        raise InputError(
            f"a classifier needs images in [0, 1], not from {low:g} to {high:g}",
            "scale both sets in the same way",
        )
    visible = (images - _BLACK) / (1 - _BLACK)
    return np.rint(_LEVELS * np.clip(visible, 0, 1)).astype("uint8")


def grey_levels(images: np.ndarray) -> np.ndarray:
    """Return the histograms ``(n, 16)`` of 16 grey levels."""
    levels = np.right_shift(to_uint8(images).reshape(len(images), -1), 4)
    return np.array([np.bincount(row, minlength=16) / row.size for row in levels])


def _split(subjects, sizes, count, seed):
    """Draw the fold of each image, ``(n,)`` for each set, by subject."""
    rng, folds = np.random.default_rng(seed), dict[Any, int]()
    labels = [subjects_of(own, n) for own, n in zip(subjects, sizes)]
    for own in labels:
        new = [subject for subject in dict.fromkeys(own) if subject not in folds]
        folds |= {new[j]: i % count for i, j in enumerate(rng.permutation(len(new)))}
    return [np.array([folds[subject] for subject in own]) for own in labels]


def _auc(log_odds, folds, subjects, seed):
    """Return the mean AUC of folds, whose classifiers differ in the scale of odds.

    Resampling held-out images takes folds for independent. But each pair of images of
    two folds counts twice, once with either image in the training: if the sets do not
    differ, the variance is twice as large. Further, the bootstrap underestimates that
    of m images in a fold by m / (m - 1).
    """

    def mean(*sides):
        parts = [[s[s[:, 1] == f, 0] for s in sides] for f in np.unique(folds[0])]
        areas = [area_under_curve(*part) for part in parts if all(map(len, part))]
        return np.mean(areas) if areas else np.nan  # no resampled fold has both sets

    pairs = [np.stack(pair, 1) for pair in zip(log_odds, folds)]
    count = len(np.unique(folds[0]))
    of_fold = max(2.0, fewest_subjects(log_odds, subjects) / count)
    stretch = np.sqrt(2 * of_fold / (of_fold - 1))
    return bootstrap_share(mean, *pairs, seed=seed, subjects=subjects, stretch=stretch)


def _held_out_log_odds(rows, labels, folds, penalties):
    """Return the log odds of each row by a regression on the other folds."""
    odds = np.zeros(len(rows))
    for fold in np.unique(folds):
        inside, best = folds != fold, penalties[0]
        if len(penalties) > 1:
            training = rows[inside], labels[inside], folds[inside]
            tried = [_held_out_log_odds(*training, [penalty]) for penalty in penalties]
            losses = [np.logaddexp(0, -labels[inside] * x).mean() for x in tried]
            best = penalties[np.argmin(losses)]
        *slopes, intercept = _fit_logistic(rows[inside], labels[inside], best)
        odds[~inside] = rows[~inside] @ slopes + intercept
    return odds


def _fit_logistic(rows, labels, penalty):
    """Return slopes and, last, the intercept, for labels of -1 and 1."""

    def loss(weights):
        margins = labels * (rows @ weights[:-1] + weights[-1])
        pull = -labels * special.expit(-margins)
        shrunk = penalty * weights[:-1]
        value = np.logaddexp(0, -margins).sum() + shrunk @ weights[:-1] / 2
        return value, np.append(pull @ rows + shrunk, pull.sum())

    options = {"method": "L-BFGS-B", "options": {"maxiter": _MAX_ITERATIONS}}
    return optimize.minimize(loss, np.zeros(rows.shape[1] + 1), jac=True, **options).x


class _Cutter:
    """Cuts images into planes with channels for intensity, detail and position."""

    def __init__(self, shape):
        # An image is a volume of one plane.
        self.space = shape[:-1] if len(shape) == 4 else (1, *shape[:-1])
        self.axes = range(3 if len(shape) == 4 else 1)
        grids = [np.linspace(-1, 1, n, dtype="float32") for n in self.space]
        self.places = np.stack(np.meshgrid(*grids, indexing="ij"), -1)
        cuts = [np.delete(self.space, axis) for axis in self.axes]
        self.shape = (*np.array(cuts).max(0).tolist(), 2 * shape[-1] + 3)

    def cut(self, image, axis, numbers, shift=(0, 0)):
        """Return planes across an axis, ``(planes, *side, channels)``, zero-padded."""
        across = image.reshape(*self.space, -1), self.places
        planes, places = (np.moveaxis(x.take(numbers, axis), axis, 0) for x in across)
        planes = np.roll(planes, shift, (1, 2)).astype("float32")
        detail = planes - ndimage.gaussian_filter(planes, (0, 1, 1, 0))
        frames = np.zeros((len(planes), *self.shape), "float32")
        inside = tuple(map(slice, planes.shape[:3]))
        frames[inside] = np.concatenate([planes, detail, places], -1)
        return frames

    def planes(self, image, shares, shift=(0, 0)):
        """Return planes of each axis at shares of its inner range."""
        low, high = np.multiply.outer(_INNER, self.space)
        numbers = (low + np.multiply.outer(shares, high - low)).astype(int).T
        cuts = (self.cut(image, axis, numbers[axis], shift) for axis in self.axes)
        return np.concatenate(list(cuts))

    def saliency(self, gradient, image):
        """Return the saliency map ``(*space)``: gradient times input of all planes."""
        total = np.zeros(self.space, "float32")
        channels = self.shape[-1] - 3
        for axis in self.axes:
            planes = self.cut(image, axis, range(self.space[axis]))
            (slopes,) = gradient(ops.convert_to_tensor(planes))
            parts = planes * ops.convert_to_numpy(slopes)
            weight = np.abs(parts[..., :channels].sum(-1))
            height, width = (n for i, n in enumerate(self.space) if i != axis)
            total += np.moveaxis(weight[:, :height, :width], 0, axis)
        sigma = np.minimum(np.subtract(self.space, 1), 1)
        return ndimage.gaussian_filter(total, sigma)


def _train(cutter, sides, seed):
    """Train a network on planes; return it, its training accuracy, and the rounds."""
    rng = np.random.default_rng(seed)
    labels = np.repeat([[0.0], [1.0]], _BATCH_IMAGES, 0)

    def draw(image):  # planes, randomly shifted
        shift = rng.integers(-_MAX_SHIFT, _MAX_SHIFT + 1, 2)
        return cutter.planes(image, rng.random(_TRAINING_PLANES), shift)

    def batches():
        while True:
            images = np.concatenate([rng.choice(side, _BATCH_IMAGES) for side in sides])
            yield np.stack(list(map(draw, images))), labels

    def stop(epoch, logs):
        model.stop_training = logs["accuracy"] >= _TARGET_ACCURACY

    network = _build(cutter.shape, seed[0])
    planes = keras.Input((None, *cutter.shape))
    predictions = network(ops.reshape(planes, (-1, *cutter.shape)))
    of_images = ops.reshape(predictions, (-1, len(cutter.axes) * _TRAINING_PLANES))
    model = keras.Model(planes, ops.mean(of_images, 1, keepdims=True))
    model.compile(
        keras.optimizers.Adam(_LEARNING_RATE),
        keras.losses.BinaryCrossentropy(from_logits=True),
        metrics=[keras.metrics.BinaryAccuracy("accuracy", threshold=0)],
    )
    history = model.fit(
        batches(),
        steps_per_epoch=_STEPS,
        epochs=_MAX_ROUNDS,
        shuffle=False,
        verbose=0,
        callbacks=[keras.callbacks.LambdaCallback(on_epoch_end=stop)],
    ).history["accuracy"]
    return network, history[-1], len(history)


def _build(shape, seed):
    """Build a network from planes ``(n, *side, channels)`` to log odds ``(n, 1)``."""
    with seeded(seed):
        inputs = keras.Input(shape)
        # Detail has a far smaller scale than the other channels.
        x = layers.BatchNormalization(momentum=0.9)(inputs)
        for i, width in enumerate(_WIDTHS):
            size, strides = 4 if i == 0 else 3, 2 if i < 3 else 1
            x = conv(x, width, size, strides, use_bias=False)
            x = layers.BatchNormalization(momentum=0.9)(x)
            x = layers.Activation("relu")(x)
        pooled = layers.GlobalAveragePooling2D()(x), layers.GlobalMaxPooling2D()(x)
        x = layers.Concatenate()([*pooled, layers.Flatten()(x)])
        x = layers.Dense(1, kernel_initializer=SeededInitializer())(x)
        return keras.Model(inputs, x)
