"""The autoencoder: images to latents and back, through a codebook."""

from functools import partial
import math
from typing import Unpack

from keras import ops
import numpy as np

from dipy_ldm import distribution, documents, losses, networks, persistence, tiles
from dipy_ldm.bottlenecks import BOTTLENECKS
from dipy_ldm.data.arrays import as_array, check_finite, learnable, survey
from dipy_ldm.data.batches import batches
from dipy_ldm.data.windows import read_whole, read_windows
from dipy_ldm.estimators import Estimator
from dipy_ldm.precision import Precision, tell
from dipy_ldm.training import Options, Stage, Training, train
from dipy_ldm.training.memory import check_memory
from dipy_ldm.validation import (
    InputError,
    check_affine,
    check_counts,
    check_seed,
    check_shares,
    check_sizes,
    choose,
    plain,
    scalars,
)

# Pieces of images that are encoded at least for codes to be revived.
_PIECES = 16

# With less perplexity all latents have one code, and nearly so with little more.
_PERPLEXITY = 1.5


class VQVAE(Estimator):
    """Vector-quantised autoencoder :footcite:p:`vandenOord2017`.

    Residual convolutional encoder and decoder for images of one, two or three
    dimensions and any size. The codebook starts from the encoded data (k-means),
    and codes that are no longer used are revived after every round.

    Parameters
    ----------
    widths : sequence of int
        Channels of each level. Each level halves the resolution, so the latents
        are ``2 ** len(widths)`` times smaller per side.
    blocks : int
        Residual blocks of each level.
    n_codes : int
        Number of codes.
    code_dim : int
        Channels of the latents.
    commitment : float
        Weight of the loss that keeps the latents near their codes.
    loss : {"squared", "absolute", "spectral", "structural"}
        How reconstructions are compared with images; see :mod:`dipy_ldm.losses`.
    bottleneck : {"codebook"}
        What quantises the latents; see :mod:`dipy_ldm.bottlenecks`.
    seed : int
        Seed of everything random.

    Attributes
    ----------
    encoder_, decoder_ : keras.Model
        The networks.
    codebook_ : ndarray
        The codes, ``(n_codes, code_dim)``.
    intensity_ : tuple of float
        Lowest and highest value of the training images.
    affine_ : ndarray or None
        Where the voxels of the training images are, ``(4, 4)``, in millimetres.
    precision_ : Precision or None
        What training computed in, and why; None if the file does not say.
    history_ : dict of str to list
        Figures of each round (an epoch, or several short ones): ``step``, ``epoch``,
        ``loss``, ``mse``, ``perplexity``, ``usage``, ``revived``, and ``val_mse``.
    fingerprint_ : str
        Hash of the training images.

    References
    ----------
    .. footbibliography::

    Examples
    --------
    >>> from dipy_ldm import VQVAE
    >>> from dipy_ldm.data import load_mnist
    >>> digits, _ = load_mnist("train")
    >>> vqvae = VQVAE().fit(digits, epochs=2)  # doctest: +SKIP
    >>> reconstructed = vqvae.predict(digits[:8])  # doctest: +SKIP
    """

    def __init__(
        self,
        *,
        widths=(32, 64),
        blocks=1,
        n_codes=1024,
        code_dim=3,
        commitment=0.25,
        loss="squared",
        bottleneck="codebook",
        seed=0,
    ):
        self.widths = widths
        self.blocks = blocks
        self.n_codes = n_codes
        self.code_dim = code_dim
        self.commitment = commitment
        self.loss = loss
        self.bottleneck = bottleneck
        self.seed = seed

    @property
    def factor(self):
        """How many times smaller than images latents are, per side."""
        return 2 ** np.size(self.widths)

    def latent_shape(self, shape):
        """Say what shape the latents have.

        Parameters
        ----------
        shape : tuple of int
            Shape of an image, ``(*space, channels)``.

        Returns
        -------
        tuple of int
            Shape of its latents, ``(*ceil(space / factor), code_dim)``.
        """
        window = self._window(shape[:-1])
        return (*(size // self.factor for size in window), self.code_dim)

    def fit(
        self,
        images,
        *,
        validation_data=None,
        affine=None,
        masks=None,
        background=1.0,
        patch=None,
        augment=None,
        **training: Unpack[Options],
    ):
        """Learn to reconstruct images.

        Parameters
        ----------
        images : array_like
            Images, ``(n, *space, channels)``, of any range. A mapped file is read
            as it is needed and may be larger than the memory.
        validation_data : array_like, optional
            Images that are reconstructed after each round, not learnt from; no more of
            them than are done in a tenth of the time.
        affine : array_like, optional
            Where the voxels are, ``(4, 4)``, in millimetres; kept with the model.
        masks : array_like, optional
            What matters on the images, ``(n, *space)``, if ``background`` is not 1;
            where they are brighter than the darkest voxel of all, if None.
        background : float
            Weight in the loss of a voxel outside of the mask; inside it is 1.
        patch : int or sequence of int, optional
            Voxels along each side of the piece that is drawn of an image, from a
            random place; the whole side if there are no more. The whole image if
            None.
        augment : Augmentation, optional
            How images are changed before they are seen; not at all if None.
        **training
            Options of :class:`dipy_ldm.training.Training`; ``epochs`` is 5 if left out.

        Returns
        -------
        VQVAE
            The estimator itself.

        Raises
        ------
        InputError
            If the images or an option can't be used, or nothing was learnt: if
            reconstructions are no better than the mean of the images, or all latents
            have one code. A training of less than 100 steps is not judged but by a
            warning.
        """
        images = as_array(images)
        if validation_data is not None:
            validation_data = _check_validation(validation_data, images.shape)
        affine = None if affine is None else check_affine(affine)
        masks = _check_masks(masks, background, images.shape[:-1])
        training = _training(training).settled(images.ndim - 2)
        self._check(images.shape, patch, training)
        found = learnable(images)
        # Only now: what is refused leaves an estimator as it was.
        self.precision_ = tell(training.precision)
        self.shape_ = images.shape[1:]
        self.affine_ = affine
        self.intensity_ = found.low, found.high
        self.fingerprint_ = found.fingerprint
        size = self._window(images.shape[1:-1], patch)
        learnt = {
            "size": size,
            "background": background,
            "augment": augment,
        }
        settings = self._hyperparameters() | {
            **plain(learnt),
            "images": self.fingerprint_,
            "masks": None if masks is None else survey(masks).fingerprint,
            "the shape of the validation data": np.shape(validation_data),
        }
        length = training.length(len(images))
        with distribution.spread(training.strategy):
            self._build()
            learnt |= {"batch_size": training.batch_size, "masks": masks}
            draw = partial(self._some_vectors, images, size)
            few = partial(_affordable, size=size, training=training, length=length)
            if validation_data is not None:
                validation_data = few(validation_data)
            stage = Stage(
                "autoencoder",
                training,
                length,
                settings,
                build=partial(self._compile, size, found, training, length),
                batches=partial(self._batches, images, learnt),
                begin=partial(self._start, draw),
                publish=partial(self._publish, draw, validation_data),
                lesson=("mse", found.variance / found.scale**2),
                verdict=partial(self._verdict, found, few(images)),
            )
            self._take_weights(train(self, stage))
        return self

    def encode(self, images, *, batch_size=None):
        """Map images to latents, before quantisation.

        Parameters
        ----------
        images : array_like
            Images, ``(n, *space, channels)``.
        batch_size : int, optional
            Images that are encoded at once; as many as memory surely allows if
            None.

        Returns
        -------
        ndarray
            Latents, float32 ``(n, *ceil(space / factor), code_dim)``.

        Raises
        ------
        InputError
            If the images or the option can't be used.
        """
        self._check_fitted()
        check_counts(batch_size=batch_size)
        images = self._check_images(images)

        def encode(numbers):
            windows = self._to_network(images[numbers])
            return self._encode(check_finite(windows, numbers))

        return distribution.in_batches(
            encode,
            np.arange(len(images)),
            batch_size or tiles.safe_batch(images.shape[1:-1]),
        )

    def decode(self, latents, *, space=None, batch_size=None, tile=None):
        """Quantise latents and map them to images.

        Large images are decoded tile by tile. Tiles overlap by all that a voxel
        depends on, so that the result is the same.

        Parameters
        ----------
        latents : ndarray
            Latents, ``(n, *space / factor, code_dim)``.
        space : tuple of int, optional
            Size of the images, where it is not that of the training images.
        batch_size : int, optional
            Latents that are decoded at once; as many as memory surely allows if
            None.
        tile : int, optional
            Voxels along a side of a tile, without the overlap; chosen by the size
            of the images if None.

        Returns
        -------
        ndarray
            Images, float32 ``(n, *space, channels)``, in the intensity range of
            the training images.

        Raises
        ------
        InputError
            If the latents or an option can't be used.
        """
        self._check_fitted()
        check_counts(batch_size=batch_size, tile=tile)
        space = self.shape_[:-1] if space is None else tuple(space)
        latents = self._check_latents(latents, space)
        reach = networks.reach(np.atleast_1d(self.widths), self.blocks)
        tile = tile or tiles.safe_side(len(space)) - 2 * reach * self.factor
        cut = tuple(map(slice, space))
        low, high = self.intensity_

        def decode(piece):
            images = tiles.in_tiles(
                self._decode,
                piece,
                tile=max(1, tile // self.factor),
                margin=reach,
                factor=self.factor,
            )[(slice(None), *cut)]
            return np.clip(images, 0, 1) * np.float32(high - low) + np.float32(low)

        batch_size = batch_size or tiles.safe_batch(space)
        return distribution.in_batches(decode, latents, batch_size)

    def predict(self, images, *, batch_size=None, tile=None):
        """Reconstruct images.

        Parameters
        ----------
        images : array_like
            Images, ``(n, *space, channels)``.
        batch_size : int, optional
            Images that are reconstructed at once; as many as memory surely allows
            if None.
        tile : int, optional
            Voxels along a side of a tile, as of :meth:`decode`.

        Returns
        -------
        ndarray
            Reconstructions, float32, of the shape of ``images``.

        Raises
        ------
        InputError
            If the images or an option can't be used.
        """
        check_counts(batch_size=batch_size, tile=tile)
        latents = self.encode(images, batch_size=batch_size)
        space = np.shape(images)[1:-1]
        return self.decode(latents, space=space, batch_size=batch_size, tile=tile)

    def codes(self, latents):
        """Tell which code each latent vector is nearest to.

        Parameters
        ----------
        latents : ndarray
            Latents, ``(n, *space, code_dim)``.

        Returns
        -------
        ndarray of int
            Indices of codes, ``(n, *space)``.

        Raises
        ------
        InputError
            If the latents have other channels than codes.
        """
        self._check_fitted()
        self._check_channels("latents", latents, self.code_dim)
        return ops.convert_to_numpy(self.quantizer_.nearest(latents))

    def save(self, path):
        """Write the fitted autoencoder to one file.

        Parameters
        ----------
        path : str or Path
            File to write.
        """
        persistence.save(path, "vqvae", self.to_tensors(), self.to_document())

    @classmethod
    def load(cls, path):
        """Read what :meth:`save` wrote.

        Parameters
        ----------
        path : str or Path
            File to read.

        Returns
        -------
        VQVAE
            The fitted autoencoder.

        Raises
        ------
        InputError
            If the file is not that of an autoencoder.
        """
        return cls.from_saved(*persistence.load(path, "vqvae", cls._check_saved))

    def to_tensors(self):
        """Name the weights, as they are saved.

        Returns
        -------
        dict of str to ndarray
            Weights of encoder, codebook and decoder.
        """
        self._check_fitted()
        tensors = {"codebook": self.codebook_}
        for name, network in self._networks():
            tensors |= persistence.weights(network, name)
        return tensors

    def to_document(self):
        """Say all but the weights, as JSON can.

        Returns
        -------
        dict
            Hyper-parameters and what was learnt of the training images.
        """
        self._check_fitted()
        return {
            "vqvae": self._hyperparameters(),
            "shape": self.shape_,
            "intensity": self.intensity_,
            "affine": None if self.affine_ is None else self.affine_.tolist(),
            "history": self.history_,
            "fingerprint": self.fingerprint_,
            "precision": self.precision_ and self.precision_._asdict(),
        }

    @classmethod
    def from_saved(cls, tensors, document):
        """Build the fitted autoencoder from what was saved.

        Parameters
        ----------
        tensors : dict of str to ndarray
            As of :meth:`to_tensors`.
        document : dict
            As of :meth:`to_document`.

        Returns
        -------
        VQVAE
            The fitted autoencoder.
        """
        return cls(**document["vqvae"])._restore(tensors, document)

    def _restore(self, tensors, document):
        """Become what was saved."""
        self._describe(document)
        self._build()
        self.quantizer_.codebook.assign(tensors["codebook"])
        for name, network in self._networks():
            persistence.set_weights(network, name, tensors)
        return self

    def _describe(self, document):
        """Take all but the weights from what was saved."""
        affine, precision = document["affine"], document.get("precision")
        self.shape_ = tuple(document["shape"])
        self.intensity_ = tuple(document["intensity"])
        self.affine_ = None if affine is None else np.array(affine, "float64")
        self.history_ = document["history"]
        self.fingerprint_ = document["fingerprint"]
        self.precision_ = Precision.from_saved(precision)
        return self

    @classmethod
    def _check_saved(cls, document, shapes):
        """Refuse tensors that are not those of the document, before any is read."""
        wanted = cls(**document["vqvae"])._describe(document)._saved_shapes(shapes)
        documents.check_shapes(shapes, wanted)

    def _saved_shapes(self, found):
        """Say what shapes the weights have, unless they would be more than there are.

        No network is sketched that has far more of them.
        """
        choose("bottleneck", self.bottleneck, BOTTLENECKS)
        documents.check_sizes(self._hyperparameters(), found)
        build = partial(self._make_networks, self._any_size(), self.shape_[-1], False)
        encoder, decoder = networks.sketched("float32", build)
        return {
            "codebook": (self.n_codes, self.code_dim),
            **persistence.shapes(encoder, "encoder"),
            **persistence.shapes(decoder, "decoder"),
        }

    @property
    def codebook_(self):
        """The codes, ``(n_codes, code_dim)``."""
        self._check_fitted()
        return ops.convert_to_numpy(self.quantizer_.codebook)

    def _hyperparameters(self):
        params = plain(self.get_params(deep=False))
        return params | {"widths": plain(np.atleast_1d(self.widths))}

    def check(self, shape, *, patch=None, **training: Unpack[Options]):
        """Refuse a fit that can't be done, or would not fit into the memory.

        Parameters
        ----------
        shape : tuple of int
            Shape of all images, ``(n, *space, channels)``.
        patch, **training
            As of :meth:`fit`.

        Raises
        ------
        InputError
            If the memory is too small, there is no such loss or precision, or a
            number makes no sense.
        """
        self._check(shape, patch, _training(training).settled(len(shape) - 2))

    def _check(self, shape, patch, training):
        choose("loss", self.loss, losses.LOSSES)
        choose("bottleneck", self.bottleneck, BOTTLENECKS)
        check_seed(self.seed)
        check_sizes(
            widths=self.widths,
            blocks=self.blocks,
            n_codes=self.n_codes,
            code_dim=self.code_dim,
        )
        n, *space, channels = shape
        training.check(n)
        _check_patch(patch, len(space))
        size = self._window(space, patch)
        build = partial(self._make_networks, size, channels, training.remat)
        encoder, decoder = networks.sketched(training.precision.name, build)
        distances = 4 * self.n_codes * math.prod(encoder.output.shape[1:-1])
        parts, strategy = [encoder, decoder], training.strategy
        check_memory("the autoencoder", parts, training.share, distances, strategy)

    def _networks(self):
        return [("encoder", self.encoder_), ("decoder", self.decoder_)]

    def _is_fitted(self):
        return hasattr(self, "encoder_")

    def _as_it_is(self):
        """Copy the estimator but not its networks, since another fit makes new ones."""
        copy = type(self).__new__(type(self))
        vars(copy).update(vars(self))
        return copy

    def _check_images(self, images):
        """Return images as an array that can be encoded."""
        images = as_array(images, rank=len(self.shape_) - 1)
        self._check_channels("images", images, self.shape_[-1])
        return images

    def _check_channels(self, what, array, channels):
        if np.shape(array)[-1:] != (channels,):
            raise InputError(
                f"{what} must have {channels} channels, along the last axis, and not "
                f"the shape {np.shape(array)}; this autoencoder was fitted to such."
            )

    def _check_latents(self, latents, space):
        """Return latents as an array that can be decoded to images of a size."""
        rank = len(self.shape_) - 1
        if len(space) != rank:
            raise InputError(f"space must have {rank} numbers, not {len(space)}.")
        check_sizes(space=space)
        latents = np.asarray(latents)
        wanted = self.latent_shape((*space, self.shape_[-1]))
        if len(latents) == 0 or latents.shape[1:] != wanted:
            raise InputError(
                f"latents of images of the size {space} have the shape "
                f"{('n', *wanted)}, not {latents.shape}; give what encode returned, "
                "and as space the size of the images."
            )
        if not np.isfinite(latents).all():
            raise InputError("latents have NaN or infinite values; encode them again.")
        return latents

    def _make_networks(self, space, channels, remat):
        """Build encoder and decoder in the current precision."""
        chosen = self._hyperparameters()
        options = {name: chosen[name] for name in ("widths", "blocks", "code_dim")}
        options["remat"] = remat
        with networks.seeded(chosen["seed"]):
            encoder = networks.encoder(space, channels, **options)
            decoder = networks.decoder(encoder.output.shape[1:-1], channels, **options)
        return encoder, decoder

    def _make_parts(self, size=None, remat=False):
        """Build encoder, quantizer and decoder, for images of one size or of any."""
        size = size or self._any_size()
        encoder, decoder = self._make_networks(size, self.shape_[-1], remat)
        bottleneck = BOTTLENECKS[self.bottleneck]
        quantizer = bottleneck(self.n_codes, self.commitment, name="quantizer")
        quantizer.build(encoder.output.shape)
        return encoder, quantizer, decoder

    def _any_size(self):
        return (None,) * (len(self.shape_) - 1)

    def _build(self):
        """Make the networks that encode and decode, in full precision."""
        with networks.precision("float32"):
            self.encoder_, self.quantizer_, self.decoder_ = self._make_parts()
        quantizer, decoder = self.quantizer_, self.decoder_
        self._encode = distribution.compiled(self.encoder_, self.encoder_.inputs)
        # Of these networks, also in a copy that outlives the next fit.
        self._decode = distribution.compiled(
            lambda latents: decoder(quantizer.quantise(latents)), decoder.inputs
        )

    def _compile(self, size, found, training, length):
        """Make the network that is trained: all parts in a row."""
        channels = self.shape_[-1]
        encoder, quantizer, decoder = self._make_parts(size, training.remat)
        images = encoder.inputs[0]
        model = distribution.ReplicatedModel(
            images, decoder(quantizer(encoder(images)))
        )
        model.compile(
            # Without a bound, few early batches would rule Adam's moments for long.
            training.optimizer(length.total, global_clipnorm=1.0),
            # Of images in [0, 1].
            loss=losses.reconstruction(
                self.loss, channels, found.variance / found.scale**2
            ),
            metrics=[losses.error(channels)],
            auto_scale_loss=False,  # the optimizer does
        )
        return model

    def _batches(self, images, learnt, share, first_step):
        """Draw what the autoencoder learns from."""
        return batches(
            images,
            seed=self.seed,
            first_step=first_step,
            share=share,
            bounds=self.intensity_,
            **learnt,
        )

    def _take_weights(self, model):
        """Copy the trained weights into the networks that encode and decode."""
        for name, network in self._networks():
            network.set_weights(model.get_layer(name).get_weights())
        self.quantizer_.set_weights(model.get_layer("quantizer").get_weights())

    def _window(self, space, patch=None):
        """Say how large a piece the networks see of an image of some size."""
        sizes = np.minimum(space, space if patch is None else patch)
        # A multiple of the factor, so that they can halve it.
        return tuple(int(size) + -int(size) % self.factor for size in sizes)

    def _to_network(self, images):
        """Bring images to [0, 1], and their sizes to multiples of the factor."""
        return self._scaled(read_whole(images, self._window(images.shape[1:-1])))

    def _scaled(self, images):
        low, high = self.intensity_
        return (images - np.float32(low)) / np.float32(high - low or 1)

    def _error(self, images):
        """Return the mean squared error of reconstructions, of images in [0, 1]."""
        axes = tuple(range(1, images.ndim))

        def errors(numbers):
            piece = np.asarray(images[numbers], "float32")
            return np.mean((self.predict(piece) - piece) ** 2, axes, dtype="float64")

        batch = tiles.safe_batch(images.shape[1:-1])
        error = distribution.in_batches(errors, np.arange(len(images)), batch).mean()
        low, high = self.intensity_
        return float(error / ((high - low) ** 2 or 1))

    def _verdict(self, found, images, figures):
        """Say what is wrong with what was learnt; None if nothing is."""
        if figures["perplexity"] < _PERPLEXITY:
            return (
                f"nearly all latents have the same code (perplexity "
                f"{figures['perplexity']:.1f}): nothing of the images is left in them; "
                "train for more steps, or with a lower learning rate."
            )
        # Not by the figures of the last round, which are means over all its steps.
        error = self._error(images)
        # Where images hardly differ, their mean is hard to beat, and need not be.
        mean = max(found.spread, 0.05 * found.variance) / found.scale**2
        if error < mean:
            return None
        return (
            f"the autoencoder's reconstructions are no nearer to the images than the "
            f"mean of all images is (mean squared error {error:.2g} and {mean:.2g}); "
            "train for more steps, or with another learning rate (0.001 is usual for "
            "volumes)."
        )

    def _start(self, draw, model):
        """Let the codes start where encoded images are."""
        self._take_weights(model)
        rng = np.random.default_rng(self.seed)
        quantizer = model.get_layer("quantizer")
        codes = quantizer.initial(partial(draw, rng), rng)
        quantizer.codebook.assign(distribution.of_chief(codes))

    def _publish(self, draw, validation_data, model, number, last):
        """After a round: watch and revive the codes, take the weights, validate."""
        quantizer = model.get_layer("quantizer")
        figures, dead = quantizer.figures()
        self._take_weights(model)
        # A code revived after the last round would not be trained any more.
        figures["revived"] = 0 if last else len(dead)
        if figures["revived"]:
            rng = np.random.default_rng([self.seed, number + 1])
            codes = quantizer.revived(dead, partial(draw, rng), rng)
            quantizer.codebook.assign(distribution.of_chief(codes))
            self._take_weights(model)
        if validation_data is not None:
            figures["val_mse"] = self._error(validation_data)
        return figures

    def _some_vectors(self, images, size, rng, count):
        """Encode pieces of images until there are enough vectors, and draw of them."""
        each = math.prod(self.latent_shape((*size, 1))[:-1])
        needed = max(-(-count // each), _PIECES)
        chosen = np.sort(rng.choice(len(images), min(needed, len(images)), False))
        slack = np.maximum(np.subtract(images.shape[1:-1], size), 0)
        corners = rng.integers(0, slack + 1, (len(chosen), len(size)))

        def encode(places):
            pieces = read_windows(images, chosen[places], corners[places], size)
            return self._encode(self._scaled(pieces))

        latents = distribution.in_batches(
            encode, np.arange(len(chosen)), tiles.safe_batch(size)
        )
        vectors = latents.reshape(-1, self.code_dim)
        vectors = vectors[rng.choice(len(vectors), count, len(vectors) < count)]
        # Backgrounds encode to equal vectors; codes must differ.
        return vectors + 1e-3 * (vectors.std() or 1) * rng.standard_normal(
            vectors.shape
        )


def _training(options):
    """Collect the options of the training, with the stage's own defaults."""
    return Training(**{"epochs": 5} | scalars(options))


def _check_validation(images, shape):
    """Return images for validation as an array like those that are learnt from."""
    images = as_array(images, rank=len(shape) - 2)
    if images.shape[1:] != shape[1:]:
        raise InputError(
            f"validation_data must have the shape {('n', *shape[1:])} of the images, "
            f"not {images.shape}."
        )
    survey(images, "validation image")
    return images


def _affordable(images, size, training, length):
    """Keep so many images that to validate takes a tenth of a round's time, about."""
    learnt = length.round * training.batch_size * math.prod(size)
    # A step takes as long as three reconstructions.
    most = 0.1 * 3 * learnt / math.prod(images.shape[1:-1])
    return images[: max(1, math.ceil(most))]


def _check_patch(patch, rank):
    """Refuse a piece of no size, or of another number of dimensions."""
    if patch is None:
        return
    check_sizes(patch=patch)
    if np.size(patch) not in (1, rank):
        raise InputError(
            f"patch must be one number or {rank}, one for each side, not {patch}."
        )


def _check_masks(masks, background, shape):
    """Return masks with one channel, or say what is wrong with them."""
    check_shares(background=background)
    if masks is None:
        return None
    if np.shape(masks) != shape:
        raise InputError(
            f"masks must have the shape {shape} of the images, not {np.shape(masks)}."
        )
    if background == 1:
        raise InputError(
            "masks make no difference with a background of 1; give the weight of what "
            "lies outside of them, such as 0.1, as background."
        )
    return np.asarray(masks)[..., None]
