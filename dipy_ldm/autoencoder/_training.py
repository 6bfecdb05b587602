"""How the autoencoder is trained: its stage, and the life of its codes."""

from collections.abc import Sequence
from functools import lru_cache, partial
import math
from typing import Any, NamedTuple

import numpy as np

from dipy_ldm import _backend
from dipy_ldm._utils import tiling as tiles
from dipy_ldm._utils.checks import check_patch, check_seed, check_sizes, choose, plain
from dipy_ldm.autoencoder import (
    _network as autoencoder_network,
    losses,
)
from dipy_ldm.autoencoder._sharpening import measure_detail, sharpening_gain
from dipy_ldm.autoencoder.quantizers import BOTTLENECKS
from dipy_ldm.data._batches import Augmentation, batches, read_windows, window_size
from dipy_ldm.data._checks import Survey, survey
from dipy_ldm.metrics import detail_correlation
from dipy_ldm.nn import building
from dipy_ldm.nn.analysis import memory_needs
from dipy_ldm.training import _memory as memory
from dipy_ldm.training._memory import DISTANCES
from dipy_ldm.training._options import BASE_FAN_IN
from dipy_ldm.training._trainer import Stage

# Pieces of images that are encoded at least for codes to be revived.
_PIECES = 16

# Highest learning rates of images and of volumes, where none is given.
RATES = 4e-3, 2e-3


class Lessons(NamedTuple):
    """What an autoencoder learns from.

    Shapes: images ``(n, *space, channels)``, masks ``(n, *space, 1)``.
    """

    images: np.ndarray
    found: Survey
    size: tuple
    masks: np.ndarray | None = None
    background: float = 1.0
    augment: Augmentation | None = None
    held_out: np.ndarray | None = None

    def settings(self) -> dict:
        """Say on what the result depends."""
        drawn = self.size, self.background, self.augment
        held_out: Any = self.held_out
        return dict(zip(("size", "background", "augment"), plain(drawn))) | {
            "images": self.found.fingerprint,
            "masks": None if self.masks is None else survey(self.masks).fingerprint,
            "the shape of the validation data": np.shape(held_out),
        }


def check(
    vqvae: Any, shape: tuple[int, ...], patch: int | Sequence[int] | None, training: Any
) -> None:
    """Refuse a training that can't be done, or would not fit into the memory.

    Shapes: shape ``(n, *space, channels)``.
    """
    choose("loss", vqvae.loss, losses.LOSSES)
    choose("bottleneck", vqvae.bottleneck, BOTTLENECKS)
    check_seed(vqvae.seed)
    check_sizes(
        widths=vqvae.widths,
        blocks=vqvae.blocks,
        n_codes=vqvae.n_codes,
        n_codebooks=vqvae.n_codebooks,
        code_dim=vqvae.code_dim,
    )
    training.check(shape[0])
    check_patch(patch, len(shape) - 2)
    memory.check_training(
        "the autoencoder", needed_memory(vqvae, shape, patch, training), training
    )


def needed_memory(
    vqvae: Any, shape: tuple[int, ...], patch: int | Sequence[int] | None, training: Any
) -> float:
    """Estimate what training an autoencoder takes."""
    *space, channels = shape[1:]
    chosen = vqvae.hyperparameters()
    # Of the networks to come, where others are fitted already.
    factor = autoencoder_network.factor_of(chosen["widths"])
    size = window_size(tuple(space), factor, patch)
    encoder, decoder = sketch(
        vqvae, training.precision.name, size, channels, training.remat
    )
    distances = 4 * chosen["n_codes"] * math.prod(encoder.output.shape[1:-1])
    return memory.estimate_training([encoder, decoder], training.share, distances)


