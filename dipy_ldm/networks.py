"""Networks: encoder, decoder and U-Net, for any number of spatial dimensions.

All are functional Keras graphs over tensors ``(batch, *space, channels)``. The
number of spatial dimensions is that of the shape they are given; nothing else
tells two from three.
"""

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import count
import math

import keras
from keras import layers
import numpy as np

from dipy_ldm.layers import Recomputed, TimeEmbedding
from dipy_ldm.validation import InputError, choose

PRECISIONS = {
    "float32": "float32",
    "bfloat16": "mixed_bfloat16",
    "float16": "mixed_float16",
}


@contextmanager
def precision(name):
    """Build networks that compute in a precision; weights stay float32.

    In this thread alone: Keras keeps its policy for each.

    Parameters
    ----------
    name : {"float32", "bfloat16", "float16"}
        Precision of the computations.
    """
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(choose("precision", name, PRECISIONS))
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


# A seed, and the count of the weights that were drawn from it.
_drawn_from = ContextVar("drawn from", default=None)


@contextmanager
def seeded(seed):
    """Build networks whose first weights follow from a seed and their places alone.

    What is drawn elsewhere, in this thread or in others, makes no difference and is not
    disturbed, as it would be by ``keras.utils.set_random_seed``. Outside of such a
    context, weights are drawn as Keras does.

    Parameters
    ----------
    seed : int
        Seed, of 32 bits.
    """
    token = _drawn_from.set((seed, count()))
    try:
        yield
    finally:
        _drawn_from.reset(token)


@keras.saving.register_keras_serializable("dipy_ldm")
class Drawn(keras.initializers.Initializer):
    """An initializer of Keras whose seed is the next one of :func:`seeded`.

    Parameters
    ----------
    name : str
        Name of the class of ``keras.initializers``.
    **options
        Its arguments but for the seed.
    """

    def __init__(self, name="GlorotUniform", **options):
        self.name = name
        self.options = options
        # Taken once: on several devices, Keras may call more than once for one weight.
        self._seed = None

    def __call__(self, shape, dtype=None):
        """Draw a weight."""
        context = _drawn_from.get()
        if self._seed is None and context is not None:
            seed, numbers = context
            source = np.random.SeedSequence([seed, next(numbers)])
            self._seed = int(source.generate_state(1)[0])
        draw = getattr(keras.initializers, self.name)(**self.options, seed=self._seed)
        return draw(shape, dtype)

    def get_config(self):
        """Return the arguments of the constructor."""
        return {"name": self.name, **self.options}


def check_keras():
    """Refuse settings of Keras that networks, or their training, can't do with.

    Raises
    ------
    InputError
        If the backend is not TensorFlow, or channels come first.
    """
    settings = {
        "backend": (keras.config.backend(), "tensorflow"),
        "image_data_format": (keras.config.image_data_format(), "channels_last"),
    }
    for name, (found, wanted) in settings.items():
        if found != wanted:
            raise InputError(
                f"Keras is set to the {name} {found!r}, and dipy_ldm needs {wanted!r}; "
                "change that in ~/.keras/keras.json, or the variable KERAS_BACKEND, "
                "and start Python again."
            )


def encoder(space, channels, *, widths, blocks, code_dim, remat=False):
    """Build the network that maps images to latents.

    A convolution of stride 2 and residual blocks at each width: the latents are
    ``2 ** len(widths)`` times smaller per side. Normalisation is over the channels
    of one position :footcite:p:`Zhang2019`, so that what comes out at a place
    depends on its neighbourhood alone, whether a patch, a tile or all is given.

    Parameters
    ----------
    space : tuple of int or None
        Spatial size of the images; None for any.
    channels : int
        Channels of the images.
    widths : sequence of int
        Channels of each level.
    blocks : int
        Residual blocks of each level.
    code_dim : int
        Channels of the latents.
    remat : bool
        Compute the insides of each block again for the gradient, instead of
        keeping them: less memory, more time.

    Returns
    -------
    keras.Model
        ``(batch, *space, channels)`` to ``(batch, *space / factor, code_dim)``.

    References
    ----------
    .. footbibliography::
    """
    images = keras.Input((*space, channels))
    x = images
    for width in widths:
        # Down first: the full resolution is where the time goes.
        x = _conv(x, width, size=4, strides=2, bias_initializer=_some_bias())
        for _ in range(blocks):
            x = _residual(x, width, _norm_position, remat)
    latents = _to_output(x, code_dim, _norm_position)
    return keras.Model(images, latents, name="encoder")


