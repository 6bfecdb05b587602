"""Features of images, in which sets of images are compared.

Images are ``(n, *space, channels)`` in [0, 1]. Define further features by :func:`own`.
"""

from collections.abc import Callable, Iterable
from functools import cache
from itertools import pairwise
import math
from typing import Any, NamedTuple

import numpy as np
from scipy import linalg, ndimage
from scipy.spatial.transform import Rotation

from dipy_ldm import InputError, LatentDiffusion, _backend, _serialization
from dipy_ldm.metrics.images import halve

__all__ = ["Features", "features_of", "own"]

# Features of an image, of voxels and of latents.
_MAX_VOXELS, _MAX_LATENTS = 4096, 512
# Channels and seed of the network with random weights.
_RANDOM_WIDTHS, _RANDOM_SEED = (8, 16, 32), 20240229
# Pixels or voxels of a batch for the networks, about.
_BATCH_VALUES = 2**18


class Features(NamedTuple):
    """Features in which images are compared.

    Parameters
    ----------
    name : str
        Name in a word or two.
    version : int
        Increased when the features of the same images change: compare figures of one
        version only.
    says : str
        Description, as a sentence.
    of : callable
        From images ``(n, *space, channels)`` in [0, 1] to features ``(n, *shape)``.
    standardised : bool
        Whether features are standardised to mean 0 and variance 1 of the reference,
        since they have no unit.
    independent : bool
        Whether they are independent of the model's own networks, so that probes of
        requested conditions may use them.
    """

    name: str
    version: int
    says: str
    of: Callable[[np.ndarray], np.ndarray]
    standardised: bool = False
    independent: bool = True

    def compute(self, images: np.ndarray) -> np.ndarray:
        """Return the features of images, one row each, after checks.

        Parameters
        ----------
        images : ndarray
            ``(n, *space, channels)`` in [0, 1].

        Returns
        -------
        ndarray
            ``(n, features)``.

        Raises
        ------
        InputError
            If they are not finite, or not one row for each image.
        """
        rows = np.asarray(self.of(images))
        if rows.ndim < 2 or len(rows) != len(images):
            raise InputError(
                f"the features {self.name!r} must be (n, *shape) for n images, not "
                f"{rows.shape} for {len(images)}"
            )
        if not np.isfinite(rows).all():
            raise InputError(f"the features {self.name!r} have NaN or infinite values")
        return rows.reshape(len(rows), -1)


def features_of(model: LatentDiffusion) -> list[Features]:
    """Return the default features for the images of a model.

    Parameters
    ----------
    model : LatentDiffusion
        Fitted model.

    Returns
    -------
    list of Features
        Of a classifier (digits) or a random network, voxels, and the model's latents.
    """
    shape = tuple(model.vqvae_.shape_)
    first = digits() if shape == (28, 28, 1) else random_network(shape)
    return [first, voxels(), encoder(model)]


def own(function: Callable[[np.ndarray], np.ndarray], name: str = "own") -> Features:
    """Create features from a function.

    Parameters
    ----------
    function : callable
        From images ``(n, *space, channels)`` in [0, 1] to features ``(n, *shape)``.
    name : str
        Name of the features.

    Returns
    -------
    Features
        The features.
    """
    return Features(name, 1, "A user-defined function.", function)


def voxels() -> Features:
    """Return voxels as features, downsampled to at most 4096."""
    says = "Voxels, averaged over blocks to at most 4096."
    return Features("voxels", 1, says, lambda x: downsample(x, _MAX_VOXELS))


def downsample(
    images: Iterable[np.ndarray], max_values: int, symmetric: bool = False
) -> np.ndarray:
    """Halve ``(n, *space, channels)`` to few values, or until a side is 1 pixel.

    If symmetric, mirror images remain mirror images, with 2 pixels at least.
    """

    def halved(image):
        while image.size > max_values and min(image.shape[:-1]) > 1 + symmetric:
            for axis, size in enumerate(image.shape[:-1]):
                if symmetric and size % 2:  # halving would drop the last
                    image = (np.delete(image, -1, axis) + np.delete(image, 0, axis)) / 2
            image = halve(image)
        return image

    # One by one: images may be memory-mapped.
    return np.stack([halved(image) for image in images]).astype("float32")


def encoder(model: LatentDiffusion) -> Features:
    """Return latents of the model's own encoder as features.

    They are not independent of the model, but isolate the effect of the diffusion from
    that of the autoencoder.
    """

    def of(images):
        latents = model.vqvae_.encode(unscaled(images, model.vqvae_.intensity_))
        return downsample(model._scaled(latents), _MAX_LATENTS)

    says = "Latents of the model's own encoder, averaged over blocks to at most 512."
    return Features("encoder", 1, says, of, independent=False)


