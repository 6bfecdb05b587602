"""How the denoiser and its guide are trained: a stage for each."""

from collections.abc import Callable, Sequence
from functools import partial
import logging
import math
from pathlib import Path
from typing import Any

from keras import ops
import numpy as np

from dipy_ldm import _backend
from dipy_ldm._utils.checks import InputError, check_seed, check_sizes, choose
from dipy_ldm.conditions import UNSPECIFIED
from dipy_ldm.data._sources import Source, network_inputs
from dipy_ldm.denoiser import _unet as unet_network
from dipy_ldm.denoiser._conditioning import SOURCE, Latents
from dipy_ldm.denoiser._noising import noisy_batches
from dipy_ldm.denoiser._unet import build_denoiser, has_guide, prior_options
from dipy_ldm.diffusion import schedules
from dipy_ldm.nn import building
from dipy_ldm.training import _memory as memory
from dipy_ldm.training._options import BASE_FAN_IN
from dipy_ldm.training._trainer import Stage

# The guide is to be worse than the denoiser in the same way: narrower, and trained
# for a sixteenth of the steps. With fewer than these it would know nothing at all.
_GUIDE_SHARE = 16
_GUIDE_STEPS = 300
# Noised latents of which the loss before any training is measured, and their numbers at
# most; some at once.
_MEASURED = 1024
_NUMBERS = 2**27
_AT_ONCE = 32

# Highest learning rates of images and of volumes, where none is given.
RATES = 2e-3, 2e-3


def check(
    model: Any, shape: tuple[int, ...], training: Any, source: Source | None = None
) -> None:
    """Refuse a training that can't be done, or would not fit into the memory.

    Shapes: shape ``(n, *space, channels)``.
    """
    check_seed(model.seed)
    check_sizes(widths=model.widths, blocks=model.blocks)
    choose("schedule", model.schedule, schedules.SCHEDULES)
    choose("target", model.target, schedules.TARGETS)
    training.check(shape[0])
    latent_shape = model.vqvae.latent_shape(shape[1:])
    needed = needed_memory(model, latent_shape, training, source)
    memory.check_training("the denoiser", needed, training)


def needed_memory(
    model: Any,
    latent_shape: tuple[int, ...],
    training: Any,
    source: Source | None = None,
) -> float:
    """Estimate what training the denoiser takes.

    Shapes: latent_shape ``(*space, channels)``.
    """
    chosen = model.hyperparameters()
    build = partial(
        build_denoiser,
        chosen,
        latent_shape,
        # What is told of conditions takes next to nothing.
        {},
        source,
        model.vqvae.factor,
        remat=training.remat,
    )
    denoiser = building.build_without_weights(training.precision.name, build)
    guide = has_guide(chosen, latent_shape)
    return memory.estimate_training([denoiser], training.share, before=int(guide))


