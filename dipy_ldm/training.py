"""Training: what both stages share around stock ``keras.Model.fit``."""

from contextlib import nullcontext
import hashlib
import json
import logging
import math
from pathlib import Path
from typing import NamedTuple

import keras
from keras import ops
import numpy as np
from tqdm import tqdm

from dipy_ldm import distribution, networks, persistence
from dipy_ldm.optimizers import FlatAdam
from dipy_ldm.signals import Terminated, deferred
from dipy_ldm.validation import InputError, at_least

logger = logging.getLogger(__name__)


def cosine_decay(learning_rate, steps):
    """Return a learning rate that warms up and falls to zero along a cosine.

    Parameters
    ----------
    learning_rate : float
        Highest rate.
    steps : int
        Batches of the whole training: Keras asks for the rate of each batch, also
        where the gradients of several are accumulated.

    Returns
    -------
    keras.optimizers.schedules.LearningRateSchedule
        The rate of each step.
    """
    warmup = min(500, steps // 10)
    return keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=learning_rate * (1 / 100 if warmup else 1),
        decay_steps=max(1, steps - warmup),
        warmup_target=learning_rate if warmup else None,
        warmup_steps=warmup,
    )


def make_optimizer(learning_rate, steps, precision, accumulate, **options):
    """Make what changes the weights of a network that is trained.

    Parameters
    ----------
    learning_rate : float
        Highest rate.
    steps : int
        Batches of the whole training.
    precision : str
        Precision of the computations.
    accumulate : int
        Batches for one step of the weights.
    **options
        Further arguments of :class:`dipy_ldm.optimizers.FlatAdam`.

    Returns
    -------
    dipy_ldm.optimizers.FlatAdam
        Optimizer.
    """
    return FlatAdam(
        cosine_decay(learning_rate, steps),
        gradient_accumulation_steps=accumulate if accumulate > 1 else None,
        # Of other precisions no gradient is too small.
        initial_scale=2.0**15 if precision == "float16" else None,
        **options,
    )