def unscaled(images: np.ndarray, bounds: tuple[float, float]) -> np.ndarray:
    """Scale images from [0, 1] to the training range."""
    low, high = bounds
    return images * np.float32(high - low) + np.float32(low)


def digits() -> Features:
    """Return the last hidden layer of the packaged classifier as features.

    It was trained by ``benchmarks/digits.py`` on the last 50,000 training digits of
    MNIST, with random shifts and dropout; its test accuracy is 99.3 %.
    """
    says = "The 128 features of a packaged MNIST classifier (accuracy 99.3 %)."
    return Features("classifier", 1, says, lambda x: _apply_digits(0, x))


def _apply_digits(output, images):
    """Return an output of the classifier by index: features, or probabilities."""
    return _apply(lambda batch: _digits()(batch)[output], images)


@cache
def _digits():
    """Return the compiled packaged classifier."""
    network = classifier()
    return _backend.compiled(network, network.inputs, [network])


def classifier() -> Any:
    """Load the packaged classifier of digits: images to features and probabilities.

    Shapes: images ``(n, 28, 28, 1)``, features ``(n, 128)``, probabilities ``(n, 10)``.
    """
    path = _serialization.find("digits-classifier")
    tensors, document = _serialization.load(path, "classifier")
    network = build_classifier(document["recipe"])
    _serialization.set_weights(network, "classifier", tensors)
    return network


def build_classifier(recipe: dict) -> Any:
    """Build an untrained classifier of digits.

    ``recipe`` has ``widths`` (of two convolutions each), ``features`` and ``dropout``.
    """
    import keras
    from keras import layers

    images = keras.Input((28, 28, 1))
    x = images
    for width in recipe["widths"]:
        for _ in range(2):
            x = layers.Conv2D(width, 3, padding="same", activation="relu")(x)
        x = layers.MaxPooling2D()(x)
    x = layers.Flatten()(x)
    features = layers.Dense(recipe["features"], activation="relu")(x)
    x = layers.Dropout(recipe["dropout"])(features)
    return keras.Model(images, [features, layers.Dense(10, activation="softmax")(x)])


def classify(images: np.ndarray) -> np.ndarray:
    """Return the probabilities ``(n, 10)`` of digits ``(n, 28, 28, 1)`` in [0, 1]."""
    return _apply_digits(1, images)


def random_network(shape: tuple[int, ...]) -> Features:
    """Return the output of an untrained convolutional network as features.

    Random filters respond to edges, texture and their scale, without bias towards a
    training set :footcite:p:`Naeem2020`. The weights are drawn by numpy from a fixed
    seed: the same on each machine and with each version of Keras.
    """
    network = _build_random(shape)
    run = _backend.compiled(network, network.inputs, [network])
    says = (
        "Means and standard deviations of the 56 channels of a convolutional network "
        f"with random weights (numpy, seed {_RANDOM_SEED}), standardised by those of "
        "the reference."
    )
    return Features("random network", 1, says, lambda x: _apply(run, x), True)


def _build_random(shape):
    import keras
    from keras import layers, ops

    rank = len(shape) - 1
    rng = np.random.default_rng(_RANDOM_SEED)
    conv = {2: layers.Conv2D, 3: layers.Conv3D}[rank]
    pool = {2: layers.AveragePooling2D, 3: layers.AveragePooling3D}[rank]
    axes = tuple(range(1, rank + 1))
    images = keras.Input((*(None,) * rank, shape[-1]))
    x, pooled = images, []
    for before, width in pairwise((shape[-1], *_RANDOM_WIDTHS)):
        kernel = rng.standard_normal((*(3,) * rank, before, width))
        if x is images:  # edges; brightness is in the voxels
            kernel -= kernel.mean(tuple(range(rank)), keepdims=True)
        kernel *= np.sqrt(2 / (3**rank * before))
        convolution = conv(width, 3, padding="same")
        # Edges of both signs count.
        x = layers.Activation(ops.abs)(convolution(x))
        convolution.set_weights([kernel.astype("float32"), np.zeros(width, "float32")])
        pooled += [ops.mean(x, axes), ops.std(x, axes)]
        x = pool(2, padding="same")(x)
    return keras.Model(images, layers.Concatenate()(pooled))


