"""Training of the denoiser and its guide: noisy latents, and a stage for each."""

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

logger = logging.getLogger(__name__)

# The golden ratio: its multiples, modulo one, cover [0, 1] evenly at any count.
_GOLDEN = (5**0.5 - 1) / 2
# The guide is a degraded version of the denoiser: narrower, and trained for a sixteenth
# of the steps. With fewer than the minimum it would learn nothing.
_GUIDE_SHARE, _MIN_GUIDE_STEPS = 16, 300
# Per step.
_EMA_MOMENTUM = 0.999
# Noisy latents for the loss before training, their maximum total size, and batch size.
_N_MEASURED, _MAX_NUMBERS, _MEASURED_BATCH = 1024, 2**27, 32
# A smaller gain may be chance.
MIN_STANDARD_ERRORS = 3.0
# If gains deviate by as much as their mean, 10 subjects reach these errors in 58 % of
# trainings, and 2 to 5 in 35 % (noncentral t): warnings for fewer are meaningless.
FEWEST_SUBJECTS = 10


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

    Within an epoch, times form a low-discrepancy sequence, so that each batch covers
    all noise levels evenly.

    Shapes: result ``((noisy latents, times, ...), target)``.
    """
    mix = choose("schedule", schedule, schedules.SCHEDULES)
    n, *shape = latents.clean.shape

    def draw(step: int, positions: Sequence[int]) -> tuple:
        epoch, order, index = examples_of(n, batch_size, seed, step, positions)
        streams = [stream_of(seed, epoch, i) for i in index]
        clean, noise = latents.clean[index], normal_numbers(streams, shape)
        start = stream_of(seed, epoch).random()
        uniform = (start + _GOLDEN * order) % 1.0
        when = (uniform if times is None else times(uniform)).astype("float32")
        table = _drop_conditions(latents.inputs.table[index], streams, dropped)
        inputs = latents.inputs._replace(table=table).arrays()
        alpha, sigma = (rate.reshape(-1, *(1 for _ in shape)) for rate in mix(when))
        if latents.conditional_mean is not None:
            mean = latents.conditional_mean.predict(table)
            clean, inputs = clean - mean, (alpha * mean, *inputs)
        prediction = schedules.to_target(target, clean, noise, alpha, sigma)
        return (alpha * clean + sigma * noise, when, *inputs), prediction

    return Batches(batch_size, draw)


def _drop_conditions(conditions: np.ndarray, streams: list, share: float):
    """Drop all conditions of some examples, and some of several conditions."""
    n = conditions.shape[1]
    numbers = np.array([s.random(n + 1) for s in streams]).reshape(-1, n + 1)
    dropped = numbers[:, :1] < share
    if n > 1:
        dropped = dropped | (numbers[:, 1:] < share)
    return np.where(dropped, np.float32(UNSPECIFIED), conditions)


def check(architecture: Architecture, n: int, options: ResolvedOptions) -> None:
    """Refuse a training on `n` images that is invalid or would exceed the memory."""
    architecture.parameters.check()
    options.check(n)
    needed = needed_memory(architecture, options)
    memory.check_training("the denoiser", needed, options)


def needed_memory(architecture: Architecture, options: ResolvedOptions) -> float:
    """Estimate the bytes that training the denoiser needs."""
    build = partial(architecture.unet, remat=options.remat)
    denoiser = building.build_without_weights(options.precision.name, build)
    before = int(architecture.has_guide)
    return memory.estimate_training(
        [denoiser], options.replica_batch_size, n_earlier=before
    )


def latent_scale(latents: Latents) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and scale that normalise latents to mean 0 and variance 1.

    There is one scale for all channels: those of little variance are details, in which
    noise should not weigh as much as tissues.

    Shapes: mean, scale ``(channels,)``.
    """
    mean, spreads = latents.moments()
    scale = np.sqrt(np.square(spreads).mean())
    if scale <= 1e-6:
        raise InputError(
            "all latents of the autoencoder are the same: it has learnt nothing",
            "train it again, with a lower learning rate",
        )
    return mean.astype("float32"), np.full(mean.shape, scale, "float32")


def stages(
    denoiser: ConditionalDenoiser,
    latents: Latents,
    held_out: Latents | None,
    options: ResolvedOptions,
    settings: dict,
) -> list[Stage]:
    """Return the training stages of the guide, if any, and of the denoiser."""
    parameters = denoiser.architecture.parameters
    # Once for both, since it takes a pass over all latents.
    _, spreads = latents.moments()
    times = training_times(denoiser)
    white = schedules.baseline_loss(
        parameters.schedule, parameters.target, spreads, times
    )
    gaussian = denoiser.prior.gaussian
    linear = white if gaussian is None else linear_loss(denoiser, latents)
    validation = held_out and Validation(denoiser, held_out, options.batch_size)
    make_stage = partial(
        DenoiserStage, denoiser, latents, settings=settings, baselines=(linear, white)
    )
    main = make_stage(options, validation=validation)
    if denoiser.guide is None:
        return [main]
    guided = options._replace(checkpoint=guide_path(options.checkpoint), callbacks=())
    return [make_stage(guided, guide=True), main]