class Record(keras.callbacks.Callback):
    """Keep the history, and a checkpoint from which training goes on.

    A checkpoint holds the weights, the optimizer's state (the averaged weights
    are part of it), the figures of the epoch so far and the history; with batches
    that are functions of the step, a resumed training is the uninterrupted one.

    Parameters
    ----------
    path : str or Path or None
        File that is written after every epoch and every so many steps, by the chief
        alone; None keeps the history only.
    settings : dict
        All that the result depends on, as JSON can say it. A checkpoint of
        other settings is refused, and so are other machines' other settings.
    every : int
        Steps after which a checkpoint is written within an epoch.

    Attributes
    ----------
    done : int
        Steps of all epochs that are in the checkpoint.
    """

    def __init__(self, path, settings, every=1000):
        super().__init__()
        self.path = path and Path(path)
        self.settings = json.loads(json.dumps(settings))
        self.every = every
        self.history = {}
        self.done = 0
        self._figures = []

    def restore(self, model):
        """Bring a compiled model to the state of the checkpoint, if there is one.

        Parameters
        ----------
        model : ReplicatedModel
            Compiled model, as it was when training began.

        Raises
        ------
        InputError
            If the checkpoint is of another training, or another one for another
            machine.
        """
        model.optimizer.build(model.trainable_variables)
        if self.path is not None and self.path.exists():
            tensors, document = persistence.load(self.path, "checkpoint")
            self._refuse_others(document["settings"])
            self.history, self.done = document["history"], document.get("steps")
        state = dict(_variables(model))
        if self.done is None or (self.done and not _fits(tensors, state)):
            raise InputError(
                f"{self.path} was written by an earlier version; remove it."
            )
        seen = distribution.gathered(self.done)
        if len(set(seen)) > 1:
            raise InputError(
                f"the checkpoint {self.path} is not the same for all workers (steps in "
                f"it: {seen}); write to a folder that all machines share."
            )
        if self.done:
            for name, variable in state.items():
                variable.assign(tensors[name])
            # The metrics are made when training begins, and are given these then.
            self._figures = [
                tensors[name] for name in sorted(tensors) if name.startswith("metric.")
            ]

    def _refuse_others(self, settings):
        changed = [
            f"{name} was {settings.get(name)} and is {self.settings.get(name)}"
            for name in sorted(settings | self.settings)
            if settings.get(name) != self.settings.get(name)
        ]
        if changed:
            raise InputError(
                f"{self.path} is the checkpoint of another training "
                f"({'; '.join(changed)}); resume with the same data and options, or "
                "remove it."
            )

    def on_train_begin(self, logs=None):
        """Find the step to begin with in its epoch."""
        self._skipped = self.done % self.params["steps"]

    def on_epoch_begin(self, epoch, logs=None):
        """Bring back the figures of an epoch that is done in part."""
        self._epoch = epoch
        if self._skipped:
            metrics = zip(self.model.metrics_variables, self._figures, strict=True)
            for variable, value in metrics:
                variable.assign(value)

    def on_train_batch_end(self, batch, logs=None):
        """Write the checkpoint every so many steps, and before an early end."""
        step = self._skipped + batch + 1
        if step == self.params["steps"]:
            # The end of the epoch, if its beginning was skipped.
            self.model.stop_training = True
        elif self.model.ends:
            self._write(step)
            self.end()
        elif step % self.every == 0:
            self._write(step)

    def on_epoch_end(self, epoch, logs=None):
        """Note the epoch's figures and write the checkpoint."""
        self.model.stop_training = False
        self._skipped = 0
        for name, value in logs.items():
            self.history.setdefault(name, []).append(float(value))
        if not math.isfinite(logs["loss"]):
            raise InputError(
                f"the loss became {logs['loss']} in epoch {epoch + 1}; lower the "
                "learning rate, or train in float32."
            )
        self._write(self.params["steps"])
        if self.model.ends:
            self.end()

    def _write(self, step):
        """Write the checkpoint; all machines must, since some numbers are sums."""
        if self.path is None:
            return
        variables = [
            *_variables(self.model),
            *_named("metric", self.model.metrics_variables),
        ]
        tensors = {name: ops.convert_to_numpy(v) for name, v in variables}
        document = {
            "settings": self.settings,
            "steps": self._epoch * self.params["steps"] + step,
            "history": self.history,
        }
        if distribution.is_chief():
            persistence.save(self.path, "checkpoint", tensors, document)
            logger.debug("%s holds %s steps", self.path, document["steps"])

    def end(self):
        """End early, since SIGTERM asked for it."""
        raise Terminated(
            "stopped by SIGTERM; the checkpoint is written, and --resume goes on "
            "from it."
        )


def began_in(*checkpoints):
    """Say in which precision a training began.

    Parameters
    ----------
    *checkpoints : str or Path or None
        Where its checkpoints would be.

    Returns
    -------
    str or None
        Precision of the first that is there; None if none is.
    """
    for path in filter(None, checkpoints):
        if Path(path).exists():
            settings = persistence.read_document(path, "checkpoint")["settings"]
            return settings["precision"]
    return None


def facts(settings, checkpoint, every, validation_data):
    """Collect all that machines must agree on that train together.

    What the result depends on, and what decides when they exchange numbers.

    Parameters
    ----------
    settings : dict
        As of :class:`Record`.
    checkpoint : str or Path or None
        Whether there is one is what matters.
    every : int
        Steps between checkpoints.
    validation_data : ndarray or None
        Images.

    Returns
    -------
    dict
        For :func:`dipy_ldm.distribution.agree`.
    """
    return settings | {
        "checkpoint_steps": every,
        "having a checkpoint": checkpoint is not None,
        "the shape of the validation data": np.shape(validation_data),
    }


def _fits(tensors, variables):
    """Say whether there is a tensor of the right shape for each variable."""
    return all(
        name in tensors and tensors[name].shape == tuple(variable.shape)
        for name, variable in variables.items()
    )


def _variables(model):
    """Name everything that training changes."""
    yield from _named("model", model.variables)
    yield from _named("optimizer", model.optimizer.variables)


def _named(kind, variables):
    """Give variables of a kind names that sort as they do."""
    return ((f"{kind}.{i:05d}", variable) for i, variable in enumerate(variables))


