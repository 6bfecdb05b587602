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

    Parameters
    ----------
    chosen : dict
        Hyper-parameters of a LatentDiffusion.
    latent_shape : tuple of int
        Shape of one latent, ``(*space, channels)``.

    Returns
    -------
    bool
        Whether there shall.
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

    Parameters
    ----------
    chosen : dict
        Hyper-parameters of a LatentDiffusion.
    latent_shape : tuple of int
        Shape of one latent, ``(*space, channels)``.
    conditions : dict of str to Condition
        What it is told of.
    source : Source or None
        What is known of sources, which it sees.
    factor : int
        How many times smaller than images latents are, per side.
    expects, remat : bool
        As of :func:`dipy_ldm.denoiser._unet.unet`.
    directions : int, optional
        Of the Gaussian that it shall know; None if there is none.
    guide : bool
        Whether it is the guide's.

    Returns
    -------
    keras.Model
        The network.
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
    """Say what is known before networks are trained, as far as they have room for it.

    Parameters
    ----------
    expectation : Expectation or None
        What is to be expected of latents.
    gaussian : Gaussian or None
        What they are like.

    Returns
    -------
    dict
        ``expects`` and ``directions``, as of :func:`unet`.
    """
    directions = None if gaussian is None else len(gaussian.loadings)
    return {"expects": expectation is not None, "directions": directions}


def unets(chosen: dict, latent_shape: tuple[int, ...], *told, **knows: Any) -> dict:
    """Build the network of the denoiser and, if there shall be one, of its guide.

    Parameters
    ----------
    chosen : dict
        Hyper-parameters of a LatentDiffusion.
    latent_shape : tuple of int
        Shape of one latent, ``(*space, channels)``.
    *told
        Conditions, source and factor, as of :func:`unet`.
    **knows
        ``expects`` and ``directions``, as of :func:`unet`.

    Returns
    -------
    dict of str to keras.Model
        ``denoiser`` and maybe ``guide``.
    """
    given = chosen, latent_shape, *told
    found = {"denoiser": unet(*given, **knows)}
    if with_guide(chosen, latent_shape):
        found["guide"] = unet(*given, **knows, guide=True)
    return found