def _apply(run, images):
    """Apply a compiled network to images in batches."""
    size = max(1, _BATCH_VALUES // math.prod(images.shape[1:-1]))
    return _backend.in_batches(run, np.asarray(images, "float32"), size)


# Values of an image before augmentation, of a descriptor, and of the features.
MAX_AUGMENTED_VALUES, _MAX_VALUES, _N_DIRECTIONS = 32768, 4096, 32
# Training images of the fit, and augmented copies of each.
MAX_FIT_IMAGES, _COPIES_PER_IMAGE = 400, 4
# Ranges of augmentation: degrees, voxels, exponents, noise, and blur in voxels.
_TURN, _MOVE, _GAMMA, _NOISE, _BLUR = 5.0, 1.5, (0.6, 1.6), 0.03, 0.8
# Regularises directions with hardly any variance within images.
_RIDGE = 0.05


class Projection(NamedTuple):
    """Mean of the descriptors ``(d,)``, and discriminant directions ``(d, 32)``."""

    mean: np.ndarray
    directions: np.ndarray

    def of(self, images: np.ndarray) -> np.ndarray:
        """Return features ``(n, 32)`` of images ``(n, *space, channels)``."""
        return (describe(images) - self.mean) @ self.directions


def fit_invariant_projection(images: np.ndarray, seed: int = 0) -> Projection:
    """Fit directions that separate ``(n, *space, channels)`` but not their copies.

    A linear discriminant :footcite:p:`Fisher1936` with a class for each image: those
    directions of the principal components with the largest variance between images
    relative to that within copies: rotated by up to 5 degrees, shifted, blurred, noisy,
    or with another contrast. Mirror images have the same features by construction.
    """
    rng = np.random.default_rng(seed)
    descriptors = describe(images)
    mean = descriptors.mean(0)
    _, spread, components = np.linalg.svd(descriptors - mean, full_matrices=False)
    # All components would separate each image by its noise.
    rank = int(np.count_nonzero(spread > 1e-6 * spread[0]))
    count = max(1, min(rank, len(images) // 2))
    components = components[:count].T
    augmented = (
        np.stack([augment(image, rng) for image in images])
        for _ in range(_COPIES_PER_IMAGE)
    )
    off = [describe(x) - descriptors for x in augmented]
    within = np.concatenate(off) @ components
    within = within.T @ within / len(within)
    between = np.diag(spread[:count] ** 2 / len(images))
    within += _RIDGE * np.trace(within) / count * np.eye(count) + 1e-12 * between
    # Scaled to unit variance within images, in order of separation.
    _, vectors = linalg.eigh(between, within)
    directions = components @ vectors[:, ::-1][:, :_N_DIRECTIONS]
    return Projection(mean, directions)


def invariant(projection: Projection) -> Features:
    """Return the invariant features of a projection."""
    says = (
        "Linear discriminant features of the training images, nearly invariant to "
        "mirroring, small rotations and shifts, blur, noise and contrast."
    )
    return Features("invariant", 1, says, projection.of)


def describe(images: np.ndarray) -> np.ndarray:
    """Return descriptors ``(n, features)`` that are equal for mirror images.

    These are the mean of an image and its mirror image, and their absolute difference.
    """
    reduced = downsample(images, _MAX_VALUES, symmetric=True)
    axes = tuple(range(1, reduced.ndim))
    centred = reduced - reduced.mean(axes, keepdims=True)
    normalised = centred / np.maximum(centred.std(axes, keepdims=True), 1e-6)
    mirrored = np.flip(normalised, 2 if normalised.ndim == 4 else 1)
    parts = (normalised + mirrored) / 2, np.abs(normalised - mirrored) / 2
    return np.concatenate([part.reshape(len(part), -1) for part in parts], 1)


def augment(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Change an image ``(*space, channels)`` as a generated copy might differ."""
    rank = image.ndim - 1
    turn = _rotation(rng.uniform(-_TURN, _TURN, 3 if rank == 3 else 1))
    middle = (np.array(image.shape[:-1]) - 1) / 2
    offset = middle - turn @ middle + rng.uniform(-_MOVE, _MOVE, rank)
    blur = rng.uniform(0, _BLUR)
    channels = [
        ndimage.affine_transform(channel, turn, offset, order=1, mode="nearest")
        for channel in np.moveaxis(image, -1, 0)
    ]
    moved = np.stack([ndimage.gaussian_filter(x, blur) for x in channels], -1)
    contrast = np.clip(moved, 0, 1) ** np.exp(rng.uniform(*np.log(_GAMMA)))
    return contrast + rng.uniform(0, _NOISE) * rng.standard_normal(image.shape)


def _rotation(degrees):
    """Return a rotation matrix in the plane, or about three axes of space."""
    if len(degrees) == 1:
        return Rotation.from_euler("z", degrees[0], degrees=True).as_matrix()[:2, :2]
    signs = 1, -1, 1  # from each axis to the next in the order of the axes
    return Rotation.from_euler("XYZ", degrees * signs, degrees=True).as_matrix()