def fit(estimator, model, data, after, record, *, title, callbacks, verbose, **length):
    """Run stock ``keras.Model.fit`` with what both stages want around it.

    Parameters
    ----------
    estimator : VQVAE or LatentDiffusion
        What is trained; its ``history_`` is kept up to date.
    model : ReplicatedModel
        Compiled model.
    data : tf.data.Dataset
        Batches without end, from the first that is not in the checkpoint.
    after : keras.callbacks.Callback
        The stage's own work after each epoch.
    record : Record
        History and checkpoint; it keeps what ``after`` changed.
    title : str
        Name on the progress bar.
    callbacks : sequence of callable
        The user's, called as ``callback(estimator)`` once the history is there, by
        the chief alone.
    verbose : bool
        Show a progress bar.
    **length : int
        ``epochs`` and ``steps_per_epoch``.

    Raises
    ------
    Terminated
        If SIGTERM came and there is a checkpoint to go on from.
    """

    def tell(epoch, logs):
        estimator.history_ = record.history
        figures = ", ".join(f"{name} {value:.4g}" for name, value in logs.items())
        logger.debug("%s, epoch %d: %s", title, epoch + 1, figures)
        if distribution.is_chief():
            # What they look at is not spread: the others don't take part.
            with distribution.spread(None):
                for callback in callbacks:
                    callback(estimator)

    def ask():
        model.asked = True

    told = keras.callbacks.LambdaCallback(on_epoch_end=tell)
    verbose = verbose and distribution.is_chief()
    progress = Progress(title, record.done, disable=not verbose)
    length["initial_epoch"] = record.done // length["steps_per_epoch"]
    # The batches are shuffled already.
    options = {"shuffle": False, "verbose": 0, **length}
    heeded = nullcontext() if record.path is None else deferred(ask)
    try:
        with heeded:
            model.fit(data, callbacks=[after, record, told, progress], **options)
    finally:
        # Or else an interrupted bar is drawn once more, below the last word.
        progress.on_train_end()
    estimator.history_ = record.history
    if any(distribution.gathered(model.asked)):
        # After the last step.
        record.end()


def check_sizes(seed, **sizes):
    """Refuse hyper-parameters of which no network can be built.

    Parameters
    ----------
    seed : int
        Seed.
    **sizes : int or sequence of int
        Numbers that must be at least 1, by their names.

    Raises
    ------
    InputError
        If a number is too small, or a sequence is empty.
    """
    at_least("seed", seed, 0)
    for name, size in sizes.items():
        numbers = np.atleast_1d(size)
        at_least(f"the length of {name}", len(numbers), 1)
        for number in numbers:
            at_least(name, number, 1)


def check_options(n, epochs, batch_size, accumulate, learning_rate, checkpoint_steps):
    """Refuse options with which nothing could be trained.

    Parameters
    ----------
    n : int
        Number of images.
    epochs, batch_size : int
        Passes over the images, and images in a batch.
    accumulate : int
        Batches for one step of the weights.
    learning_rate : float
        Highest learning rate.
    checkpoint_steps : int
        Steps from one checkpoint to the next.

    Raises
    ------
    InputError
        If a number is too small, or there are fewer images than in a batch.
    """
    at_least("epochs", epochs, 1)
    at_least("batch_size", batch_size, 1)
    at_least("accumulate", accumulate, 1)
    at_least("checkpoint_steps", checkpoint_steps, 1)
    if not learning_rate > 0:
        raise InputError(f"learning_rate must be above 0, not {learning_rate}.")
    if n < batch_size:
        raise InputError(
            f"{n} images are fewer than a batch of {batch_size}; give more images or "
            f"a batch_size of at most {n}."
        )


class Progress(keras.callbacks.Callback):
    """Show a bar with the loss and the time that is left of all epochs.

    Parameters
    ----------
    title : str
        Name of the bar.
    done : int
        Steps that were done before.
    disable : bool
        Show nothing.
    """

    def __init__(self, title, done, *, disable=False):
        super().__init__()
        self.title = title
        self.done = done
        self.disable = disable
        self.bar = None

    def on_epoch_begin(self, epoch, logs=None):
        """Open the bar, and say which epoch it is."""
        steps, epochs = self.params["steps"], self.params["epochs"]
        self.epoch = f"{self.title}, epoch {epoch + 1}/{epochs}"
        if self.bar is None:
            self.bar = tqdm(
                desc=f"{self.title}: preparing the first step",
                total=steps * epochs,
                initial=self.done,
                unit="step",
                disable=self.disable,
            )
        else:
            self.bar.set_description(self.epoch)

    def on_train_batch_end(self, batch, logs=None):
        """Move on by a step."""
        # The first takes seconds, in which its description is what there is to see.
        self.bar.set_description(self.epoch, refresh=False)
        self.bar.set_postfix(loss=f"{logs['loss']:.4f}", refresh=False)
        self.bar.update()

    def on_train_end(self, logs=None):
        """Close the bar."""
        if self.bar is not None:
            self.bar.close()


