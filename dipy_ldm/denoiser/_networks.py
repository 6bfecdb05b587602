"""The networks of a diffusion model: the denoiser, and its guide."""

from typing import Any, TypedDict

from dipy_ldm.conditions import Condition
from dipy_ldm.data._sources import Source
from dipy_ldm.denoiser import _unet as unet_network
from dipy_ldm.prior._conditional_mean import ConditionalMean
from dipy_ldm.prior._gaussian import Gaussian

# The guide is to be worse than the denoiser in the same way: narrower.
_GUIDE_WIDTH = 4


class PriorOptions(TypedDict):
    """Options of the networks that follow from the latent prior."""

    expects: bool
    directions: int | None


def has_guide(chosen: dict, latent_shape: tuple[int, ...]) -> bool:
    """Return whether there is a guide: if requested, or for images.

    Shapes: latent_shape ``(*space, channels)``.
    """
    return len(latent_shape) == 3 if chosen["guide"] is None else chosen["guide"]


def unet(
    chosen: dict,
    latent_shape: tuple[int, ...],
    conditions: dict[str, Condition],
    source: Source | None,
    factor: int,
    *,
    expects: bool = False,
    directions: int | None = None,
    guide: bool = False,
    remat: bool = False,
) -> Any:
    """Build the network of the denoiser or of its guide, in the current precision.

    Shapes: latent_shape ``(*space, channels)``.
    """
    widths = chosen["widths"]
    estimate = (directions, chosen["schedule"], chosen["target"])
    picture = source and unet_network.Picture(
        factor, source.channels, len(source.labels)
    )
    return unet_network.seeded_unet(
        chosen["seed"],
        latent_shape,
        widths=[max(1, w // _GUIDE_WIDTH) for w in widths] if guide else widths,
        blocks=chosen["blocks"],
        attention=chosen["attention"],
        conditions=[condition.size for condition in conditions.values()],
        source=picture,
        expects=expects,
        estimate=None if directions is None else estimate,
        remat=remat,
    )


def prior_options(
    expectation: ConditionalMean | None, gaussian: Gaussian | None
) -> PriorOptions:
    """Return the options of networks that follow from the latent prior."""
    directions = None if gaussian is None else len(gaussian.loadings)
    return {"expects": expectation is not None, "directions": directions}


def unets(
    chosen: dict, latent_shape: tuple[int, ...], *conditioning, **prior: Any
) -> dict:
    """Build the network of the denoiser and, if there shall be one, of its guide.

    Shapes: latent_shape ``(*space, channels)``.
    """
    arguments = chosen, latent_shape, *conditioning
    networks = {"denoiser": unet(*arguments, **prior)}
    if has_guide(chosen, latent_shape):
        networks["guide"] = unet(*arguments, **prior, guide=True)
    return networks
