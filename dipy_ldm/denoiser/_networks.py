"""The networks of a diffusion model: the denoiser, and its guide."""

from typing import Any, TypedDict

from dipy_ldm.conditions import Condition
from dipy_ldm.data._sources import Source
from dipy_ldm.denoiser import _unet as unet_network
from dipy_ldm.prior._conditional_mean import Expectation
from dipy_ldm.prior._gaussian import Gaussian

# The guide is to be worse than the denoiser in the same way: narrower.
_GUIDE_WIDTH = 4


class Knows(TypedDict):
    """What networks are given of that which is known before they are trained."""

    expects: bool
    directions: int | None


def with_guide(chosen: dict, latent_shape: tuple[int, ...]) -> bool:
    """Say whether there shall be a guide: where it is asked for, or of images.

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
    seen = source and unet_network.Picture(factor, source.channels, len(source.labels))
    return unet_network.seeded_unet(
        chosen["seed"],
        latent_shape,
        widths=[max(1, w // _GUIDE_WIDTH) for w in widths] if guide else widths,
        blocks=chosen["blocks"],
        attention=chosen["attention"],
        conditions=[condition.size for condition in conditions.values()],
        source=seen,
        expects=expects,
        estimate=None if directions is None else estimate,
        remat=remat,
    )


def known(expectation: Expectation | None, gaussian: Gaussian | None) -> Knows:
    """Return what is learnt before networks are trained, as they take it."""
    directions = None if gaussian is None else len(gaussian.loadings)
    return {"expects": expectation is not None, "directions": directions}


def unets(chosen: dict, latent_shape: tuple[int, ...], *told, **knows: Any) -> dict:
    """Build the network of the denoiser and, if there shall be one, of its guide.

    Shapes: latent_shape ``(*space, channels)``.
    """
    given = chosen, latent_shape, *told
    found = {"denoiser": unet(*given, **knows)}
    if with_guide(chosen, latent_shape):
        found["guide"] = unet(*given, **knows, guide=True)
    return found
