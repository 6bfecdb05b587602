"""How the denoiser and its guide are trained: a stage for each."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from dipy_ldm import distribution, memory, networks, schedules
from dipy_ldm.conditions import Condition
from dipy_ldm.data.batches import noised
from dipy_ldm.training.listening import Latents, gains
from dipy_ldm.training.run import Stage
from dipy_ldm.validation import check_seed, check_sizes, choose

# The guide is to be worse than the denoiser in the same way: narrower, and trained
# for a sixteenth of the steps. With fewer than these it would know nothing at all.
_GUIDE_WIDTH = 4
_GUIDE_SHARE = 16
_GUIDE_STEPS = 300

# Highest learning rates of images and of volumes, where none is given.
RATES = 2e-3, 1e-3


def check(model: Any, shape: tuple[int, ...], training: Any) -> None:
    """Refuse a training that can't be done, or would not fit into the memory.

    Parameters
    ----------
    model : LatentDiffusion
        Estimator, fitted or not.
    shape : tuple of int
        Shape of all images, ``(n, *space, channels)``.
    training : Training
        Options, settled.

    Raises
    ------
    InputError
        If it can't; the sentence says why.
    """
    check_seed(model.seed)
    check_sizes(widths=model.widths, blocks=model.blocks)
    choose("schedule", model.schedule, schedules.SCHEDULES)
    choose("target", model.target, schedules.TARGETS)
    training.check(shape[0])
    latent_shape = model.vqvae.latent_shape(shape[1:])
    needed = needed_memory(model, latent_shape, training)
    memory.check_training("the denoiser", needed, training)


def needed_memory(model: Any, latent_shape: tuple[int, ...], training: Any) -> float:
    """Estimate what training the denoiser takes.

    Parameters
    ----------
    model : LatentDiffusion
        Estimator, fitted or not.
    latent_shape : tuple of int
        Shape of one latent, ``(*space, channels)``.
    training : Training
        Options, settled.

    Returns
    -------
    float
        Bytes.
    """
    # What is told of conditions takes next to nothing.
    build = partial(
        unet, model.hyperparameters(), latent_shape, {}, remat=training.remat
    )
    denoiser = networks.sketched(training.precision.name, build)
    guide = len(latent_shape) == 3 if model.guide is None else model.guide
    return memory.estimate_training([denoiser], training.share, before=int(guide))


def unet(
    chosen: dict,
    latent_shape: tuple[int, ...],
    conditions: dict[str, Condition],
    *,
    guide: bool = False,
    remat: bool = False,
) -> Any:
    """Build the network of the denoiser or of its guide, in the current precision.

    Parameters
    ----------
    chosen : dict
        Hyper-parameters of a LatentDiffusion.
    latent_shape : tuple of int
        Shape of one latent, ``(*space, channels)``.
    conditions : dict of str to Condition
        What it is told of.
    guide : bool
        Whether it is the guide's.
    remat : bool
        As of :func:`dipy_ldm.networks.unet`.

    Returns
    -------
    keras.Model
        The network.
    """
    widths = chosen["widths"]
    return networks.seeded_unet(
        chosen["seed"],
        latent_shape,
        widths=[max(1, w // _GUIDE_WIDTH) for w in widths] if guide else widths,
        blocks=chosen["blocks"],
        attention=chosen["attention"],
        conditions=[condition.size for condition in conditions.values()],
        remat=remat,
    )


def stages(
    model: Any,
    predict: Callable,
    latents: Latents,
    held_out: Latents | None,
    training: Any,
    settings: dict,
) -> list[Stage]:
    """Describe how the networks of a diffusion model are trained, one after the other.

    Parameters
    ----------
    model : LatentDiffusion
        Estimator whose networks are built; those that are trained are others, in the
        precision of the training.
    predict : callable
        Its denoiser, compiled: noisy latents, times and, if there are any, conditions
        to what it predicts.
    latents : Latents
        What is learnt from, of unit variance.
    held_out : Latents or None
        On which the denoiser's loss is measured.
    training : Training
        Options of the denoiser, settled.
    settings : dict
        On what the result depends beside these, as JSON can say it.

    Returns
    -------
    list of Stage
        That of the guide, if there is one, and that of the denoiser.
    """
    describe = partial(_stage, model, latents, settings)
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
        validate = _validation(model, predict, held_out)
    denoiser = describe("diffusion", model.denoiser_, training, length, validate)
    return [*found, denoiser]


def of_guide(checkpoint: str | Path | None) -> str | None:
    """Name the guide's checkpoint after the denoiser's.

    Parameters
    ----------
    checkpoint : str or Path or None
        That of the denoiser.

    Returns
    -------
    str or None
        None if there is none.
    """
    return f"{checkpoint}.guide" if checkpoint else None


def guide_steps(steps: int) -> int:
    """Say for how many steps the guide is trained, by those of the denoiser.

    Parameters
    ----------
    steps : int
        Of the denoiser.

    Returns
    -------
    int
        Of the guide.
    """
    return min(steps, max(steps // _GUIDE_SHARE, _GUIDE_STEPS))


def _stage(model, latents, settings, title, network, training, length, validate):
    """Describe how one of the two networks is trained."""
    axes = tuple(range(latents.clean.ndim - 1))
    spreads = latents.clean.std(axes)
    nothing = schedules.loss_of_nothing(model.schedule, model.target, spreads)
    guide = network is model.guide_
    return Stage(
        title,
        training,
        length,
        settings,
        build=partial(_compile, model, guide, training, length.total),
        batches=partial(_noised, model, latents, training.batch_size),
        take=partial(_take_weights, network),
        publish=partial(_publish, network, validate),
        lesson=("loss", nothing),
        verdict=partial(_verdict, nothing),
    )


def _compile(model, guide, training, steps):
    """Make a network that is trained."""
    chosen = model.hyperparameters()
    given = chosen, model.latent_shape_, model.conditions_
    network = unet(*given, guide=guide, remat=training.remat)
    trained = distribution.ReplicatedModel(network.inputs, network.outputs)
    optimizer = training.optimizer(
        steps,
        weight_decay=1e-4,
        global_clipnorm=1.0,
        use_ema=True,
        # A short training must not average over what it began with.
        ema_momentum=max(0.0, min(0.999, 1 - 10 / steps)),
    )
    trained.compile(optimizer, loss="mse", auto_scale_loss=False)
    return trained


def _noised(model, latents, batch_size, share=None, first_step=0, shift=0, **options):
    """Draw what the denoiser learns from; other noise with another shift."""
    return noised(
        latents.clean,
        batch_size,
        conditions=latents.conditions,
        schedule=model.schedule,
        target=model.target,
        seed=model.seed + shift,
        first_step=first_step,
        share=share,
        **options,
    )


def _validation(model, predict, latents):
    """Make what measures the denoiser's loss of latents that are held out."""
    latents = latents.numbered()
    # Noised alike for every round, so that losses compare.
    batch = _noised(model, latents, len(latents.clean), shift=1, dropped=0.0)
    (x, times, *tables), target = next(batch.as_numpy_iterator())
    told, who = [t[:, :-1] for t in tables], [t[:, -1] for t in tables]

    def squares(*told):
        given = x, times, *told
        predicted = distribution.in_batches(
            lambda numbers: predict(*(array[numbers] for array in given)),
            np.arange(len(x)),
            256,
        )
        return (predicted - target) ** 2

    def losses(told):
        return squares(told).mean(axis=tuple(range(1, x.ndim)))

    def validate(last):
        figures = {"val_loss": float(np.mean(squares(*told)))}
        for true, number in zip(told, who):
            names = list(model.conditions_)
            figures |= gains(losses, true, number, names, warn=last)
        return figures

    return validate


def _not_measured(last):
    return {}


def _take_weights(network, trained):
    """Copy the averages of trained weights into the network that generates."""
    network.set_weights(trained.optimizer.averages())


def _publish(network, validate, trained, number, last):
    """After a round: take the averaged weights, and validate with them."""
    _take_weights(network, trained)
    return validate(last)


def _verdict(nothing, figures):
    """Say what is wrong with a denoiser, by its last figures."""
    loss = figures.get("val_loss", figures["loss"])
    if loss < nothing:
        return None
    return (
        f"the denoiser knows nothing of the images (its loss is {loss:.3g}, and "
        f"{nothing:.3g} without any knowledge of them); train for more steps, or with "
        "a lower learning rate."
    )
