"""How the denoiser and its guide are trained: noised latents, and a stage for each."""

from collections.abc import Callable, Sequence
from functools import partial
import logging
import math
from pathlib import Path
from typing import Any

import keras
from keras import ops
import numpy as np

from dipy_ldm import _backend
from dipy_ldm._conditions import UNSPECIFIED
from dipy_ldm._utils import tiling as tiles
from dipy_ldm._utils.checks import InputError, choose
from dipy_ldm._utils.types import Batches
from dipy_ldm.data._batches import examples_of, normal_numbers, stream_of
from dipy_ldm.data._sources import SOURCE, ConditioningInputs
from dipy_ldm.denoiser import _unet as unet_network
from dipy_ldm.denoiser._conditioning import Latents
from dipy_ldm.denoiser._networks import Architecture, ConditionalDenoiser
from dipy_ldm.diffusion import schedules
from dipy_ldm.nn import _building as building
from dipy_ldm.training import _memory as memory
from dipy_ldm.training._options import BASE_FAN_IN, ResolvedOptions
from dipy_ldm.training._trainer import Stage

# The golden ratio: its multiples, modulo one, cover [0, 1] evenly at any count.
_GOLDEN = (5**0.5 - 1) / 2


def noisy_batches(
    latents: Latents,
    batch_size: int,
    *,
    schedule: str,
    target: str,
    seed: int,
    times: Callable | None = None,
    dropped: float = 0.1,
) -> Batches:
    """Draw endless batches of noisy latents, their conditioning, and targets.

    Within an epoch the times are those of a low-discrepancy sequence, so that
    each batch has its share of every noise level.

    Shapes: result ``((noisy latents, times, ...), target)``.
    """
    mix = choose("schedule", schedule, schedules.SCHEDULES)
    n, *shape = latents.clean.shape

    def draw(step, places):
        epoch, order, index = examples_of(n, batch_size, seed, step, places)
        streams = [stream_of(seed, epoch, i) for i in index]
        clean, noise = latents.clean[index], normal_numbers(streams, shape)
        start = stream_of(seed, epoch).random()
        shares = (start + _GOLDEN * order) % 1.0
        when = (shares if times is None else times(shares)).astype("float32")
        table = _drop_conditions(latents.inputs.table[index], streams, dropped)
        inputs = latents.inputs._replace(table=table).arrays()
        alpha, sigma = (rate.reshape(-1, *(1 for _ in shape)) for rate in mix(when))
        if latents.conditional_mean is not None:
            mean = latents.conditional_mean.predict(table)
            clean, inputs = clean - mean, (alpha * mean, *inputs)
        prediction = schedules.to_target(target, clean, noise, alpha, sigma)
        return (alpha * clean + sigma * noise, when, *inputs), prediction

    return Batches(batch_size, draw)


def _drop_conditions(conditions, streams, share):
    """Drop all conditions of an example, each of several, or none."""
    n = conditions.shape[1]
    numbers = np.array([s.random(n + 1) for s in streams]).reshape(-1, n + 1)
    dropped = numbers[:, :1] < share
    if n > 1:
        dropped = dropped | (numbers[:, 1:] < share)
    return np.where(dropped, np.float32(UNSPECIFIED), conditions)


logger = logging.getLogger(__name__)

# The guide is to be worse than the denoiser in the same way: narrower, and trained
# for a sixteenth of the steps. With fewer than these it would know nothing at all.
_GUIDE_SHARE, _MIN_GUIDE_STEPS = 16, 300
# Of the average of weights, from one step to the next.
_EMA_MOMENTUM = 0.999
# Noised latents of which the loss before any training is measured, and their numbers at
# most; in batches.
_MEASURED, _MAX_NUMBERS, _MEASURED_BATCH = 1024, 2**27, 32


def check(architecture: Architecture, n: int, options: ResolvedOptions) -> None:
    """Refuse a training on so many images that can't be done, or would not fit."""
    architecture.parameters.check()
    options.check(n)
    needed = needed_memory(architecture, options)
    memory.check_training("the denoiser", needed, options)


def needed_memory(architecture: Architecture, options: ResolvedOptions) -> float:
    """Estimate the bytes that training the denoiser takes."""
    build = partial(architecture.unet, remat=options.remat)
    denoiser = building.build_without_weights(options.precision.name, build)
    before = int(architecture.has_guide)
    return memory.estimate_training([denoiser], options.share, before=before)


def latent_scale(latents: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
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
            "the images; train it again, with a lower learning rate."
        )
    return mean.astype("float32"), np.full(mean.shape, scale, "float32")


def stages(
    denoiser: ConditionalDenoiser,
    latents: Latents,
    held_out: Latents | None,
    options: ResolvedOptions,
    settings: dict,
) -> list[Stage]:
    """Return the stages in which guide, if any, and denoiser are trained."""
    parameters = denoiser.architecture.parameters
    # Over all latents, and so once for both.
    _, spreads = latents.moments()
    times = training_times(denoiser)
    white = schedules.baseline_loss(
        parameters.schedule, parameters.target, spreads, times
    )
    gaussian = denoiser.prior.gaussian
    linear = white if gaussian is None else linear_loss(denoiser, latents)
    validation = held_out and Validation(denoiser, held_out, options.batch_size)
    describe = partial(
        DenoiserStage, denoiser, latents, settings=settings, baselines=(linear, white)
    )
    main = describe(options, validation=validation)
    if denoiser.guide is None:
        return [main]
    guided = options._replace(checkpoint=guide_path(options.checkpoint), callbacks=())
    return [describe(guided, guide=True), main]