def decoder(space, channels, *, widths, blocks, code_dim, remat=False):
    """Build the network that maps (quantised) latents to images.

    The mirror image of :func:`encoder`.

    Parameters
    ----------
    space : tuple of int or None
        Spatial size of the latents; None for any.
    channels : int
        Channels of the images.
    widths : sequence of int
        Channels of each level, as given to the encoder.
    blocks : int
        Residual blocks of each level.
    code_dim : int
        Channels of the latents.
    remat : bool
        As of the encoder.

    Returns
    -------
    keras.Model
        ``(batch, *space / factor, code_dim)`` to ``(batch, *space, channels)``.
    """
    latents = keras.Input((*space, code_dim))
    x = _conv(latents, widths[-1], bias_initializer=_some_bias())
    for width, finer in zip(
        reversed(widths), [*reversed(widths[:-1]), max(1, widths[0] // 2)]
    ):
        for _ in range(blocks):
            x = _residual(x, width, _norm_position, remat)
        x = _conv(_upsample(x), finer, bias_initializer=_some_bias())
    images = _to_output(x, channels, _norm_position)
    return keras.Model(latents, images, name="decoder")


def reach(widths, blocks):
    """Tell how far the decoder looks.

    Parameters
    ----------
    widths : sequence of int
        Channels of each level.
    blocks : int
        Residual blocks of each level.

    Returns
    -------
    int
        Latents to each side of its place on which a voxel depends.
    """
    # One voxel for each convolution of size 3, at the resolution that it has: the
    # first, two of each block and, one level finer, the one after upsampling; the
    # last is at full resolution.
    levels = range(len(widths))
    voxels = [1, *(2 * blocks / 2**k + 1 / 2 ** (k + 1) for k in levels)]
    return math.ceil(sum(voxels) + 1 / 2 ** len(widths))


def unet(shape, *, widths, blocks, attention, remat=False):
    """Build the denoiser: a U-Net that knows the time.

    Residual blocks conditioned on the time, self-attention at chosen levels, skip
    connections, and a middle of two residual blocks around attention, after
    :footcite:p:`Ho2020`. The last convolution starts at zero. Sizes need not be
    even: on the way up each level is cut to the size that it had on the way down.

    Parameters
    ----------
    shape : tuple of int
        Shape of one latent, ``(*space, channels)``.
    widths : sequence of int
        Channels of each level; each level but the first halves the resolution.
    blocks : int
        Residual blocks of each level.
    attention : sequence of bool
        Whether a level has self-attention, one entry a level.
    remat : bool
        Compute the insides of each block again for the gradient, instead of
        keeping them: less memory, more time.

    Returns
    -------
    keras.Model
        ``[(batch, *shape), (batch,)]`` to ``(batch, *shape)``.

    References
    ----------
    .. footbibliography::
    """
    if len(attention) != len(widths):
        raise InputError(
            f"attention needs one entry a level: {len(widths)}, not {len(attention)}."
        )
    latents, times = keras.Input(shape), keras.Input(())
    time = _embed(times, 128)
    x = _conv(latents, widths[0])
    skips = [x]
    for level, width in enumerate(widths):
        if level > 0:
            x = _conv(x, width, strides=2)
            skips.append(x)
        for _ in range(blocks):
            x = _block(x, width, time, attention[level], remat)
            skips.append(x)
    x = _block(x, widths[-1], time, True, remat)
    x = _block(x, widths[-1], time, False, remat)
    for level, width in reversed(list(enumerate(widths))):
        for _ in range(blocks + 1):
            x = layers.Concatenate()([x, skips.pop()])
            x = _block(x, width, time, attention[level], remat)
        if level > 0:
            x = _upsample(x, like=skips[-1])
            x = _conv(x, widths[level - 1])
    target = _to_output(x, shape[-1], _norm_groups, kernel_initializer="zeros")
    return keras.Model([latents, times], target, name="unet")


def sketched(name, build):
    """Build networks without weights, to learn of their shapes alone.

    Faster than whole ones, and in no memory, whatever their size; they can't be called.

    Parameters
    ----------
    name : str
        Precision, as of :func:`precision`.
    build : callable
        Builds them, without arguments.

    Returns
    -------
    object
        What ``build`` returns.

    Raises
    ------
    InputError
        If there is no such precision, or Keras is set up for other networks.
    """
    check_keras()

    def sketch():
        with precision(name), keras.StatelessScope(initialize_variables=False):
            return build()

    # In a thread of its own, as Keras keeps a list for each of what still has no
    # values, and would make these weights when it comes to train other networks.
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(sketch).result()


def kept_bytes(network):
    """Estimate what a network keeps of one example for the gradient.

    Parameters
    ----------
    network : keras.Model
        Network of known spatial size.

    Returns
    -------
    int
        Bytes of what its layers put out. Of blocks that are computed again only
        the output counts, and once the insides of the largest of them.
    """
    kept, again = _kept(network)
    return kept + again


def _kept(network):
    kept, again = 0, 0
    for layer in network.layers:
        if isinstance(layer, keras.Model):
            inside, largest = _kept(layer)
            kept, again = kept + inside, max(again, largest)
        else:
            kept += _bytes(layer.output)
        if isinstance(layer, Recomputed):
            again = max(again, kept_bytes(layer.block))
    return kept, again


def _bytes(tensor):
    width = keras.backend.standardize_dtype(tensor.dtype)
    return math.prod(tensor.shape[1:]) * (2 if width.endswith("16") else 4)


def _rank(x):
    return len(x.shape) - 2


def _by_rank(name, rank):
    """Look up a layer that Keras names by its number of dimensions."""
    return getattr(layers, f"{name}{rank}D")


def _conv(x, width, size=3, strides=1, **kwargs):
    convolution = _by_rank("Conv", _rank(x))
    kwargs = {"kernel_initializer": Drawn()} | kwargs
    # In bfloat16, TensorFlow's gradients for so few voxels are wrong on processors, up
    # to NaN: tests/test_networks.py tells when this is no longer needed.
    if _rank(x) == 3 and any(n is not None and n < 3 for n in x.shape[1:-1]):
        kwargs = kwargs | {"dtype": "float32"}
    return convolution(width, size, strides=strides, padding="same", **kwargs)(x)


def _some_bias():
    """Return the initializer of biases where positions are normalised alone.

    With biases of zero, all that is left of a position is in which proportion its
    channels are: how bright it is would be lost until the biases are learnt.
    """
    return Drawn("RandomUniform", minval=-0.1, maxval=0.1)


def _norm_groups(x):
    # The largest number of groups up to 8 that divides the channels, and leaves at
    # least two of them in each: alone, a channel would lose its mean.
    channels = x.shape[-1]
    most = max(1, min(8, channels // 2))
    groups = next(n for n in range(most, 0, -1) if channels % n == 0)
    return layers.GroupNormalization(groups, epsilon=1e-5)(x)


def _norm_position(x):
    return layers.RMSNormalization(epsilon=1e-5)(x)


def _swish(x):
    return layers.Activation("swish")(x)


def _to_output(x, channels, norm, **kwargs):
    """Normalise, activate and project, in full precision."""
    return _conv(_swish(norm(x)), channels, dtype="float32", **kwargs)


def _residual(x, width, norm, remat, time=None):
    """Add two convolutions, scaled and shifted by the time between them."""

    def build(x, time=None):
        shortcut = x if x.shape[-1] == width else _conv(x, width, size=1)
        x = _conv(_swish(norm(x)), width)
        x = norm(x)
        if time is not None:
            x = _modulate(x, time)
        x = _conv(_swish(x), width, kernel_initializer="zeros")
        return layers.Add()([shortcut, x])

    return _enclosed(build, [x] if time is None else [x, time], remat)


def _enclosed(build, inputs, remat):
    """Build a block as a network of its own, which can be computed again."""
    # Always of its own, so that the order of the weights is the same.
    stand_ins = [keras.Input(x.shape[1:], dtype=x.dtype) for x in inputs]
    block = keras.Model(stand_ins, build(*stand_ins))
    return (Recomputed(block) if remat else block)(inputs)


def _modulate(x, time):
    rank, width = _rank(x), x.shape[-1]

    def project():
        features = layers.Dense(width, kernel_initializer="zeros")(time)
        return layers.Reshape((*(1,) * rank, width))(features)

    scaled = layers.Multiply()([x, project()])
    return layers.Add()([x, scaled, project()])


def _block(x, width, time, attention, remat):
    x = _residual(x, width, _norm_groups, remat, time)
    return _enclosed(_attend, [x], remat) if attention else x


def _attend(x):
    """Add self-attention over all positions."""
    space, width = x.shape[1:-1], x.shape[-1]
    tokens = layers.Reshape((-1, width))(_norm_groups(x))
    heads = max(1, width // 32)
    attend = layers.MultiHeadAttention(
        heads, width // heads, kernel_initializer=Drawn()
    )
    tokens = attend(tokens, tokens)
    return layers.Add()([x, layers.Reshape((*space, width))(tokens)])


def _upsample(x, like=None):
    """Double each side, and cut to the size of another tensor."""
    x = _by_rank("UpSampling", _rank(x))(2)(x)
    if like is None or x.shape[1:-1] == like.shape[1:-1]:
        return x
    excess = [(0, a - b) for a, b in zip(x.shape[1:-1], like.shape[1:-1])]
    # Keras wants the pair itself for one dimension.
    excess = excess[0] if len(excess) == 1 else excess
    return _by_rank("Cropping", _rank(x))(excess)(x)


def _embed(times, width):
    """Turn times into the features that every block is told."""
    x = TimeEmbedding(width)(times)
    for _ in range(2):
        x = layers.Dense(width, activation="swish", kernel_initializer=Drawn())(x)
    return x