def sketch(
    vqvae: Any,
    precision: str,
    size: tuple[int | None, ...],
    channels: int,
    remat: bool = False,
) -> tuple[Any, Any]:
    """Sketch encoder and decoder without weights, to learn of their shapes."""
    chosen = vqvae.hyperparameters()
    names = ("widths", "blocks", "code_dim", "seed")
    options = {name: chosen[name] for name in names}
    options |= {"remat": remat, "design": vqvae.design_}
    build = partial(autoencoder_network.encoder_and_decoder, size, channels, **options)
    return building.build_without_weights(precision, build)


def parts(
    vqvae: Any, size: tuple[int | None, ...], remat: bool = False
) -> tuple[Any, Any, Any]:
    """Build the parts of an autoencoder, in the current precision."""
    chosen = {k: v for k, v in vqvae._described().items() if k != "loss"}
    chosen |= {"remat": remat, "design": vqvae.design_}
    return autoencoder_network.autoencoder_parts(size, vqvae.shape_[-1], **chosen)


def stage(vqvae: Any, lessons: Lessons, training: Any) -> Stage:
    """Describe how an autoencoder is trained."""
    length = training.length(len(lessons.images))
    settings = vqvae.hyperparameters() | lessons.settings()
    few = partial(
        limit_validation_images, size=lessons.size, training=training, length=length
    )
    some = few(lessons.images)
    in_parts = any(np.less(lessons.size, some.shape[1:-1]))
    if lessons.held_out is not None:
        lessons = lessons._replace(held_out=few(lessons.held_out))
    return Stage(
        "autoencoder",
        training,
        length,
        settings,
        build=partial(_compile, vqvae, lessons, training, length),
        batches=_batches(vqvae, lessons, training.batch_size),
        begin=partial(_begin, vqvae, lessons),
        take=partial(_take_weights, vqvae),
        publish=partial(_publish, vqvae, lessons),
        lesson=("mse", _variance(lessons.found)),
        verdict=partial(verdict, vqvae, lessons.found, some, in_parts),
    )


def sharpening(vqvae: Any, lessons: Lessons, training: Any) -> float:
    """Say how much sharper what a trained autoencoder makes of volumes should be."""
    if lessons.images.ndim < 5:
        return 0.0
    length = training.length(len(lessons.images))
    return missing_detail(
        vqvae, limit_validation_images(lessons.images, lessons.size, training, length)
    )


def _take_weights(vqvae, model):
    """Copy trained weights into the networks that encode and decode."""
    for part in (vqvae.encoder_, vqvae.decoder_, vqvae.quantizer_):
        part.set_weights(model.get_layer(part.name).get_weights())


def _variance(found):
    """Return the variance of images that are brought to [0, 1]."""
    return found.variance / found.scale**2


def _compile(vqvae, lessons, training, length):
    """Make the network that is trained: all parts in a row."""
    channels = vqvae.shape_[-1]
    encoder, quantizer, decoder = parts(vqvae, lessons.size, training.remat)
    images = encoder.inputs[0]
    model = _backend.ReplicatedModel(images, decoder(quantizer(encoder(images))))
    model.compile(
        training.optimizer(
            length.total,
            # Without a bound, few early batches would rule Adam's moments for long.
            global_clipnorm=1.0,
            base_fan_in=BASE_FAN_IN,
        ),
        # Of images in [0, 1].
        loss=losses.reconstruction(vqvae.loss, channels, _variance(lessons.found)),
        metrics=[losses.error(channels)],
        auto_scale_loss=False,  # the optimizer does
    )
    return model


def _batches(vqvae, lessons, batch_size):
    """Draw what the autoencoder learns from."""
    return batches(
        lessons.images,
        batch_size,
        seed=vqvae.seed,
        size=lessons.size,
        bounds=vqvae.intensity_,
        masks=lessons.masks,
        background=lessons.background,
        augment=lessons.augment,
    )


def _begin(vqvae, lessons, model):
    """Let the codes start where encoded images are."""
    _take_weights(vqvae, model)
    rng = np.random.default_rng(vqvae.seed)
    quantizer = model.get_layer("quantizer")
    draw = partial(draw_vectors, vqvae, lessons.images, lessons.size, rng)
    quantizer.codebook.assign(
        _backend.broadcast_from_chief(quantizer.initial(draw, rng))
    )


