"""Transfer weights between denoisers, which may have different conditions."""

from itertools import count
import logging

import keras
from keras import layers
import numpy as np

from dipy_ldm import _serialization
from dipy_ldm._conditions import Condition
from dipy_ldm._utils.checks import InputError
from dipy_ldm._utils.values import listed
from dipy_ldm.denoiser._networks import Architecture, ConditionalDenoiser
from dipy_ldm.denoiser._unet import unnormalised
from dipy_ldm.nn._layers import ConditionFeatures

logger = logging.getLogger("dipy_ldm")

# Name of the kernel of the features of conditions.
_CONDITIONS = "conditions"


def transfer_weights(denoiser: ConditionalDenoiser, init: ConditionalDenoiser) -> None:
    """Copy the weights of another denoiser's networks, as far as they fit."""
    after, before = denoiser.architecture, init.architecture
    _log_conditions(after.conditions, before.conditions)
    for name, network in denoiser.networks.items():
        if name in init.networks:
            _transfer_network(network, init.networks[name], after, before)


def check_compatible(architecture: Architecture, init: Architecture) -> None:
    """Refuse to fine-tune a denoiser with other inputs or outputs."""
    for name in ("schedule", "target", "widths", "blocks", "attention"):
        value, trained = (getattr(a.parameters, name) for a in (architecture, init))
        if name == "attention":  # None and all False are the same
            value, trained = (v if any(v or ()) else None for v in (value, trained))
        if value != trained:
            raise InputError(
                f"`init` was trained with {name} = {trained!r}, not {value!r}",
                "use the same",
            )
    shape, init_shape = architecture.latent_shape, init.latent_shape
    if (len(shape), shape[-1]) != (len(init_shape), init_shape[-1]):
        raise InputError(
            f"`init` is for latents of the shape {init_shape}, and these have the "
            f"shape {shape}",
            "choose a model with the same dimensions and channels",
        )
    new, old = architecture.source, init.source
    kinds = [s and (s.channels, bool(s.labels)) for s in (new, old)]
    # Before files are read, it is only known whether there are labels.
    unlike = new and old and len(new.labels) > 1 and new.labels != old.labels
    if kinds[0] != kinds[1] or unlike:
        raise InputError(
            "`init` was trained with other sources, or one of the two has none",
            "choose a model with sources of the same kind",
        )


def _transfer_network(
    network: keras.Model,
    init: keras.Model,
    architecture: Architecture,
    init_architecture: Architecture,
):
    weights, tensors = _weights_by_role(network), _weights_by_role(init)
    tensors = {name: np.asarray(weight) for name, weight in tensors.items()}
    name = _input_kernel(network, architecture, weights)
    width = weights[name].shape[-1]
    before, after = (
        _input_channels(a, width) for a in (init_architecture, architecture)
    )
    tensors[name] = _rearrange_inputs(tensors[name], before, after)
    shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
    if architecture.conditions:
        # New features start at zero, without effect.
        kernel = np.zeros(shapes[_CONDITIONS], "float32")
        old = _feature_indices(init_architecture.conditions)
        new = _feature_indices(architecture.conditions)
        for key in new.keys() & old.keys():
            kernel[new[key]] = tensors[_CONDITIONS][old[key]]
        tensors[_CONDITIONS] = kernel
    for name, tensor in _serialization.matching_weights(shapes, tensors).items():
        weights[name].assign(tensor)


def _feature_indices(conditions: dict[str, Condition]) -> dict[tuple, int]:
    """Return the indices of features, by condition, kind, and level or position."""
    names = [
        (name, condition.kind, level)
        for name, condition in conditions.items()
        for level in (
            None,
            *(condition.levels or range(1, ConditionFeatures.count(condition.size))),
        )
    ]
    return {name: number for number, name in enumerate(names)}


def _describe_missing(features: dict, old_features: dict):
    """Return the names of conditions, or levels, that are not among old features."""
    missing = [key for key in features if key not in old_features]
    whole = {name for name, _, level in missing if level is None}
    texts = (name if name in whole else f"{name} {level}" for name, _, level in missing)
    return listed(dict.fromkeys(texts))


def _log_conditions(conditions: dict[str, Condition], of_init: dict[str, Condition]):
    """Log which conditions and levels are new, and which are dropped."""
    new_features, old_features = _feature_indices(conditions), _feature_indices(of_init)
    if new := _describe_missing(new_features, old_features):
        logger.info("conditions that `init` does not have: %s.", new)
    for name in [name for name in conditions if name in of_init]:
        ranks, old = conditions[name].quantiles, of_init[name].quantiles
        if ranks and old and (ranks[0], ranks[-1]) != (old[0], old[-1]):
            text = "%s: the range of %g to %g in `init` becomes %g to %g."
            logger.info(text, name, old[0], old[-1], ranks[0], ranks[-1])
    if lost := _describe_missing(old_features, new_features):
        logger.info("conditions of `init` that are dropped: %s.", lost)


def _weights_by_role(network: keras.Model) -> dict:
    """Name weights by position, with the kernel of conditions, if any, apart."""
    of_conditions = [
        layer.kernel.path
        for layer in network.layers
        if isinstance(layer, layers.Dense) and not layer.use_bias
    ]
    positions = map(str, count())
    return {
        _CONDITIONS if weight.path in of_conditions else next(positions): weight
        for weight in network.trainable_variables
    }


def _input_channels(architecture: Architecture, width: int) -> dict[str, int]:
    """Return the numbers of channels of the concatenated inputs, in order."""
    channels = architecture.latent_shape[-1]
    return {
        "latents": channels,
        "estimate": 0 if architecture.directions is None else 2 * channels,
        "mean": channels if architecture.with_mean else 0,
        "source": width if architecture.source else 0,
    }


def _input_kernel(network: keras.Model, architecture: Architecture, weights: dict):
    """Return the name of the kernel of the concatenated inputs."""
    paths = unnormalised(network)
    return next(
        name
        for name, weight in weights.items()
        if weight.path in paths
        and weight.shape[-2]
        == sum(_input_channels(architecture, weight.shape[-1]).values())
    )


def _rearrange_inputs(
    kernel: np.ndarray, before: dict[str, int], after: dict[str, int]
):
    """Adapt the input channels of a kernel to other inputs.

    Channels of new inputs start at zero, without effect.
    """
    parts = np.split(kernel, np.cumsum([*before.values()])[:-1], axis=-2)
    for place, name in enumerate(before):
        if before[name] != after[name]:
            shape = *kernel.shape[:-2], after[name], kernel.shape[-1]
            parts[place] = np.zeros(shape, "float32")
    return np.concatenate(parts, axis=-2)
