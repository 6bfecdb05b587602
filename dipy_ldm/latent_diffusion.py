"""Latent diffusion: new images from noise, by way of the autoencoder's latents."""

import keras
import numpy as np

from dipy_ldm import (
    denoisers,
    distribution,
    networks,
    persistence,
    samplers,
    schedules,
    tiles,
    training,
)
from dipy_ldm.data.batches import Share, noised
from dipy_ldm.precision import Precision, settle, tell
from dipy_ldm.validation import InputError, at_least, choose
from dipy_ldm.vqvae import VQVAE

# The guide is to be worse than the denoiser in the same way: narrower, and trained
# for a sixteenth of the steps. With fewer than these it would know nothing at all.
_GUIDE_WIDTH = 4
_GUIDE_SHARE = 16
_GUIDE_STEPS = 300
# Times at which it guides.
_GUIDED = (0.0, 1.0)


class LatentDiffusion:
    """Diffusion model of the latents of an autoencoder :footcite:p:`Rombach2022`.

    A U-Net learns to take noise away from the latents; sampling starts from pure
    noise, and the decoder turns what remains into images. A second, smaller U-Net
    that is trained for a short time guides it: where the two differ, the larger one
    is followed further than it goes :footcite:p:`Karras2024`.

    Parameters
    ----------
    vqvae : VQVAE
        A fitted autoencoder.
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
    seed : int
        Seed of everything random in training.

    Attributes
    ----------
    denoiser_, guide_ : keras.Model
        The U-Nets, with averaged weights.
    latent_mean_, latent_scale_ : ndarray
        Mean and standard deviation of each channel of the latents.
    history_ : dict of str to list
        Figures of each epoch: ``loss``, and ``val_loss`` with averaged weights.
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
        seed=0,
    ):
        self.vqvae = vqvae
        self.widths = widths
        self.blocks = blocks
        self.attention = attention
        self.schedule = schedule
        self.target = target
        self.seed = seed

    def fit(
        self,
        images,
        *,
        validation_data=None,
        epochs=10,
        batch_size=64,
        accumulate=1,
        learning_rate=2e-3,
        precision="auto",
        remat=False,
        strategy="auto",
        checkpoint=None,
        checkpoint_steps=1000,
        callbacks=(),
        verbose=True,
    ):
        """Learn to take noise from the latents of images.

        Parameters
        ----------
        images : array_like
            Images, ``(n, *space, channels)``, of the shape of those that the
            autoencoder was fitted to.
        validation_data : array_like, optional
            Images on which the loss is measured after each epoch.
        epochs : int
            Passes over the images.
        batch_size : int
            Latents in a batch.
        accumulate : int
            Batches whose gradients are averaged for one step of the weights: as one
            batch that many times larger, in the memory of one.
        learning_rate : float
            Highest learning rate; it warms up and falls to zero.
        precision : {"auto", "float32", "bfloat16", "float16"}
            Precision of the computations in training; ``"auto"`` is for the fastest
            that the devices compute well, or that of the checkpoint. float16 is for
            GPUs alone.
        remat : bool
            Compute parts of the network twice instead of keeping them: less memory,
            above all of the denoiser, for about a third more time.
        strategy : str or tf.distribute.Strategy or None
            How training is spread over devices, as of
            :func:`dipy_ldm.distribution.make_strategy`. The result is the same.
        checkpoint : str or Path, optional
            File written after each epoch; if it is there, training goes on from
            it. SIGTERM then ends the training with a checkpoint and status 143. The
            guide, which is trained first, has another of this name and ``.guide``.
        checkpoint_steps : int
            Steps after which it is written within an epoch.
        callbacks : sequence of callable
            Called as ``callback(self)`` after each epoch; ``history_`` is up to
            date then, and ``predict`` works.
        verbose : bool
            Show a progress bar.

        Returns
        -------
        LatentDiffusion
            The estimator itself.

        Raises
        ------
        InputError
            If the images or an option can't be used.
        """
        images = self._check_images(images)
        strategy = distribution.make_strategy(strategy)
        of_guide = checkpoint and f"{checkpoint}.guide"
        began = training.began_in(checkpoint, of_guide)
        chosen = settle(precision, images.ndim - 2, strategy, began)
        self.check(
            images.shape,
            epochs=epochs,
            batch_size=batch_size,
            accumulate=accumulate,
            learning_rate=learning_rate,
            precision=precision,
            remat=remat,
            strategy=strategy,
            checkpoint_steps=checkpoint_steps,
        )
        self.precision_ = tell(chosen)
        self.fingerprint_ = training.survey(images).fingerprint
        settings = self._hyperparameters() | {
            "epochs": epochs,
            "batch_size": batch_size,
            "accumulate": accumulate,
            "learning_rate": learning_rate,
            "precision": chosen.name,
            "images": self.fingerprint_,
            "vqvae": training.survey(self.vqvae.codebook_).fingerprint,
        }
        options = chosen.name, remat, learning_rate, accumulate, strategy
        facts = training.facts(settings, checkpoint, checkpoint_steps, validation_data)
        with distribution.spread(strategy):
            distribution.agree(facts)
            latents = self.vqvae.encode(images)
            self._learn_scale(latents)
            self._build()
            steps = len(images) // batch_size

            def train(title, network, widths, path, validation=None, **fit):
                total = fit["epochs"] * fit["steps_per_epoch"]
                model = self._compile(widths, total, *options)
                record = training.Record(path, settings, checkpoint_steps)
                record.restore(model)
                data = self._noised(latents, batch_size, strategy, record.done)
                after = _AfterEpoch(self, model, network, validation)
                fit |= {"title": title, "verbose": verbose}
                training.fit(self, model, data, after, record, **fit)
                # Keras puts the averaged weights into the model when fit ends.
                network.set_weights(model.get_weights())

            train(
                "guide",
                self.guide_,
                self._guide_widths(),
                of_guide,
                callbacks=(),
                epochs=1,
                steps_per_epoch=_guide_steps(steps * epochs),
            )
            train(
                "diffusion",
                self.denoiser_,
                self.widths,
                checkpoint,
                validation_data,
                callbacks=callbacks,
                epochs=epochs,
                steps_per_epoch=steps,
            )
        return self

    def predict(
        self,
        n=1,
        *,
        sampler="dpm++",
        steps=20,
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
        steps : int
            Calls of the network for each image.
        eta : float
            Share of fresh noise in each step of ``ddim``, from 0 to 1.
        guidance : float, optional
            How far to follow the denoiser away from its guide. 1 is without a guide,
            and faster; the higher, the clearer the images and the less they vary.
            None is for :attr:`usual_guidance`.
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
        guidance = self.usual_guidance if guidance is None else guidance
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
            return self.vqvae.decode(self._unscaled(latents), tile=tile)

        numbers = np.arange(first, first + n)
        title = "generate" if verbose else None
        batch_size = self._batch(batch_size)
        strategy = distribution.make_strategy(strategy, alone=True)
        with distribution.spread(strategy):
            return distribution.in_batches(generate, numbers, batch_size, title)

    @property
    def usual_guidance(self):
        """The guidance that was measured to be best: 2 for images, 1 for volumes."""
        return 2.0 if len(self.latent_shape_) == 3 else 1.0

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
        least_one = {"n": n, "steps": steps, "batch_size": batch_size, "tile": tile}
        for name, value in least_one.items():
            if value is not None:
                at_least(name, value, 1)
        at_least("guidance", guidance, 0)
        at_least("first", first, 0)
        at_least("seed", seed, 0)
        return samplers.make_sampler(sampler, eta)

    def denoise(
        self,
        images,
        *,
        strength=0.1,
        sampler="dpm++",
        steps=20,
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
        steps : int
            Calls of the network on the whole way from time 1; the walk takes those
            that lie below ``strength``.
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
        images = self._check_images(images)
        if not 0 <= strength <= 1:
            raise InputError(f"strength must lie between 0 and 1, not {strength}.")
        step, grid = self.check_sampling(
            sampler=sampler,
            steps=steps,
            eta=eta,
            seed=seed,
            first=first,
            batch_size=batch_size,
            tile=tile,
        )
        times = grid(self.schedule, steps)
        times = np.concatenate([[strength], times[times < strength]])
        path = schedules.path(self.schedule, times)
        alpha, sigma = path[0][1]
        latents = self._scaled(self.vqvae.encode(images, batch_size=batch_size))
        denoise = self.denoiser()

        def walk(numbers):
            clean = latents[numbers]
            if strength > 0:
                noise = samplers.noise_of(seed, first + numbers, self.latent_shape_)
                x = alpha * clean + sigma * noise()
                clean = samplers.sample(denoise, x, path, step, noise)
            return self.vqvae.decode(self._unscaled(clean), tile=tile)

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
        self._check_fitted()
        tensors = self.vqvae.to_tensors()
        for name, network in self._networks():
            tensors |= persistence.weights(network, name)
        if half:
            tensors = {name: t.astype("float16") for name, t in tensors.items()}
        document = self.vqvae.to_document() | {
            "latent_diffusion": self._hyperparameters(),
            "latent_mean": self.latent_mean_.tolist(),
            "latent_scale": self.latent_scale_.tolist(),
            "latent_shape": self.latent_shape_,
            "latent_diffusion_history": self.history_,
            "latent_diffusion_fingerprint": self.fingerprint_,
            "latent_diffusion_precision": self.precision_ and self.precision_._asdict(),
        }
        persistence.save(path, "latent_diffusion", tensors, document)

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
        tensors, document = persistence.load(path, "latent_diffusion")
        vqvae = VQVAE.from_saved(tensors, document)
        model = cls(vqvae, **document["latent_diffusion"])
        model.latent_mean_ = np.array(document["latent_mean"], "float32")
        model.latent_scale_ = np.array(document["latent_scale"], "float32")
        model.latent_shape_ = tuple(document["latent_shape"])
        model.history_ = document["latent_diffusion_history"]
        model.fingerprint_ = document["latent_diffusion_fingerprint"]
        precision = document.get("latent_diffusion_precision")
        model.precision_ = Precision.from_saved(precision)
        model._build()
        for name, network in model._networks():
            persistence.set_weights(network, name, tensors)
        return model

    def _networks(self):
        return [("denoiser", self.denoiser_), ("guide", self.guide_)]

    def _hyperparameters(self):
        return {
            "widths": list(self.widths),
            "blocks": self.blocks,
            "attention": self.attention and list(self.attention),
            "schedule": self.schedule,
            "target": self.target,
            "seed": self.seed,
        }

    def check(
        self,
        shape,
        *,
        epochs=10,
        batch_size=64,
        accumulate=1,
        learning_rate=2e-3,
        precision="auto",
        remat=False,
        strategy=None,
        checkpoint_steps=1000,
    ):
        """Refuse a fit that can't be done, or would not fit into the memory.

        The autoencoder need not be fitted yet.

        Parameters
        ----------
        shape : tuple of int
            Shape of all images, ``(n, *space, channels)``.
        epochs, batch_size, accumulate, learning_rate, precision, remat, strategy, \
        checkpoint_steps
            As of :meth:`fit`.

        Raises
        ------
        InputError
            If a name is unknown (the sentence lists the known ones), a number makes
            no sense, or the memory is too small.
        """
        training.check_sizes(self.seed, widths=self.widths, blocks=self.blocks)
        choose("schedule", self.schedule, schedules.SCHEDULES)
        choose("target", self.target, schedules.TARGETS)
        training.check_options(
            shape[0],
            epochs,
            batch_size,
            accumulate,
            learning_rate,
            checkpoint_steps,
        )
        each = distribution.share_of(batch_size, strategy)
        chosen = settle(precision, len(shape) - 2, strategy)
        with networks.precision(chosen.name), networks.sketched():
            latent_shape = self.vqvae.latent_shape(shape[1:])
            denoiser = self._make_unet(self.widths, latent_shape, remat)
        training.check_memory("the denoiser", [denoiser], each)

    def _batch(self, batch_size):
        return batch_size or tiles.safe_batch(self.vqvae.shape_[:-1])

    def _check_fitted(self):
        if not hasattr(self, "denoiser_"):
            raise InputError(
                "this LatentDiffusion is not fitted; call fit(images) or "
                "LatentDiffusion.load(path) first."
            )

    def _check_images(self, images):
        """Return images as an array, of the shape that the autoencoder knows."""
        self.vqvae._check_fitted()
        images = training.as_array(images)
        if images.shape[1:] != tuple(self.vqvae.shape_):
            raise InputError(
                f"images must have the shape {self.vqvae.shape_} of those that the "
                f"autoencoder was fitted to, not {images.shape[1:]}."
            )
        return images

    def _guide_widths(self):
        return [max(1, width // _GUIDE_WIDTH) for width in self.widths]

    def _make_unet(self, widths, latent_shape, remat=False):
        keras.utils.set_random_seed(self.seed)
        return networks.unet(
            latent_shape,
            remat=remat,
            widths=widths,
            blocks=self.blocks,
            attention=self.attention or [False] * len(widths),
        )

    def _build(self):
        """Make the networks that generate, in full precision."""
        with networks.precision("float32"):
            self.denoiser_ = self._make_unet(self.widths, self.latent_shape_)
            self.guide_ = self._make_unet(self._guide_widths(), self.latent_shape_)
        self._predict = _compiled(self.denoiser_)
        self._predict_guide = _compiled(self.guide_)

    def _compile(
        self, widths, steps, precision, remat, learning_rate, accumulate, strategy
    ):
        """Make a network that is trained."""
        with distribution.scope(strategy), networks.precision(precision):
            unet = self._make_unet(widths, self.latent_shape_, remat)
            optimizer = training.make_optimizer(
                learning_rate,
                steps,
                precision,
                accumulate,
                weight_decay=1e-4,
                global_clipnorm=1.0,
                use_ema=True,
                # A short training must not average over what it began with.
                ema_momentum=max(0.0, min(0.999, 1 - 10 / steps)),
            )
            model = distribution.ReplicatedModel(unet.inputs, unet.outputs)
            model.compile(optimizer, loss="mse", auto_scale_loss=False)
        return model

    def _noised(self, latents, batch_size, strategy=None, first_step=0, shift=0):
        """Draw what the denoiser learns from; other noise with another shift."""
        scaled = self._scaled(latents)

        def make(*share):
            return noised(
                scaled,
                batch_size,
                schedule=self.schedule,
                target=self.target,
                seed=self.seed + shift,
                first_step=first_step,
                share=Share(*share),
            )

        return distribution.shared(make, strategy)

    def _learn_scale(self, latents):
        """Learn what brings each channel to mean 0 and variance 1."""
        axes = tuple(range(latents.ndim - 1))
        self.latent_mean_ = latents.mean(axes)
        self.latent_scale_ = np.maximum(latents.std(axes), 1e-6)
        self.latent_shape_ = latents.shape[1:]

    def _scaled(self, latents):
        """Bring each channel to mean 0 and variance 1."""
        return (latents - self.latent_mean_) / self.latent_scale_

    def _unscaled(self, latents):
        return latents * self.latent_scale_ + self.latent_mean_


def _guide_steps(steps):
    """Say for how many steps the guide is trained, by those of the denoiser."""
    return min(steps, max(steps // _GUIDE_SHARE, _GUIDE_STEPS))


def _compiled(unet):
    return distribution.compiled(lambda x, times: unet([x, times]), unet.inputs)


class _AfterEpoch(keras.callbacks.Callback):
    """After each epoch: take the averaged weights, and validate with them."""

    def __init__(self, diffusion, model, network, validation):
        super().__init__()
        self.diffusion = diffusion
        self.trained = model
        self.network = network
        self.validation = None
        if validation is not None:
            latents = diffusion.vqvae.encode(diffusion._check_images(validation))
            # The same times and noise after every epoch, so that losses compare.
            batch = diffusion._noised(latents, len(latents), shift=1)
            (x, times), target = next(batch.as_numpy_iterator())
            self.validation = x, times, target

    def on_epoch_end(self, epoch, logs=None):
        self.network.set_weights(self.trained.optimizer.averages())
        if self.validation is not None:
            logs["val_loss"] = self._loss(*self.validation)

    def _loss(self, x, times, target):
        def predict(numbers):
            return self.diffusion._predict(x[numbers], times[numbers])

        predicted = distribution.in_batches(predict, np.arange(len(x)), 256)
        return float(np.mean((predicted - target) ** 2))
