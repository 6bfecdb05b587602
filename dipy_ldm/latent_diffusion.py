"""Latent diffusion: new images from noise, by way of the autoencoder's latents."""

import copy
from functools import partial
from typing import Unpack

import numpy as np

from dipy_ldm import (
    denoisers,
    distribution,
    documents,
    networks,
    persistence,
    samplers,
    schedules,
    tiles,
)
from dipy_ldm.data.arrays import as_array, learnable, survey
from dipy_ldm.data.batches import noised
from dipy_ldm.estimators import Estimator
from dipy_ldm.precision import Precision, tell
from dipy_ldm.training import Options, Stage, Training, train
from dipy_ldm.training.memory import check_memory
from dipy_ldm.validation import (
    InputError,
    at_least,
    check_counts,
    check_seed,
    check_shares,
    check_sizes,
    choose,
    plain,
    scalars,
    whole,
)
from dipy_ldm.vqvae import VQVAE

# The guide is to be worse than the denoiser in the same way: narrower, and trained
# for a sixteenth of the steps. With fewer than these it would know nothing at all.
_GUIDE_WIDTH = 4
_GUIDE_SHARE = 16
_GUIDE_STEPS = 300
# Times at which it guides: before and after, samples are better without.
_GUIDED = (0.2, 0.95)