def as_array(images, rank=None):
    """Return images as an array, or say what is wrong with them.

    Parameters
    ----------
    images : array_like
        Images, ``(n, *space, channels)``.
    rank : int, optional
        Spatial dimensions they must have.

    Returns
    -------
    ndarray
        The same, not copied if it is an array.

    Raises
    ------
    InputError
        If the shape is another, or there is none.
    """
    images = np.asarray(images)
    # One dimension is refused: two-dimensional images without channels look like it.
    ranks = (2, 3) if rank is None else (rank,)
    if images.ndim - 2 not in ranks or 0 in images.shape:
        space = " or ".join({2: "h, w", 3: "x, y, z"}[r] for r in ranks)
        raise InputError(
            f"images must have the shape (n, {space}, channels), not {images.shape}; "
            "add the channels with images[..., None]."
        )
    if images.dtype.kind not in "biuf":
        raise InputError(f"images must be real numbers, not {images.dtype}.")
    return images


class Survey(NamedTuple):
    """What is to be known of images before training on them.

    Parameters
    ----------
    fingerprint : str
        SHA-256 of shape and values, hexadecimal.
    low, high : float
        Lowest and highest value.
    variance : float
        Variance of all values.
    """

    fingerprint: str
    low: float
    high: float
    variance: float


def survey(images):
    """Look at every image once, one at a time.

    Parameters
    ----------
    images : ndarray
        Images, ``(n, *space, channels)``; a mapped file may be larger than the
        memory.

    Returns
    -------
    Survey
        Hash, range and variance.

    Raises
    ------
    InputError
        If a value is not finite.
    """
    digest = hashlib.sha256(str(images.shape).encode())
    sums, bounds, bad = np.zeros(2), [np.inf, -np.inf], []
    for number, image in enumerate(images):
        image = np.ascontiguousarray(image, "float32")
        digest.update(image)
        if not np.isfinite(image).all():
            bad.append(number)
            continue
        sums += image.sum(dtype="float64"), np.square(image, dtype="float64").sum()
        bounds = min(bounds[0], image.min()), max(bounds[1], image.max())
    if bad:
        raise InputError(
            f"image {bad[0]} has NaN or infinite values ({len(bad)} of {len(images)} "
            "images have); remove or replace them."
        )
    mean, square = sums / images.size
    return Survey(digest.hexdigest(), *map(float, bounds), float(square - mean**2))


def estimate_memory(parts, batch_size, extra=0):
    """Estimate what training takes.

    Parameters
    ----------
    parts : list of keras.Model
        Networks of known spatial size.
    batch_size : int
        Examples in a batch.
    extra : int
        Bytes that an example takes beside the networks.

    Returns
    -------
    float
        Bytes.
    """
    weights = sum(part.count_params() for part in parts)
    kept = sum(networks.kept_bytes(part) for part in parts)
    # A weight has its gradient, two moments and an average; and some of what is
    # kept is there twice while gradients are computed.
    return 4 * 6 * weights + batch_size * (1.5 * kept + extra)


def check_memory(what, parts, batch_size, extra=0):
    """Refuse networks whose training would not fit into the memory.

    Parameters
    ----------
    what : str
        What is trained, in the user's words.
    parts : list of keras.Model
        Networks of known spatial size.
    batch_size : int
        Examples in a batch.
    extra : int
        Bytes that an example takes beside the networks.

    Raises
    ------
    InputError
        If it needs more than is free.
    """
    needed = estimate_memory(parts, batch_size, extra)
    free = distribution.free_memory()
    if needed > free:
        raise InputError(
            f"training {what} needs about {needed / 2**30:.1f} GiB of memory and "
            f"{free / 2**30:.1f} GiB are free; give a smaller batch_size (it is "
            f"{batch_size}), images of fewer voxels (a smaller patch for the "
            "autoencoder, a larger voxel size), or remat."
        )