def scale_of(latents: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Learn what brings latents to mean 0 and variance 1.

    One scale for all channels: those of little variance are details, and what would be
    noise in them alone is not to weigh as much as the tissues.

    Shapes: latents ``(n, *space, channels)``, mean, scale ``(channels,)``.
    """
    mean, spreads = Latents(latents).moments()
    scale = np.sqrt(np.square(spreads).mean())
    if scale <= 1e-6:
        raise InputError(
            "all latents of the autoencoder are the same: it has learnt nothing of "
            "the images; train it anew, with a lower learning rate."
        )
    return mean.astype("float32"), np.full(mean.shape, scale, "float32")


def stages(
    model: Any,
    predict: Callable,
    latents: Latents,
    held_out: Latents | None,
    training: Any,
    settings: dict,
) -> list[Stage]:
    """Return the stages in which the networks of a diffusion model are trained."""
    # Over all latents, and so once for both.
    _, spreads = latents.moments()
    given = model.schedule, model.target, spreads, _times(model)
    noise = schedules.baseline_loss(*given)
    linear = noise if model.gaussian_ is None else _loss_of_linear(model, latents)
    describe = partial(_stage, model, latents, settings, linear, noise)
    length = training.length(len(latents.clean))
    found = []
    if model.guide_ is not None:
        shorter = length._replace(total=guide_steps(length.total))
        path = of_guide(training.checkpoint)
        guided = training._replace(checkpoint=path, callbacks=())
        guide = describe("guide", model.guide_, guided, shorter, _not_measured)
        found.append(guide)
    validate = _not_measured
    if held_out is not None:
        validate = _validation(model, predict, held_out, training.batch_size)
    denoiser = describe("diffusion", model.denoiser_, training, length, validate)
    return [*found, denoiser]


def of_guide(checkpoint: str | Path | None) -> str | None:
    """Name the guide's checkpoint after the denoiser's."""
    return f"{checkpoint}.guide" if checkpoint else None


def guide_steps(steps: int) -> int:
    """Say for how many steps the guide is trained, by those of the denoiser."""
    return min(steps, max(steps // _GUIDE_SHARE, _GUIDE_STEPS))


def _stage(
    model, latents, settings, linear, noise, title, network, training, length, validate
):
    """Describe how one of the two networks is trained."""
    return Stage(
        title,
        training,
        length,
        settings,
        build=partial(_compile, model, network, training, length.total, linear / noise),
        batches=_noised(model, latents, training.batch_size),
        publish=partial(_publish, validate),
        lesson=("loss", linear),
        verdict=partial(_verdict, linear, noise),
        network=network,
    )


def _compile(model, used, training, steps, clip):
    """Make a network that is trained, and whose average one is that is used."""
    told = model.conditions_, model.source_, model.vqvae_.factor
    given = model.hyperparameters(), model.latent_shape_, *told
    options = {"guide": used is model.guide_, "remat": training.remat}
    knows = prior_options(model.expectation_, model.gaussian_)
    network = build_denoiser(*given, **knows, **options)
    unet_network.set_prior(network, model.gaussian_)
    trained = _backend.ReplicatedModel(network.inputs, network.outputs)
    # The less is left to learn, the smaller gradients are, but for some.
    optimizer = training.optimizer(
        steps,
        global_clipnorm=clip,
        # With as many inputs as there are over voxels, kernels between blocks let what
        # is the same everywhere grow until nothing else is seen; blocks take it away.
        base_fan_in=BASE_FAN_IN if _of_volumes(model) else None,
        unnormalised=unet_network.unnormalised(trained),
        averages=used.trainable_variables,
        # A short training must not average over what it began with.
        ema_momentum=max(0.0, min(0.999, 1 - 10 / steps)),
    )
    trained.compile(optimizer, loss="mse", auto_scale_loss=False)
    return trained


def _of_volumes(model):
    return len(model.latent_shape_) == 4


def _times(model):
    """Return from which times the denoiser learns; None for all alike."""
    # Sources tell at the strongest noise all that is to be known.
    if not _of_volumes(model) or model.source_ is not None:
        return None
    # Where places are not alike, latents differ by all that they vary.
    gaussian = model.gaussian_
    deviation = 1.0 if gaussian is None else gaussian.deviation
    return partial(schedules.lognormal_times, model.schedule, deviation=deviation)


def _noised(model, latents, batch_size, shift=0, **told):
    """Draw what the denoiser learns from; other noise with another shift."""
    return noisy_batches(
        latents.clean,
        batch_size,
        **latents.noising_options | told,
        schedule=model.schedule,
        target=model.target,
        seed=model.seed + shift,
        times=_times(model),
    )


def _validation(model, predict, latents, batch_size):
    """Make what measures the denoiser's loss of latents that are held out."""
    latents = latents.numbered()
    # Noised alike for every round, so that losses compare; sources are read later, as
    # many at once as memory suffices for, and what is to be expected is taken away
    # by what is told each time.
    once = {"shift": 1, "dropped": 0.0, "sources": None, "expected": None}
    batch = _noised(model, latents, len(latents.clean), **once)
    (x, times, *tables), target = batch.of(0)
    told, who = [t[:, :-1] for t in tables], [t[:, -1] for t in tables]
    sources = latents.noising_options.get("sources")
    read, at_once = (sources.read, batch_size) if sources else (None, 256)
    names = [*model.conditions_, *([SOURCE] if sources else [])]
    ones = (1,) * (x.ndim - 1)
    alpha, sigma = (
        rate.astype("float32").reshape(-1, *ones)
        for rate in schedules.rates(model.schedule, times)
    )

    def squares(*told):
        def apply(numbers):
            given = [
                array
                for table in told
                for array in network_inputs(table[numbers], read)
            ]
            noisy, when, levels = x[numbers], times[numbers], alpha[numbers]
            if latents.expectation is None:
                return predict(noisy, when, *given)
            known = latents.expectation.predict(told[0][numbers])
            left = noisy - levels * known
            predicted = predict(left, when, levels * known, *given)
            mixed = known, 0.0, levels, sigma[numbers]
            return predicted + schedules.to_target(model.target, *mixed)

        predicted = _backend.in_batches(apply, np.arange(len(x)), at_once)
        return (predicted - target) ** 2

    def losses(told):
        return squares(told).mean(axis=tuple(range(1, x.ndim)))

    def validate(last):
        figures = {"val_loss": float(np.mean(squares(*told)))}
        for true, number in zip(told, who):
            figures |= ablation_gains(losses, true, number, names, warn=last)
        return figures

    return validate


def _not_measured(last):
    return {}


def _publish(validate, trained, number, last):
    """After a round: validate with the averaged weights."""
    return validate(last)


def _loss_of_linear(model, latents):
    """Measure the loss before anything is trained: what a linear function knows."""
    estimate = unet_network.linear_estimate(model.denoiser_)
    size = min(len(latents.clean), _AT_ONCE)
    batches = _noised(model, latents, size, shift=2)
    losses = []
    enough = min(_MEASURED, _NUMBERS // math.prod(latents.clean.shape[1:]))
    for step in range(max(1, enough // size)):
        (noisy, times, *_), wanted = batches.of(step)
        _, _, found, _ = estimate(noisy, times)
        losses.append(np.mean((ops.convert_to_numpy(found) - wanted) ** 2))
    return float(np.mean(losses))


def _verdict(linear, noise, figures):
    """Say what is wrong with a denoiser, by its last figures."""
    for name, nothing in (("val_loss", noise), ("loss", linear)):
        if (loss := figures.get(name, 0)) >= nothing:
            return (
                f"the denoiser has learnt nothing of the images (its {name} is "
                f"{loss:.3g}, and {nothing:.3g} without any training); train for more "
                "steps, or with a lower learning rate."
            )
    return None


logger = logging.getLogger(__name__)

# A gain of fewer standard errors may be chance.
MIN_STANDARD_ERRORS = 3.0
# Where gains deviate by as much as their mean, 10 subjects reach these errors in 58 %
# of trainings, and 2 to 5 in 35 % (noncentral t): a warning of fewer says nothing.
FEWEST_SUBJECTS = 10


def ablation_gains(
    losses: Callable,
    encoded: np.ndarray,
    subjects: np.ndarray,
    names: Sequence[str],
    *,
    warn: bool,
) -> dict[str, float]:
    """Measure how much the loss rises where a condition is shuffled, one at a time.

    Shapes: losses ``(n, conditions)``.
    """
    true, figures = losses(encoded), {}
    for column, name in enumerate(names):
        specified = encoded[:, column] != UNSPECIFIED
        gain, error = _mean(
            losses(_exchanged(encoded, column)) - true, subjects, specified
        )
        figures[f"val_gain_{name}"] = gain
        n = len(np.unique(subjects[specified]))
        if warn and n >= FEWEST_SUBJECTS and not gain > MIN_STANDARD_ERRORS * error:
            logger.warning(
                "the model does not listen to the condition %s, as far as can be told "
                "from held-out images of %d subjects: with others' values its loss is "
                "%.2g higher (standard error %.2g).",
                name,
                n,
                gain,
                error,
            )
    return figures


def _exchanged(encoded, column):
    """Give each latent the value of one that is half of all away in their order."""
    encoded = encoded.copy()
    (specified,) = np.nonzero(encoded[:, column] != UNSPECIFIED)
    order = specified[np.argsort(encoded[specified, column], kind="stable")]
    encoded[order, column] = np.roll(encoded[order, column], len(order) // 2)
    return encoded


def _mean(differences, subjects, specified):
    """Return the mean of differences and its standard error, by those they are of."""
    each = [
        differences[specified & (subjects == number)].mean()
        for number in set(subjects[specified])
    ]
    if len(each) < 2:
        return 0.0, math.inf
    return float(np.mean(each)), float(np.std(each, ddof=1) / math.sqrt(len(each)))