class LatentDiffusion(Estimator):
    """Diffusion model of the latents of an autoencoder :footcite:p:`Rombach2022`.

    A U-Net learns to take noise away from the latents; sampling starts from pure
    noise, and the decoder turns what remains into images. A second, smaller U-Net
    that is trained for a short time guides it: where the two differ, the larger one
    is followed further than it goes :footcite:p:`Karras2024`.

    Parameters
    ----------
    vqvae : VQVAE
        A fitted autoencoder. Clones of scikit-learn keep it fitted.
    widths : sequence of int
        Channels of the U-Net's levels; each but the first halves the resolution.
    blocks : int
        Residual blocks of each level.
    attention : sequence of bool, optional
        Whether a level has self-attention, one entry a level; the middle always
        has. None is for no level.
    schedule : {"cosine", "linear"}
        How noise grows with time.
    target : {"v", "noise", "clean"}
        What the network predicts.
    guide : bool, optional
        Whether a guide is trained. None is for images alone: volumes are better without
        guidance.
    seed : int
        Seed of everything random in training.

    Attributes
    ----------
    vqvae_ : VQVAE
        The autoencoder as it was when this was fitted: denoiser and latents are of no
        use with another one, so that a further fit of ``vqvae`` changes nothing here.
    denoiser_, guide_ : keras.Model
        The U-Nets, with averaged weights; no guide is None.
    latent_mean_, latent_scale_ : ndarray
        Mean and standard deviation of each channel of the latents.
    history_ : dict of str to list
        Figures of each round (an epoch, or several short ones): ``step``, ``epoch``,
        ``loss``, and ``val_loss`` with averaged weights.
    fingerprint_ : str
        Hash of the training images.
    precision_ : Precision or None
        What training computed in, and why; None if the file does not say.

    References
    ----------
    .. footbibliography::

    Examples
    --------
    >>> from dipy_ldm import LatentDiffusion
    >>> model = LatentDiffusion.load("mnist")
    >>> model.predict(4, steps=2, seed=1).shape
    (4, 28, 28, 1)
    """

    def __init__(
        self,
        vqvae,
        *,
        widths=(128, 128),
        blocks=1,
        attention=None,
        schedule="cosine",
        target="v",
        guide=None,
        seed=0,
    ):
        self.vqvae = vqvae
        self.widths = widths
        self.blocks = blocks
        self.attention = attention
        self.schedule = schedule
        self.target = target
        self.guide = guide
        self.seed = seed

    def fit(self, images, *, validation_data=None, **training: Unpack[Options]):
        """Learn to take noise from the latents of images.

        Parameters
        ----------
        images : array_like
            Images, ``(n, *space, channels)``, of the shape of those that the
            autoencoder was fitted to.
        validation_data : array_like, optional
            Images on which the loss is measured after each round.
        **training
            Options of :class:`dipy_ldm.training.Training`; ``epochs`` is 10 if left
            out. The guide, which is trained first, has a checkpoint of the same name
            and ``.guide``.

        Returns
        -------
        LatentDiffusion
            The estimator itself.

        Raises
        ------
        InputError
            If the images or an option can't be used.
        """
        images = self._check_images(images, self.vqvae)
        if validation_data is not None:
            validation_data = self._check_images(validation_data, self.vqvae)
            survey(validation_data, "validation image")
        training = _training(training)
        training = training.settled(images.ndim - 2, _of_guide(training.checkpoint))
        self._check(images.shape, training)
        self.fingerprint_ = learnable(images).fingerprint
        self.vqvae_ = self.vqvae._as_it_is()
        self.precision_ = tell(training.precision)
        length = training.length(len(images))
        settings = self._hyperparameters() | {
            "images": self.fingerprint_,
            "vqvae": survey(self.vqvae_.codebook_).fingerprint,
            "the shape of the validation data": np.shape(validation_data),
        }
        with distribution.spread(training.strategy):
            # Before anything is exchanged.
            distribution.agree(settings | training.settings())
            latents = self.vqvae_.encode(images)
            self._learn_scale(latents)
            # The only copy: of thousands of volumes they take gigabytes.
            latents = self._scaled(latents)
            self._build()
            held_out = self._held_out(validation_data)
            stage = partial(self._stage, settings, latents)
            if self.guide_ is not None:
                guided = _for_guide(training)
                shorter = length._replace(total=_guide_steps(length.total))
                widths = self._guide_widths()
                guide = stage("guide", self.guide_, widths, guided, shorter, None)
                self._take_weights(self.guide_, train(self, guide))
            strong = stage(
                "diffusion", self.denoiser_, self.widths, training, length, held_out
            )
            self._take_weights(self.denoiser_, train(self, strong))
        return self

    def predict(
        self,
        n=1,
        *,
        sampler="dpm++",
        steps=None,
        eta=0.0,
        guidance=None,
        seed=0,
        first=0,
        batch_size=None,
        tile=None,
        strategy="auto",
        verbose=False,
    ):
        """Generate images.

        Sample ``i`` depends on ``(seed, i)`` alone, not on the batch it is in.

        Parameters
        ----------
        n : int
            Number of images.
        sampler : {"ddpm", "ddim", "dpm++"}
            How to walk back from noise.
        steps : int, optional
            Calls of the network for each image. None is for :meth:`default_steps`.
        eta : float
            Share of fresh noise in each step of ``ddim``, from 0 to 1.
        guidance : float, optional
            How far to follow the denoiser away from its guide. 1 is without a guide,
            and faster; the higher, the clearer the images and the less they vary. It
            guides at times from 0.2 to 0.95.
            None is for :attr:`default_guidance`.
        seed : int
            Seed of the noise.
        first : int
            Number of the first sample.
        batch_size : int, optional
            Images that are generated at once; as many as memory surely allows if
            None.
        tile : int, optional
            Voxels along a side of the tiles in which large images are decoded, as
            of :meth:`VQVAE.decode`.
        strategy : str or tf.distribute.Strategy or None
            How the work is spread over devices, as of
            :func:`dipy_ldm.distribution.make_strategy`; ``"auto"`` is for this
            machine alone. The result is the same.
        verbose : bool
            Show a progress bar.

        Returns
        -------
        ndarray
            Images, float32 ``(n, *space, channels)``, in the intensity range of
            the training images.

        Raises
        ------
        InputError
            If the model is not fitted, or an option can't be used.
        """
        self._check_fitted()
        steps = self.default_steps(sampler) if steps is None else steps
        guidance = self.default_guidance if guidance is None else guidance
        step, grid = self.check_sampling(
            n,
            sampler=sampler,
            steps=steps,
            eta=eta,
            guidance=guidance,
            seed=seed,
            first=first,
            batch_size=batch_size,
            tile=tile,
        )
        path = schedules.path(self.schedule, grid(self.schedule, steps))
        denoise = self.denoiser(guidance)

        def generate(numbers):
            noise = samplers.noise_of(seed, numbers, self.latent_shape_)
            latents = samplers.sample(denoise, noise(), path, step, noise)
            return self.vqvae_.decode(self._unscaled(latents), tile=tile)

        numbers = np.arange(first, first + n)
        title = "generate" if verbose else None
        batch_size = self._batch(batch_size)
        strategy = distribution.make_strategy(strategy, alone=True)
        with distribution.spread(strategy):
            return distribution.in_batches(generate, numbers, batch_size, title)

    @property
    def default_guidance(self):
        """The guidance that was measured to be best: 2 for images, 1 for volumes."""
        return 2.0 if self._of_images() and self.guide_ else 1.0

    def default_steps(self, sampler):
        """Return how many steps suffice, as was measured on digits and volumes.

        Parameters
        ----------
        sampler : str
            Name of the sampler.

        Returns
        -------
        int
            10 of ``dpm++``, 20 for volumes; 50 of the others.
        """
        if sampler != "dpm++":
            return 50
        return 10 if self._of_images() else 20

    def default_denoising_steps(self, sampler, strength):
        """Return how many steps suffice to walk back from a strength.

        Parameters
        ----------
        sampler : str
            Name of the sampler.
        strength : float
            As of :meth:`denoise`.

        Returns
        -------
        int
            As many as 20 steps on the whole way from 1 have from there on; with
            ``dpm++`` 1 up to a strength of about 0.1, 3 at 0.2 and 5 at 0.4. More were
            not measured to come nearer to the truth.
        """
        times = samplers.make_sampler(sampler).grid(self.schedule, 20)
        return 1 + int(np.sum(times < strength - 1e-6))

    def denoiser(self, guidance=1.0):
        """Return what samplers walk with.

        Parameters
        ----------
        guidance : float
            As of :meth:`predict`.

        Returns
        -------
        callable
            ``denoise(x, t)``: from latents of unit variance with noise,
            ``(batch, *space, channels)``, and their time to an estimate of the clean
            ones, as of :mod:`dipy_ldm.denoisers`.
        """
        self._check_fitted()
        strong, weak = (
            denoisers.from_network(predict, self.schedule, self.target)
            for predict in (self._predict, self._predict_guide)
        )
        return denoisers.guided(strong, weak, guidance, _GUIDED)

    def check_sampling(
        self,
        n=1,
        *,
        sampler="dpm++",
        steps=20,
        eta=0.0,
        guidance=1.0,
        seed=0,
        first=0,
        batch_size=None,
        tile=None,
    ):
        """Refuse options with which nothing could be generated.

        Parameters
        ----------
        n, sampler, steps, eta, guidance, seed, first, batch_size, tile
            As of :meth:`predict`.

        Returns
        -------
        Sampler
            Step function and grid.

        Raises
        ------
        InputError
            If there is no such sampler, or a number makes no sense.
        """
        check_counts(n=n, steps=steps, batch_size=batch_size, tile=tile)
        at_least("guidance", guidance, 0)
        if guidance != 1 and self.guide_ is None:
            raise InputError(
                f"this model has no guide for a guidance of {guidance}; leave it out, "
                "or train with guide=True."
            )
        whole("first", first, 0)
        whole("seed", seed, 0)
        return samplers.make_sampler(sampler, eta)

    def denoise(
        self,
        images,
        *,
        strength=0.1,
        sampler="dpm++",
        steps=None,
        eta=0.0,
        seed=0,
        first=0,
        batch_size=None,
        tile=None,
    ):
        """Noise the latents of images to a level, and walk back from there.

        The more noise, the more is made up anew; after :footcite:p:`Meng2022`. There
        is no guidance: what is wanted is the likely image, not a clear one.

        Parameters
        ----------
        images : array_like
            Images, ``(n, *space, channels)``, of the shape of the training images.
        strength : float
            Time in [0, 1] to which the latents are noised. At 0 the result is the
            autoencoder's reconstruction, at 1 nothing of the image is left.
        sampler : {"ddpm", "ddim", "dpm++"}
            How to walk back.
        steps : int, optional
            Calls of the network on the way from ``strength`` to clean latents. None is
            for :meth:`default_denoising_steps`: one at the default strength.
        eta : float
            Share of fresh noise in each step of ``ddim``, from 0 to 1.
        seed : int
            Seed of the noise.
        first : int
            Number of the first image's noise; others give other results.
        batch_size : int, optional
            Images that are denoised at once; as many as memory surely allows if
            None.
        tile : int, optional
            Voxels along a side of the tiles in which large images are decoded, as
            of :meth:`VQVAE.decode`.

        Returns
        -------
        ndarray
            Images, float32, of the shape of ``images``.

        Raises
        ------
        InputError
            If the model is not fitted, or an argument can't be used.

        References
        ----------
        .. footbibliography::
        """
        self._check_fitted()
        images = self._check_images(images, self.vqvae_)
        check_shares(strength=strength)
        if steps is None:
            steps = self.default_denoising_steps(sampler, strength)
        step, grid = self.check_sampling(
            sampler=sampler,
            steps=steps,
            eta=eta,
            seed=seed,
            first=first,
            batch_size=batch_size,
            tile=tile,
        )
        path = schedules.path(self.schedule, grid(self.schedule, steps, strength))
        alpha, sigma = path[0][1]
        latents = self._scaled(self.vqvae_.encode(images, batch_size=batch_size))
        denoise = self.denoiser()

        def walk(numbers):
            clean = latents[numbers]
            if strength > 0:
                noise = samplers.noise_of(seed, first + numbers, self.latent_shape_)
                x = alpha * clean + sigma * noise()
                clean = samplers.sample(denoise, x, path, step, noise)
            return self.vqvae_.decode(self._unscaled(clean), tile=tile)

        numbers = np.arange(len(images))
        return distribution.in_batches(walk, numbers, self._batch(batch_size))

    def save(self, path, *, half=False):
        """Write the fitted model, with its autoencoder, to one file.

        Parameters
        ----------
        path : str or Path
            File to write.
        half : bool
            Round the weights to 16 bits: half the size, and samples that differ
            by less than can be seen.

        Raises
        ------
        OSError
            If the file can't be written.
        """
        tensors = self.to_tensors()
        if half:
            tensors = {name: _halved(name, t) for name, t in tensors.items()}
        persistence.save(path, "latent_diffusion", tensors, self.to_document())

    @classmethod
    def load(cls, path):
        """Read what :meth:`save` wrote.

        Parameters
        ----------
        path : str or Path
            File to read, or the name of a packaged model: ``"mnist"``.

        Returns
        -------
        LatentDiffusion
            The fitted model.

        Raises
        ------
        InputError
            If the file is not that of a latent diffusion model.
        """
        path = persistence.find(path)
        saved = persistence.load(path, "latent_diffusion", cls._check_saved)
        return cls.from_saved(*saved)

    def to_tensors(self):
        """Name the weights, as they are saved.

        Returns
        -------
        dict of str to ndarray
            Weights of both U-Nets and of the autoencoder.
        """
        self._check_fitted()
        tensors = self.vqvae_.to_tensors()
        for name, network in self._networks():
            tensors |= persistence.weights(network, name)
        return tensors

    def to_document(self):
        """Say all but the weights, as JSON can.

        Returns
        -------
        dict
            Hyper-parameters and what was learnt, with those of the autoencoder.
        """
        self._check_fitted()
        return self.vqvae_.to_document() | {
            "latent_diffusion": self._hyperparameters(),
            "latent_mean": self.latent_mean_.tolist(),
            "latent_scale": self.latent_scale_.tolist(),
            "latent_shape": self.latent_shape_,
            "latent_diffusion_history": self.history_,
            "latent_diffusion_fingerprint": self.fingerprint_,
            "latent_diffusion_precision": self.precision_ and self.precision_._asdict(),
        }

    @classmethod
    def from_saved(cls, tensors, document):
        """Build the fitted model from what was saved.

        Parameters
        ----------
        tensors : dict of str to ndarray
            As of :meth:`to_tensors`.
        document : dict
            As of :meth:`to_document`.

        Returns
        -------
        LatentDiffusion
            The fitted model.
        """
        vqvae = VQVAE.from_saved(tensors, document)
        model = cls(vqvae, **_parameters(document))
        return model._restore(tensors, document, vqvae)

    def _restore(self, tensors, document, vqvae=None):
        """Become what was saved."""
        self._describe(document, vqvae or VQVAE.from_saved(tensors, document))
        self._build()
        for name, network in self._networks():
            persistence.set_weights(network, name, tensors)
        return self

    def _describe(self, document, vqvae):
        """Take all but the weights from what was saved."""
        precision = document.get("latent_diffusion_precision")
        self.vqvae_ = vqvae._as_it_is()
        self.latent_mean_ = np.array(document["latent_mean"], "float32")
        self.latent_scale_ = np.array(document["latent_scale"], "float32")
        self.latent_shape_ = tuple(document["latent_shape"])
        self.history_ = document["latent_diffusion_history"]
        self.fingerprint_ = document["latent_diffusion_fingerprint"]
        self.precision_ = Precision.from_saved(precision)
        return self

    @classmethod
    def _check_saved(cls, document, shapes):
        """Refuse tensors that are not those of the document, before any is read."""
        vqvae = VQVAE(**document["vqvae"])._describe(document)
        wanted = vqvae._saved_shapes(shapes)
        model = cls(vqvae, **_parameters(document))._describe(document, vqvae)
        choose("schedule", model.schedule, schedules.SCHEDULES)
        choose("target", model.target, schedules.TARGETS)
        documents.check_sizes(document["latent_diffusion"], shapes)
        model._check_latents()
        unets = networks.sketched("float32", model._make_unets)
        for name, unet in unets.items():
            wanted |= persistence.shapes(unet, name)
        documents.check_shapes(shapes, wanted)

    def _check_latents(self):
        """Refuse latents that are not those of the autoencoder."""
        shape = self.vqvae_.latent_shape(self.vqvae_.shape_)
        if self.latent_shape_ != shape:
            raise InputError(f"latent_shape must be {shape}, not {self.latent_shape_}")
        for name in ("latent_mean", "latent_scale"):
            if len(getattr(self, f"{name}_")) != shape[-1]:
                raise InputError(f"{name} must have {shape[-1]} numbers")

    def _networks(self):
        both = [("denoiser", self.denoiser_), ("guide", self.guide_)]
        return [(name, network) for name, network in both if network is not None]

    def _hyperparameters(self):
        names = ("blocks", "schedule", "target", "guide", "seed")
        return plain({name: getattr(self, name) for name in names}) | {
            "widths": plain(np.atleast_1d(self.widths)),
            "attention": self.attention
            if self.attention is None
            else [bool(level) for level in self.attention],
        }

    def __sklearn_clone__(self):
        """Clone it with the autoencoder as it is: nothing could be fitted without."""
        params = self.get_params(deep=False)
        vqvae = params.pop("vqvae")
        return type(self)(vqvae, **copy.deepcopy(params))

    def check(self, shape, **training: Unpack[Options]):
        """Refuse a fit that can't be done, or would not fit into the memory.

        The autoencoder need not be fitted yet.

        Parameters
        ----------
        shape : tuple of int
            Shape of all images, ``(n, *space, channels)``.
        **training
            As of :meth:`fit`.

        Raises
        ------
        InputError
            If a name is unknown (the sentence lists the known ones), a number makes
            no sense, or the memory is too small.
        """
        self._check(shape, _training(training).settled(len(shape) - 2))

    def _check(self, shape, training):
        check_seed(self.seed)
        check_sizes(widths=self.widths, blocks=self.blocks)
        choose("schedule", self.schedule, schedules.SCHEDULES)
        choose("target", self.target, schedules.TARGETS)
        training.check(shape[0])
        latent_shape = self.vqvae.latent_shape(shape[1:])
        build = partial(self._make_unet, self.widths, latent_shape, training.remat)
        denoiser = networks.sketched(training.precision.name, build)
        share, strategy = training.share, training.strategy
        check_memory("the denoiser", [denoiser], share, strategy=strategy)

    def _batch(self, batch_size):
        return batch_size or tiles.safe_batch(self.vqvae_.shape_[:-1])

    def _is_fitted(self):
        return hasattr(self, "denoiser_")

    def _check_images(self, images, vqvae):
        """Return images as an array, of the shape that the autoencoder knows."""
        vqvae._check_fitted()
        images = as_array(images)
        if images.shape[1:] != tuple(vqvae.shape_):
            raise InputError(
                f"images must have the shape {vqvae.shape_} of those that the "
                f"autoencoder was fitted to, not {images.shape[1:]}."
            )
        return images

    def _of_images(self):
        """Say whether it is of images, not of volumes."""
        return len(self.latent_shape_) == 3

    def _guide_widths(self):
        return [max(1, width // _GUIDE_WIDTH) for width in np.atleast_1d(self.widths)]

    def _make_unet(self, widths, latent_shape, remat=False):
        widths = plain(np.atleast_1d(widths))
        chosen = self._hyperparameters()
        with networks.seeded(chosen["seed"]):
            return networks.unet(
                latent_shape,
                remat=remat,
                widths=widths,
                blocks=chosen["blocks"],
                attention=chosen["attention"] or [False] * len(widths),
            )

    def _make_unets(self):
        """Build the denoiser and, if there shall be one, its guide."""
        unets = {"denoiser": self._make_unet(self.widths, self.latent_shape_)}
        if self._of_images() if self.guide is None else self.guide:
            unets["guide"] = self._make_unet(self._guide_widths(), self.latent_shape_)
        return unets

    def _build(self):
        """Make the networks that generate, in full precision."""
        with networks.precision("float32"):
            unets = self._make_unets()
        self.denoiser_, self.guide_ = unets["denoiser"], unets.get("guide")
        self._predict = _compiled(self.denoiser_)
        self._predict_guide = self.guide_ and _compiled(self.guide_)

    def _stage(
        self, settings, latents, title, network, widths, training, length, held_out
    ):
        """Describe how one of the two U-Nets is trained."""
        nothing = schedules.loss_of_nothing(self.schedule, self.target)
        return Stage(
            title,
            training,
            length,
            settings,
            build=partial(self._compile, widths, training, length.total),
            batches=partial(self._noised, latents, training.batch_size),
            publish=partial(self._publish, network, held_out),
            lesson=("loss", nothing),
            verdict=partial(_verdict, nothing),
        )

    def _compile(self, widths, training, steps):
        """Make a network that is trained."""
        unet = self._make_unet(widths, self.latent_shape_, training.remat)
        model = distribution.ReplicatedModel(unet.inputs, unet.outputs)
        optimizer = training.optimizer(
            steps,
            weight_decay=1e-4,
            global_clipnorm=1.0,
            use_ema=True,
            # A short training must not average over what it began with.
            ema_momentum=max(0.0, min(0.999, 1 - 10 / steps)),
        )
        model.compile(optimizer, loss="mse", auto_scale_loss=False)
        return model

    def _publish(self, network, held_out, model, number, last):
        """After a round: take the averaged weights, and validate with them."""
        self._take_weights(network, model)
        if held_out is None:
            return {}
        (x, times), target = held_out

        def predict(numbers):
            return self._predict(x[numbers], times[numbers])

        predicted = distribution.in_batches(predict, np.arange(len(x)), 256)
        return {"val_loss": float(np.mean((predicted - target) ** 2))}

    def _take_weights(self, network, model):
        """Copy the averages of the trained weights into a network that generates."""
        network.set_weights(model.optimizer.averages())

    def _held_out(self, images):
        """Noise the latents of images, alike for every round so that losses compare."""
        if images is None:
            return None
        latents = self._scaled(self.vqvae_.encode(images))
        batch = self._noised(latents, len(latents), shift=1)
        return next(batch.as_numpy_iterator())

    def _noised(self, latents, batch_size, share=None, first_step=0, shift=0):
        """Draw what the denoiser learns from; other noise with another shift."""
        return noised(
            latents,
            batch_size,
            schedule=self.schedule,
            target=self.target,
            seed=self.seed + shift,
            first_step=first_step,
            share=share,
        )

    def _learn_scale(self, latents):
        """Learn what brings each channel to mean 0 and variance 1."""
        axes = tuple(range(latents.ndim - 1))
        self.latent_mean_ = latents.mean(axes)
        self.latent_scale_ = np.maximum(latents.std(axes), 1e-6)
        if self.latent_scale_.max() <= 1e-6:
            raise InputError(
                "all latents of the autoencoder are the same: it has learnt nothing of "
                "the images; train it anew, with a lower learning rate."
            )
        self.latent_shape_ = latents.shape[1:]

    def _scaled(self, latents):
        """Bring each channel to mean 0 and variance 1."""
        return (latents - self.latent_mean_) / self.latent_scale_

    def _unscaled(self, latents):
        return latents * self.latent_scale_ + self.latent_mean_


def _halved(name, weights):
    """Round weights to 16 bits, which reach as far as 65504."""
    if np.abs(weights).max() > np.finfo("float16").max:
        raise InputError(
            f"the weights {name} are too large for 16 bits; save with half=False."
        )
    return weights.astype("float16")


def _training(options):
    """Collect the options of the training, with the stage's own defaults."""
    return Training(**{"epochs": 10} | scalars(options))


def _parameters(document):
    """Return the hyper-parameters that a document tells of."""
    # Earlier versions trained a guide in any case.
    return {"guide": True} | document["latent_diffusion"]


def _of_guide(checkpoint):
    """Name the guide's checkpoint after the denoiser's, if there is one."""
    return checkpoint and f"{checkpoint}.guide"


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


def _for_guide(training):
    """Say how the guide is trained, given how the denoiser is."""
    path = _of_guide(training.checkpoint)
    return training._replace(checkpoint=path, callbacks=())


def _guide_steps(steps):
    """Say for how many steps the guide is trained, by those of the denoiser."""
    return min(steps, max(steps // _GUIDE_SHARE, _GUIDE_STEPS))


def _compiled(unet):
    return distribution.compiled(lambda x, times: unet([x, times]), unet.inputs)
