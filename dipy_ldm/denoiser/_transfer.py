"""Weights of one denoiser for another, which may have other conditions."""

import keras
from keras import layers
import numpy as np

from dipy_ldm import _serialization
from dipy_ldm._utils.checks import InputError
from dipy_ldm.denoiser._networks import Architecture, ConditionalDenoiser
from dipy_ldm.denoiser._unet import unnormalised

# Name of the kernel that the features of conditions are multiplied with.
_CONDITIONS = "conditions"


def take_over(denoiser: ConditionalDenoiser, init: ConditionalDenoiser) -> None:
    """Give the networks of a denoiser the weights of another's, as far as they fit."""
    pair = denoiser.architecture, init.architecture
    for name, network in denoiser.networks.items():
        if name in init.networks:
            _take_over(network, init.networks[name], *pair)


def check_alike(architecture: Architecture, init: Architecture) -> None:
    """Refuse to begin from a denoiser whose inputs and results mean something else."""
    for name in ("schedule", "target"):
        own, other = (getattr(a.parameters, name) for a in (architecture, init))
        if own != other:
            raise InputError(
                f"`init` was trained with the {name} {other!r}, not {own!r}; give "
                "the same."
            )
    own, other = architecture.latent_shape, init.latent_shape
    if (len(own), own[-1]) != (len(other), other[-1]):
        raise InputError(
            f"`init` is for latents of the shape {other}, and these have the shape "
            f"{own}; begin from a model of as many dimensions and channels."
        )
    own, other = (
        a.source and (a.source.channels, len(a.source.labels))
        for a in (architecture, init)
    )
    if own != other:
        raise InputError(
            "`init` was trained with other sources, or one of the two has none; begin "
            "from a model with sources of the same kind."
        )


def _take_over(network, init, architecture, init_architecture):
    weights, tensors = _by_role(network), _by_role(init)
    tensors = {name: np.asarray(weight) for name, weight in tensors.items()}
    name = _first_kernel(network, architecture, weights)
    width = weights[name].shape[-1]
    before, after = (_inputs(a, width) for a in (init_architecture, architecture))
    tensors[name] = _rearranged(tensors[name], before, after)
    shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
    own, other = (
        [(name, condition.size) for name, condition in a.conditions.items()]
        for a in (architecture, init_architecture)
    )
    if own != other and own:
        # What is new says nothing until it is learnt, and disturbs nothing.
        tensors[_CONDITIONS] = np.zeros(shapes[_CONDITIONS], "float32")
    for name, tensor in _serialization.fitting(shapes, tensors).items():
        weights[name].assign(tensor)


def _by_role(network: keras.Model) -> dict:
    """Name weights by their places, whether there are conditions or not."""
    of_conditions = [
        layer.kernel
        for layer in network.layers
        if isinstance(layer, layers.Dense) and not layer.use_bias
    ]
    paths = [kernel.path for kernel in of_conditions]
    others = [w for w in network.trainable_variables if w.path not in paths]
    names = {str(place): weight for place, weight in enumerate(others)}
    return names | dict(zip([_CONDITIONS], of_conditions))


def _inputs(architecture: Architecture, width: int) -> dict[str, int]:
    """Return how many channels the joined inputs have, in their order."""
    channels = architecture.latent_shape[-1]
    return {
        "latents": channels,
        "estimate": 0 if architecture.directions is None else 2 * channels,
        "mean": channels if architecture.expects else 0,
        "source": width if architecture.source else 0,
    }


def _first_kernel(network, architecture, weights):
    """Name the kernel that the joined inputs are convolved with."""
    paths = unnormalised(network)
    return next(
        name
        for name, weight in weights.items()
        if weight.path in paths
        and weight.shape[-2] == sum(_inputs(architecture, weight.shape[-1]).values())
    )


def _rearranged(kernel, before, after):
    """Bring the input channels of a kernel into the order of other inputs.

    What was no input is 0 at first: it says nothing, and disturbs nothing.
    """
    parts = np.split(kernel, np.cumsum([*before.values()])[:-1], axis=-2)
    for place, name in enumerate(before):
        if before[name] != after[name]:
            shape = *kernel.shape[:-2], after[name], kernel.shape[-1]
            parts[place] = np.zeros(shape, "float32")
    return np.concatenate(parts, axis=-2)