def guide_path(checkpoint: str | Path | None) -> str | None:
    """Name the guide's checkpoint after the denoiser's."""
    return f"{checkpoint}.guide" if checkpoint else None


def guide_batches(batches: int, accumulate: int) -> int:
    """Return on how many batches the guide is trained, by those of the denoiser."""
    least = _MIN_GUIDE_STEPS * accumulate
    return min(batches, max(batches // _GUIDE_SHARE, least))


class DenoiserStage(Stage):
    """A denoiser or its guide in training.

    ``baselines`` are the losses of the best linear denoiser, and of one that takes
    latents for white noise.
    """

    averaged: keras.Model

    def __init__(
        self,
        denoiser: ConditionalDenoiser,
        latents: Latents,
        options: ResolvedOptions,
        *,
        settings: dict,
        baselines: tuple[float, float],
        guide: bool = False,
        validation: "Validation | None" = None,
    ) -> None:
        self.title = "guide" if guide else "diffusion"
        self.denoiser = denoiser
        self.guide = guide
        self.averaged = denoiser.networks["guide" if guide else "denoiser"]
        self.options = options
        self.length = options.length(len(latents.clean))
        if guide:
            total = guide_batches(self.length.total, options.accumulate)
            self.length = self.length._replace(total=total)
        self.settings = settings
        self.baseline, self.white_baseline = baselines
        self.validation = validation
        self.batches = noisy_latents(denoiser, latents, options.batch_size)

    def build(self) -> Any:
        """Build the network that is trained, in the precision of the training."""
        architecture = self.denoiser.architecture
        network = architecture.unet(self.guide, self.options.remat)
        unet_network.set_prior(network, self.denoiser.prior.gaussian)
        momentum = _EMA_MOMENTUM ** (1 / self.options.accumulate)
        return self.compiled(
            network.inputs,
            network.outputs,
            "mse",
            # The less is left to learn, the smaller gradients are, but for some.
            global_clipnorm=self.baseline / self.white_baseline,
            # With as many inputs as there are over voxels, kernels between blocks let
            # what is the same everywhere grow until nothing else is seen; blocks take
            # it away.
            base_fan_in=BASE_FAN_IN if architecture.of_volumes else None,
            unnormalised=unet_network.unnormalised(network),
            averages=self.averaged.trainable_variables,
            # It averages after batches, over so many steps. A short training must not
            # average over what it began with.
            ema_momentum=max(0.0, min(momentum, 1 - 10 / self.length.total)),
        )

    def begin(self, model: keras.Model) -> None:
        """Let it begin with the weights of the seed, or with what was taken over."""
        variables = model.trainable_variables, self.averaged.trainable_variables
        for weight, initial in zip(*variables):
            # JAX would share one buffer, which no step may be given twice.
            weight.assign(ops.copy(initial))

    def end_round(
        self, model: keras.Model, number: int, last: bool
    ) -> dict[str, float]:
        """Validate with the averaged weights."""
        return {} if self.validation is None else self.validation(last)

    def verdict(self, figures: dict[str, float]) -> str | None:
        """Return the message for a denoiser that learnt nothing, or None."""
        baselines = {"val_loss": self.white_baseline, "loss": self.baseline}
        for name, baseline in baselines.items():
            if (loss := figures.get(name, 0)) >= baseline:
                return (
                    f"the denoiser has learnt nothing of the images (its {name} is "
                    f"{loss:.3g}, and {baseline:.3g} without any training); train for "
                    "more steps, or with a lower learning rate."
                )
        return None


def training_times(denoiser: ConditionalDenoiser) -> partial | None:
    """Return from which times the denoiser learns; None for all alike."""
    architecture, gaussian = denoiser.architecture, denoiser.prior.gaussian
    # Sources tell at the strongest noise all that is to be known.
    if not architecture.of_volumes or architecture.source is not None:
        return None
    # Where places are not alike, latents differ by all that they vary.
    deviation = 1.0 if gaussian is None else gaussian.deviation
    schedule = architecture.parameters.schedule
    return partial(schedules.lognormal_times, schedule, deviation=deviation)


def noisy_latents(
    denoiser: ConditionalDenoiser,
    latents: Latents,
    batch_size: int,
    shift: int = 0,
    **options,
) -> Batches:
    """Return batches of noisy latents; the shift changes the noise."""
    parameters = denoiser.architecture.parameters
    return noisy_batches(
        latents,
        batch_size,
        schedule=parameters.schedule,
        target=parameters.target,
        seed=parameters.seed + shift,
        times=training_times(denoiser),
        **options,
    )


class Validation:
    """The loss of held-out latents, and what each condition adds to it."""

    def __init__(
        self, denoiser: ConditionalDenoiser, latents: Latents, batch_size: int
    ) -> None:
        self.denoiser = denoiser
        self.sources = latents.inputs.sources
        # Noised alike for every round, so that losses compare; sources are read later,
        # as many at once as memory suffices for, and the conditional mean is taken away
        # each time.
        examples = latents.for_validation()
        n = len(examples.clean)
        batch = noisy_latents(denoiser, examples, n, shift=1, dropped=0.0)
        (self.noisy, self.times, table), self.target = batch.of(0)
        self.table, self.subjects = table[:, :-1], table[:, -1]
        architecture = denoiser.architecture
        space = tuple(architecture.factor * side for side in self.noisy.shape[1:-1])
        safe = tiles.safe_batch(space, tiles.SAFE_LATENTS)
        self.batch_size = batch_size if self.sources else safe
        self.names = [*architecture.conditions, *([SOURCE] if self.sources else [])]

    def __call__(self, last: bool) -> dict[str, float]:
        """Return figures; after the last round, warn of conditions without effect."""
        figures = {"val_loss": float(np.mean(self._squares(self.table)))}
        if not self.names:
            return figures
        return figures | ablation_gains(
            self._losses, self.table, self.subjects, self.names, warn=last
        )

    def _losses(self, table):
        return self._squares(table).mean(axis=tuple(range(1, self.noisy.ndim)))

    def _squares(self, table):
        """Return squared errors under conditions, ``(n, *space, channels)``."""
        numbers = np.arange(len(self.noisy))
        predict = partial(self._predict, table)
        predicted = _backend.in_batches(predict, numbers, self.batch_size)
        return (predicted - self.target) ** 2

    def _predict(self, table, numbers):
        """Predict the target of some latents."""
        noisy, times, table = self.noisy[numbers], self.times[numbers], table[numbers]
        inputs = ConditioningInputs(table, self.sources).arrays()
        conditional_mean = self.denoiser.prior.conditional_mean
        if conditional_mean is None:
            return self.denoiser.predict(noisy, times, *inputs)
        mean = conditional_mean.predict(table)
        parameters, ones = self.denoiser.architecture.parameters, (1,) * (mean.ndim - 1)
        alpha, sigma = (
            rate.astype("float32").reshape(-1, *ones)
            for rate in schedules.rates(parameters.schedule, times)
        )
        inputs = alpha * mean, *inputs
        predicted = self.denoiser.predict(noisy - alpha * mean, times, *inputs)
        # On a GPU PyTorch's are not added to numpy's arrays.
        predicted = ops.convert_to_numpy(predicted)
        more = schedules.to_target(parameters.target, mean, 0.0, alpha, sigma)
        return predicted + more


def linear_loss(denoiser: ConditionalDenoiser, latents: Latents) -> float:
    """Measure the loss of the best linear denoiser, with which training begins."""
    estimate = unet_network.linear_estimate(denoiser.network)
    size = min(len(latents.clean), _MEASURED_BATCH)
    batches = noisy_latents(denoiser, latents, size, shift=2)
    losses = []
    count = min(_MEASURED, _MAX_NUMBERS // math.prod(latents.clean.shape[1:]))
    for step in range(max(1, count // size)):
        (noisy, times, *_), target = batches.of(step)
        _, _, predicted, _ = estimate(noisy, times)
        losses.append(np.mean((ops.convert_to_numpy(predicted) - target) ** 2))
    return float(np.mean(losses))


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

    Conditions that are not known of two subjects, or are alike for all, get no figure.
    ``losses`` returns those of each example, ``(n,)``. Shapes: encoded ``(n,
    conditions)``.
    """
    true, figures = losses(encoded), {}
    for column, name in enumerate(names):
        specified = encoded[:, column] != UNSPECIFIED
        n = len(np.unique(subjects[specified]))
        # Of one value for all, such as one shell, there is no effect to be told.
        if n < 2 or np.ptp(encoded[specified, column]) == 0:
            continue
        gain, error = _mean_over_subjects(
            losses(_permuted(encoded, column)) - true, subjects, specified
        )
        figures[f"val_gain_{name}"] = gain
        testable = warn and n >= FEWEST_SUBJECTS
        if testable and not gain > MIN_STANDARD_ERRORS * error:
            text = (
                "the condition %s has no measurable effect: with the values of others "
                "the validation loss is %.2g higher (standard error %.2g; %d subjects)."
            )
            logger.warning(text, name, gain, error, n)
    return figures


def _permuted(encoded, column):
    """Exchange values with those that are half of all away in their order."""
    encoded = encoded.copy()
    (specified,) = np.nonzero(encoded[:, column] != UNSPECIFIED)
    order = specified[np.argsort(encoded[specified, column], kind="stable")]
    encoded[order, column] = np.roll(encoded[order, column], len(order) // 2)
    return encoded


def _mean_over_subjects(differences, subjects, specified):
    """Return the mean of differences of subjects, and its standard error."""
    each = [
        differences[specified & (subjects == number)].mean()
        for number in set(subjects[specified])
    ]
    return float(np.mean(each)), float(np.std(each, ddof=1) / math.sqrt(len(each)))
