"""Networks of a diffusion model, and the denoisers made from them for samplers."""

from collections.abc import Callable, Sequence
from functools import partial
import logging
from typing import NamedTuple

import keras
import numpy as np

from dipy_ldm import _backend, _schema, _serialization
from dipy_ldm._conditions import UNSPECIFIED, Condition, from_saved
from dipy_ldm._utils.checks import check_seed, check_sizes, choose, whole
from dipy_ldm._utils.types import Tensor
from dipy_ldm.data._sources import ConditioningInputs, Source
from dipy_ldm.denoiser import _unet as unet_network
from dipy_ldm.diffusion import _denoisers as denoisers, schedules
from dipy_ldm.nn import _building as building
from dipy_ldm.prior._latent_prior import LatentPrior

# The public module, since commands add the volume to its warnings.
logger = logging.getLogger("dipy_ldm.latent_diffusion")

# The guide is a degraded version of the denoiser: narrower.
_GUIDE_WIDTH = 4
# Times with guidance, by the noise of the cosine schedule: at other times, samples are
# better without.
_GUIDED_TIMES = (0.4, 0.9)
# Weight of the guide's unconditional estimate: samples agree with requested conditions
# more reliably than with a purely conditional guide (doc/decisions/digits.md).
UNCONDITIONAL_SHARE = 0.1


class Parameters(NamedTuple):
    """Parameters of a diffusion model, with defaults filled in."""

    widths: list[int]
    blocks: int
    attention: list[bool] | None
    schedule: str
    target: str
    guide: bool | None
    seed: int

    def check(self) -> None:
        """Refuse invalid parameters."""
        check_seed(self.seed)
        check_sizes(widths=self.widths)
        whole("blocks", self.blocks, 1)
        choose("schedule", self.schedule, schedules.SCHEDULES)
        choose("target", self.target, schedules.TARGETS)


