"""How the autoencoder is trained: its stage, and the life of its codes."""

from collections.abc import Sequence
from functools import partial
import math
from typing import Any, NamedTuple

import numpy as np

from dipy_ldm import _backend
from dipy_ldm._utils import tiling as tiles
from dipy_ldm._utils.checks import check_patch, check_seed, check_sizes, choose, plain
from dipy_ldm.autoencoder import _network as autoencoder_network, losses
from dipy_ldm.autoencoder._assessment import (
    limit_validation_images,
    missing_detail,
    score,
    verdict,
)
from dipy_ldm.autoencoder.quantizers import BOTTLENECKS
from dipy_ldm.data._batches import Augmentation, batches, read_windows, window_size
from dipy_ldm.data._checks import Survey, survey
from dipy_ldm.nn import building
from dipy_ldm.training import _memory as memory
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
    factor = autoencoder_network.factor_of(tuple(chosen["widths"]), chosen["blocks"])
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