def guide_path(checkpoint: str | Path | None) -> str | None:
    """Return the path of the guide's checkpoint beside the denoiser's."""
    return f"{checkpoint}.guide" if checkpoint else None


def guide_batches(batches: int, accumulate: int) -> int:
    """Return the number of training batches of the guide, from the denoiser's."""
    minimum = _MIN_GUIDE_STEPS * accumulate
    return min(batches, max(batches // _GUIDE_SHARE, minimum))


class DenoiserStage(Stage):
    """Training stage of a denoiser or its guide.

    ``baselines`` are the losses of the best linear denoiser, and of the best one for
    latents that are white noise.
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
        """Build the network to train, in the precision of the training."""
        architecture = self.denoiser.architecture
        network = architecture.unet(self.guide, self.options.remat)
        unet_network.set_prior(network, self.denoiser.prior.gaussian)
        momentum = _EMA_MOMENTUM ** (1 / self.options.accumulate)
        return self.compiled(
            network.inputs,
            network.outputs,
            "mse",
            # The better the linear estimate, the smaller most gradients are.
            global_clipnorm=self.baseline / self.white_baseline,
            # It scales learning rates by fan-in, which is large for volumes: otherwise
            # outputs of unnormalised kernels grow, constant over space, until they
            # dominate.
            base_fan_in=BASE_FAN_IN if architecture.of_volumes else None,
            unnormalised=unet_network.unnormalised(network),
            averages=self.averaged.trainable_variables,
            # Weights are averaged after each batch, and the momentum is per step. Short
            # trainings must not average over the initial weights.
            ema_momentum=max(0.0, min(momentum, 1 - 10 / self.length.total)),
        )

    def begin(self, model: keras.Model) -> None:
        """Set the initial weights: those of the seed, or transferred ones."""
        initial_weights = self.averaged.trainable_variables
        for weight, initial in zip(model.trainable_variables, initial_weights):
            # A copy, since JAX would share the buffer, which a step may get only once.
            weight.assign(ops.copy(initial))

    def end_round(
        self, model: keras.Model, number: int, last: bool
    ) -> dict[str, float]:
        """Validate with the EMA weights."""
        return {} if self.validation is None else self.validation(last)

    def failure(self, figures: dict[str, float]) -> str | None:
        """Return the message for a denoiser that learnt nothing, or None."""
        baselines = {"val_loss": self.white_baseline, "loss": self.baseline}
        for name, baseline in baselines.items():
            if (loss := figures.get(name, 0)) >= baseline:
                return (
                    f"the denoiser has learnt nothing of the images (its {name} is "
                    f"{loss:.3g}, and {baseline:.3g} without training); train for more "
                    "steps, or with a lower learning rate."
                )
        return None


def training_times(denoiser: ConditionalDenoiser) -> partial | None:
    """Return the map from uniform numbers to training times; None for identity."""
    architecture, gaussian = denoiser.architecture, denoiser.prior.gaussian
    # Sources are informative even at the strongest noise.
    if not architecture.of_volumes or architecture.source is not None:
        return None
    # Latents that are not aligned have deviation 1.
    deviation = 1.0 if gaussian is None else gaussian.deviation
    schedule = architecture.parameters.schedule
    return partial(schedules.lognormal_times, schedule, deviation=deviation)


def noisy_latents(
    denoiser: ConditionalDenoiser,
    latents: Latents,
    batch_size: int,
    seed_offset: int = 0,
    **options,
) -> Batches:
    """Return batches of noisy latents; another `seed_offset` gives other noise."""
    parameters = denoiser.architecture.parameters
    return noisy_batches(
        latents,
        batch_size,
        schedule=parameters.schedule,
        target=parameters.target,
        seed=parameters.seed + seed_offset,
        times=training_times(denoiser),
        **options,
    )


class Validation:
    """Validation loss of held-out latents, and ablation of each condition."""

    def __init__(
        self, denoiser: ConditionalDenoiser, latents: Latents, batch_size: int
    ) -> None:
        self.denoiser = denoiser
        self.sources = latents.inputs.sources
        # The same noise in every round, so that losses are comparable; sources are read
        # later, in batches, and the conditional mean is subtracted each time.
        examples = latents.for_validation()
        n = len(examples.clean)
        batch = noisy_latents(denoiser, examples, n, seed_offset=1, dropped=0.0)
        (self.noisy, self.times, table), self.target = batch.of(0)
        self.table, self.subjects = table[:, :-1], table[:, -1]
        architecture = denoiser.architecture
        space = tuple(architecture.factor * side for side in self.noisy.shape[1:-1])
        safe = tiles.safe_batch(space, tiles.SAFE_LATENTS)
        self.batch_size = batch_size if self.sources else safe
        self.names = [*architecture.conditions, *([SOURCE] if self.sources else [])]

    def __call__(self, last: bool) -> dict[str, float]:
        """Return metrics; after the last round, warn of conditions without effect."""
        figures = {"val_loss": float(np.mean(self._squared_errors(self.table)))}
        if not self.names:
            return figures
        return figures | ablation_gains(
            self._losses, self.table, self.subjects, self.names, warn=last
        )

    def _losses(self, table: np.ndarray):
        return self._squared_errors(table).mean(axis=tuple(range(1, self.noisy.ndim)))

    def _squared_errors(self, table: np.ndarray):
        """Return squared errors given conditions, ``(n, *space, channels)``."""
        numbers = np.arange(len(self.noisy))
        predict = partial(self._predict, table)
        predicted = _backend.in_batches(predict, numbers, self.batch_size)
        return (predicted - self.target) ** 2

    def _predict(self, table: np.ndarray, numbers: np.ndarray):
        """Predict the target of numbered latents."""
        noisy, times, table = self.noisy[numbers], self.times[numbers], table[numbers]
        conditional_mean = self.denoiser.prior.conditional_mean
        if conditional_mean is None:
            return self.denoiser.predict(noisy, times, *self._arrays(table))
        mean = conditional_mean.predict(table)
        parameters, ones = self.denoiser.architecture.parameters, (1,) * (mean.ndim - 1)
        alpha, sigma = (
            rate.astype("float32").reshape(-1, *ones)
            for rate in schedules.rates(parameters.schedule, times)
        )
        predicted = self.denoiser.predict(
            noisy - alpha * mean, times, alpha * mean, *self._arrays(table)
        )
        # PyTorch cannot add GPU tensors to numpy arrays.
        predicted = ops.convert_to_numpy(predicted)
        mean_target = schedules.to_target(parameters.target, mean, 0.0, alpha, sigma)
        return predicted + mean_target

    def _arrays(self, table: np.ndarray) -> tuple[np.ndarray, ...]:
        """Return the conditioning inputs of the network."""
        return ConditioningInputs(table, self.sources).arrays()


def linear_loss(denoiser: ConditionalDenoiser, latents: Latents) -> float:
    """Return the loss of the best linear denoiser, that at the start of training."""
    estimate = unet_network.linear_estimate(denoiser.network)
    size = min(len(latents.clean), _MEASURED_BATCH)
    batches = noisy_latents(denoiser, latents, size, seed_offset=2)
    losses = []
    count = min(_N_MEASURED, _MAX_NUMBERS // math.prod(latents.clean.shape[1:]))
    for step in range(max(1, count // size)):
        (noisy, times, *_), target = batches.of(step)
        _, _, predicted, _ = estimate(noisy, times)
        losses.append(np.mean((ops.convert_to_numpy(predicted) - target) ** 2))
    return float(np.mean(losses))


def ablation_gains(
    losses: Callable,
    encoded: np.ndarray,
    subjects: np.ndarray,
    names: Sequence[str],
    *,
    warn: bool,
) -> dict[str, float]:
    """Return the increase of the loss when a condition is shuffled, one at a time.

    Conditions with less than two subjects or only one value are left out. ``losses``
    returns the loss of each example, ``(n,)``. Shapes: encoded ``(n, conditions)``.
    """
    true, figures = losses(encoded), {}
    for column, name in enumerate(names):
        specified = encoded[:, column] != UNSPECIFIED
        n = len(np.unique(subjects[specified]))
        # A single value, such as one shell, has no measurable effect.
        if n < 2 or np.ptp(encoded[specified, column]) == 0:
            continue
        gain, error = _mean_over_subjects(
            losses(_shuffled(encoded, column)) - true, subjects, specified
        )
        figures[f"val_gain_{name}"] = gain
        testable = warn and n >= FEWEST_SUBJECTS
        if testable and not gain > MIN_STANDARD_ERRORS * error:
            text = (
                "the condition %s has no measurable effect: shuffling it raises the "
                "validation loss by %.2g (standard error %.2g; %d subjects)."
            )
            logger.warning(text, name, gain, error, n)
    return figures


def _shuffled(encoded: np.ndarray, column: int):
    """Replace each value by the one half of all ranks away."""
    encoded = encoded.copy()
    (specified,) = np.nonzero(encoded[:, column] != UNSPECIFIED)
    order = specified[np.argsort(encoded[specified, column], kind="stable")]
    encoded[order, column] = np.roll(encoded[order, column], len(order) // 2)
    return encoded


def _mean_over_subjects(
    differences: np.ndarray, subjects: np.ndarray, specified: np.ndarray
):
    """Return the mean over subjects of differences, and its standard error."""
    means = [
        differences[specified & (subjects == number)].mean()
        for number in set(subjects[specified])
    ]
    return float(np.mean(means)), float(np.std(means, ddof=1) / math.sqrt(len(means)))
