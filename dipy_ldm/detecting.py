"""Finding what is not as it should be, for what makes it anew."""

from collections.abc import Sequence
from typing import Any, Self, Unpack

import numpy as np
import numpy.typing as npt

from dipy_ldm._utils.checks import InputError
from dipy_ldm.anomaly_detector import Detector
from dipy_ldm.inpainting import Inpainter
from dipy_ldm.training import Options


class Finder(Inpainter):
    """What finds lesions, once it is fitted and has a detector.

    Attributes
    ----------
    detector_ : Detector or None
        What finds them; None if none was trained, or the file is older.
    """

    detector_: Detector | None = None
    seed: int

    def fit_detector(
        self,
        images: npt.ArrayLike,
        *,
        validation_data: npt.ArrayLike | None = None,
        patch: int | Sequence[int] | None = None,
        **training: Unpack[Options],
    ) -> Self:
        """Learn where images are not as those of the cohort.

        By lesions that are planted in them
        (:class:`dipy_ldm.anomaly_detector.Detector`): none need be marked. The rest of
        a fitted model stays as it is.

        Parameters
        ----------
        images : array_like
            Images without lesions, or with few, ``(n, *space, channels)``, of the shape
            of the training images.
        validation_data : array_like, optional
            Images on which it is validated after each round.
        patch : int or sequence of int, optional
            Voxels along each side of the windows that are drawn of them; 48 if None, or
            all that there are.
        **training
            Options of :class:`dipy_ldm.training.Training`; ``epochs`` is 10 if left
            out.

        Returns
        -------
        LatentDiffusion
            The estimator itself.

        Raises
        ------
        InputError
            If the model is not fitted, the images or an option can't be used, or
            nothing was learnt.
        """
        self._check_fitted()
        images = self._check_images(images, self.vqvae_)
        options: Any = {"validation_data": validation_data, "patch": patch, **training}
        self.detector_ = Detector(seed=self.seed).fit(images, **options)
        return self

    def detect(
        self,
        images: npt.ArrayLike,
        *,
        batch_size: int | None = None,
        tile: int | None = None,
    ) -> np.ndarray:
        """Say of each voxel how likely it is in a lesion.

        Parameters
        ----------
        images : array_like
            Images, ``(n, *space, channels)``, of the shape of the training images.
        batch_size, tile : int, optional
            As of :meth:`dipy_ldm.VQVAE.encode`.

        Returns
        -------
        ndarray
            Probabilities, float32 ``(n, *space)``.

        Raises
        ------
        InputError
            If the model has no detector, or the images or an option can't be used.
        """
        self._check_fitted()
        if self.detector_ is None:
            raise InputError(
                "this model has no detector; train one with fit_detector(images), or "
                "--steps_detector of dipy_train_ldm."
            )
        return self.detector_.predict(images, batch_size=batch_size, tile=tile)