def _publish(vqvae, lessons, model, number, last):
    """After a round: watch and revive the codes, take the weights, validate."""
    quantizer = model.get_layer("quantizer")
    figures, dead = quantizer.figures()
    _take_weights(vqvae, model)
    # A code revived after the last round would not be trained any more.
    figures["revived"] = 0 if last else len(dead)
    if figures["revived"]:
        rng = np.random.default_rng([vqvae.seed, number + 1])
        draw = partial(draw_vectors, vqvae, lessons.images, lessons.size, rng)
        codes = quantizer.revived(dead, draw, rng)
        quantizer.codebook.assign(_backend.broadcast_from_chief(codes))
        _take_weights(vqvae, model)
    if lessons.held_out is not None:
        found = score(vqvae, lessons.held_out)
        figures |= {f"val_{name}": value for name, value in found.items()}
    return figures


def draw_vectors(
    vqvae: Any,
    images: np.ndarray,
    size: tuple[int, ...],
    rng: np.random.Generator,
    count: int,
) -> np.ndarray:
    """Encode pieces of images until there are enough vectors, and draw of them.

    Shapes: images ``(n, *space, channels)``, result ``(count, code_dim)``.
    """
    each = math.prod(vqvae.latent_shape((*size, 1))[:-1])
    needed = max(-(-count // each), _PIECES)
    chosen = np.sort(rng.choice(len(images), min(needed, len(images)), False))
    slack = np.maximum(np.subtract(images.shape[1:-1], size), 0)
    corners = rng.integers(0, slack + 1, (len(chosen), len(size)))

    def encode(places):
        pieces = read_windows(images, chosen[places], corners[places], size)
        return vqvae.encode(pieces)

    # On one device, however many there are: with other pieces the last bit is another,
    # and with that k-means may come to other codes.
    with _backend.spread(None):
        latents = _backend.in_batches(
            encode, np.arange(len(chosen)), tiles.safe_batch(size)
        )
    vectors = latents.reshape(-1, vqvae.code_dim)
    order = rng.choice(len(vectors), min(count, len(vectors)), False)
    # Where there are too few, each is drawn as often as any other.
    vectors = vectors[np.resize(order, count)]
    # Backgrounds encode to equal vectors; codes must differ.
    spread = 1e-3 * (vectors.std() or 1)
    return vectors + spread * rng.standard_normal(vectors.shape)


# With less perplexity all latents have one code, and nearly so with little more.
MIN_PERPLEXITY = 1.5
# Voxels that are measured at once: so few that the training before took more memory.
MAX_MEASURED_VOXELS = 2**18


def limit_validation_images(
    images: np.ndarray, size: tuple[int, ...], training: Any, length: Any
) -> np.ndarray:
    """Keep so many images that to validate takes a tenth of a round's time, about.

    Of all the time there is, where a training ends before its first round does.

    Shapes: images ``(n, *space, channels)``.
    """
    learnt = length.end(0) * training.batch_size * math.prod(size)
    # A step takes as long as three reconstructions.
    most = 0.1 * 3 * learnt / math.prod(images.shape[1:-1])
    return images[: max(1, math.ceil(most))]


def score(vqvae: Any, images: np.ndarray) -> dict[str, float]:
    """Measure how near reconstructions come to images.

    Shapes: images ``(n, *space, channels)``.
    """
    axes = tuple(range(1, images.ndim))

    def scores(piece, reconstructed):
        detail = np.zeros(len(piece))
        # In an image of one value there is none.
        varied = np.ptp(piece, axes) > 0
        if varied.any():
            detail[varied] = detail_correlation(reconstructed[varied], piece[varied])
        squares = np.mean((reconstructed - piece) ** 2, axes, dtype="float64")
        return np.stack([squares, detail], -1)

    figures = _of_each(scores, vqvae, images)
    mse, detail = figures.mean(axis=0)
    low, high = vqvae.intensity_
    return {"mse": float(mse / ((high - low) ** 2 or 1)), "detail": float(detail)}


def _of_each(measure, vqvae, images):
    """Measure images beside their reconstructions, few at once."""

    def measured(numbers):
        piece = np.asarray(images[numbers], "float32")
        return measure(piece, vqvae.predict(piece))

    batch = tiles.safe_batch(images.shape[1:-1], MAX_MEASURED_VOXELS)
    return _backend.in_batches(measured, np.arange(len(images)), batch)


def missing_detail(vqvae: Any, images: np.ndarray) -> float:
    """Measure by which gain reconstructions should be sharpened.

    Shapes: images ``(n, *space, channels)``.
    """
    figures = _of_each(measure_detail, vqvae, images)
    return sharpening_gain(figures.sum(axis=0))


def verdict(
    vqvae: Any,
    summary: Survey,
    images: np.ndarray,
    in_parts: bool,
    figures: dict[str, float],
) -> str | None:
    """Return what is wrong with a trained autoencoder, if anything."""
    if figures["perplexity"] < MIN_PERPLEXITY:
        return (
            f"nearly all latents have the same code (perplexity "
            f"{figures['perplexity']:.1f}): nothing of the images is left in them; "
            "train for more steps, or with a lower learning rate."
        )
    # Not by the figures of the last round, which are means over all its steps.
    mse = score(vqvae, images)["mse"]
    # Where images hardly differ, their mean is hard to beat, and need not be.
    mean = max(summary.spread, 0.05 * summary.variance) / summary.scale**2
    if mse < mean:
        return None
    # What is learnt from windows of a few voxels, which are border all around, does not
    # hold for whole images.
    larger = "with larger patches, " if in_parts else ""
    return (
        f"the autoencoder's reconstructions are no nearer to the images than the "
        f"mean of all images is (mean squared error {mse:.3g} and {mean:.3g}); "
        f"train for more steps, {larger}or with another learning rate (0.001 to "
        "0.002 for volumes)."
    )


def estimate_coding(
    chosen: dict,
    space: Sequence[int],
    channels: int,
    *,
    tile: int,
    margin: int,
    batch_size: int,
) -> tuple[float, float]:
    """Estimate what encoding and decoding images take."""
    names = ("widths", "blocks", "code_dim")
    widths, blocks, code_dim = (chosen[name] for name in names)
    design = (tuple(widths), blocks, code_dim, channels, len(space))
    per_voxel, latents = _per_voxel(*design)
    codes = DISTANCES * 4 * chosen["n_codes"] * latents
    # In the range of the images and of [0, 1].
    whole = 8 * channels * math.prod(space)
    piece = math.prod(_largest(size, tile, margin) for size in space)
    encoding, decoding = (
        _backend.ONCE_APPLYING + batch_size * (each * piece + whole)
        for each in (per_voxel[0], max(codes, per_voxel[1]))
    )
    return encoding, decoding


def _largest(size, tile, margin):
    """Say how long the longest tile of a side is, with its overlaps."""
    if size <= tile + 2 * margin:
        return size
    return min(size, tile + (2 if size > 2 * tile else 1) * margin)


@lru_cache
def _per_voxel(widths, blocks, code_dim, channels, rank):
    """Say how many bytes each part needs at once, and how many latents there are."""
    size = (4 * autoencoder_network.factor_of(widths),) * rank
    options = {"widths": widths, "blocks": blocks, "code_dim": code_dim}
    build = partial(
        autoencoder_network.encoder_and_decoder, size, channels, seed=0, **options
    )
    parts = building.build_without_weights("float32", build)
    voxels = math.prod(size)
    latents = math.prod(parts[0].output.shape[1:-1])
    return [memory_needs(part).live / voxels for part in parts], latents / voxels