class Architecture(NamedTuple):
    """Everything that determines the networks of a diffusion model.

    ``factor`` is the size of sources relative to latents; ``with_mean`` whether there
    is a conditional mean, and ``directions`` the rank of the Gaussian prior, if any.

    Shapes: latent_shape ``(*space, channels)``.
    """

    parameters: Parameters
    latent_shape: tuple[int, ...]
    factor: int
    conditions: dict[str, Condition] = {}
    source: Source | None = None
    with_mean: bool = False
    directions: int | None = None

    @property
    def of_volumes(self):
        """Whether the latents are of volumes, not of images."""
        return len(self.latent_shape) == 4

    @property
    def has_guide(self):
        """Whether there is a guide. Default: only for images."""
        guide = self.parameters.guide
        return not self.of_volumes if guide is None else guide

    def unet(self, guide: bool = False, remat: bool = False) -> keras.Model:
        """Build the denoiser or its guide, in the current precision."""
        parameters = self.parameters
        estimate = (self.directions, parameters.schedule, parameters.target)
        narrower = _GUIDE_WIDTH if guide else 1
        with building.seeded(parameters.seed):
            return unet_network.unet(
                self.latent_shape,
                widths=[max(1, width // narrower) for width in parameters.widths],
                blocks=parameters.blocks,
                attention=parameters.attention,
                conditions=[condition.size for condition in self.conditions.values()],
                source=self.source,
                factor=self.factor,
                with_mean=self.with_mean,
                estimate=None if self.directions is None else estimate,
                remat=remat,
            )

    def build(self) -> dict[str, keras.Model]:
        """Build denoiser and guide, if there is one, by the names in a model file."""
        networks = {"denoiser": self.unet()}
        if self.has_guide:
            networks["guide"] = self.unet(guide=True)
        return networks


def expected_shapes(
    document: dict,
    shapes: _schema.Shapes,
    latent_shape: tuple[int, ...],
    factor: int,
) -> _schema.Shapes:
    """Return the shapes of a document's tensors, or refuse larger networks."""
    parameters = Parameters(**document["latent_diffusion"])
    parameters.check()
    _schema.check_sizes(document["latent_diffusion"], shapes)
    conditions = from_saved(document["conditions"])
    source = document["source"] and Source(**document["source"])
    prior = LatentPrior.network_options(shapes)
    architecture = Architecture(
        parameters, latent_shape, factor, conditions, source, **prior
    )
    expected = LatentPrior.shapes(shapes, latent_shape, conditions)
    sketches = building.build_without_weights("float32", architecture.build)
    for name, sketch in sketches.items():
        expected |= _serialization.shapes(sketch, name)
    return expected


class ConditionalDenoiser:
    """Denoiser and guide, compiled, in full precision, with the latent prior."""

    def __init__(self, architecture: Architecture, prior: LatentPrior) -> None:
        self.architecture = architecture
        self.prior = prior
        with building.precision("float32"):
            self.networks = architecture.build()
        for network in self.networks.values():
            unet_network.set_prior(network, prior.gaussian)
        self.network, self.guide = self.networks["denoiser"], self.networks.get("guide")
        self.predict = _compiled(self.network)
        self.predict_guide = None if self.guide is None else _compiled(self.guide)

    def make_denoiser(
        self, conditioning: ConditioningInputs, guidance: float
    ) -> Callable:
        """Return ``denoise(x, t)`` for a conditioning, with guidance."""
        inputs = conditioning.arrays()
        mean = self._conditional_mean(conditioning)
        # Without conditions, the conditional mean is 0.
        no_mean = None if mean is None else 0 * mean
        strong = self._denoiser(self.predict, inputs, mean)
        if self.predict_guide is None:
            unspecified = [np.full_like(array, UNSPECIFIED) for array in inputs]
            weak = self._denoiser(self.predict, unspecified, no_mean)
        else:
            weak = self._denoiser(self.predict_guide, inputs, mean)
            columns = conditioning.table[:, : len(self.architecture.conditions)]
            if (columns != UNSPECIFIED).any():
                dropped = (np.full_like(inputs[0], UNSPECIFIED), *inputs[1:])
                unconditional = self._denoiser(self.predict_guide, dropped, no_mean)
                weak = denoisers.interpolated(weak, unconditional, UNCONDITIONAL_SHARE)
        schedule = self.architecture.parameters.schedule
        interval = schedules.times_of_equal_noise(schedule, _GUIDED_TIMES)
        denoise = denoisers.guided(strong, weak, guidance, tuple(interval))
        _, gaussian, probe = self.prior
        if probe is None or gaussian is None:
            return denoise
        return probe.guide_by_observation(
            denoise, gaussian, schedule, conditioning.table
        )

    def mean(self, conditioning: ConditioningInputs) -> np.ndarray | float:
        """Return the mean of latents given conditions; 0 without a Gaussian prior.

        Shapes: result ``(n, *space, channels)``.
        """
        if self.prior.gaussian is None:
            return 0.0
        mean = self._conditional_mean(conditioning)
        return self.prior.gaussian.mean + (0 if mean is None else mean)

    def warn_of_outliers(self, latents: np.ndarray, names: Sequence[object]) -> None:
        """Warn of latents far from those of aligned training images.

        Shapes: latents ``(n, *space, channels)``; ``names`` are those of the images.
        """
        mean, gaussian = self.prior.conditional_mean, self.prior.gaussian
        if gaussian is None:
            return
        if mean is not None:
            # Allow for any conditions of the training.
            loadings = np.concatenate([gaussian.loadings, mean.loadings()])
            gaussian = gaussian._replace(loadings=loadings)
        distances = gaussian.relative_distances(latents)
        for number in np.flatnonzero(distances > gaussian.max_distance).tolist():
            logger.warning(
                "%s is unlike the training images (%.1f times as far from their mean "
                "as they are), and the result may be meaningless: match their "
                "position, size, contrast and skull stripping.",
                names[number],
                distances[number] ** 0.5,
            )

    def _conditional_mean(self, conditioning: ConditioningInputs):
        mean = self.prior.conditional_mean
        return None if mean is None else mean.predict(conditioning.table)

    def _denoiser(
        self, predict: Callable, inputs: Sequence[np.ndarray], mean: np.ndarray | None
    ):
        """Return a denoiser of a network with the same inputs at every time."""
        predict = partial(_predict_with, predict, inputs)
        parameters = self.architecture.parameters
        return denoisers.from_network(
            predict, parameters.schedule, parameters.target, mean
        )


def _predict_with(
    predict: Callable, inputs: Sequence[np.ndarray], x: Tensor, times: np.ndarray, *mean
):
    """Predict, with inputs for each latent or the same for all."""
    n = len(x)
    repeated = (np.broadcast_to(array, (n, *array.shape[1:])) for array in inputs)
    return predict(x, times, *mean, *repeated)


def _compiled(unet: keras.Model):
    return _backend.compiled(lambda *inputs: unet([*inputs]), unet.inputs, [unet])
