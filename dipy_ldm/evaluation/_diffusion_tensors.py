"""Generated diffusion series beside measured ones, by the tensors that DIPY fits."""

from collections.abc import Mapping
import logging
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from dipy_ldm._conditions import BVAL, without_unknown_levels
from dipy_ldm._utils.checks import InputError
from dipy_ldm._utils.values import counted, take_rows
from dipy_ldm.data._bvals_bvecs import B0_LIMIT, DIRECTION
from dipy_ldm.data._pairing import pair_sources
from dipy_ldm.data._table_rows import find_subjects
from dipy_ldm.data.volumes import Volumes
from dipy_ldm.evaluation import _page as page
from dipy_ldm.evaluation._anatomy import foreground
from dipy_ldm.evaluation._fidelity import mean_of
from dipy_ldm.latent_diffusion import LatentDiffusion
from dipy_ldm.plots import montage, planes

logger = logging.getLogger(__name__)

# Unknowns of a tensor, and the FA from which on it has a direction.
_MIN_DIRECTIONS, _ANISOTROPIC = 6, 0.2
_SETS = "generated", "reconstructed", "real"


class Tensors(NamedTuple):
    """FA ``(*space)`` and principal directions ``(*space, 3)``, of a mask."""

    fa: np.ndarray
    directions: np.ndarray

    def compare(self, truth: "Tensors", mask: np.ndarray) -> dict[str, float]:
        """Compare with measured tensors."""
        error = np.abs(self.fa - truth.fa)[mask].mean()
        certain = mask & (truth.fa > _ANISOTROPIC)
        cosines = np.abs((self.directions * truth.directions).sum(-1))[certain]
        angles = np.rad2deg(np.arccos(np.clip(cosines, 0, 1)))
        off = float(np.median(angles)) if angles.size else np.nan
        return {
            "FA, mean": float(self.fa[mask].mean()),
            "FA, mean error": float(error),
            "direction, error in degrees": off,
        }


def fit_tensors(
    series: np.ndarray, bvals: npt.ArrayLike, bvecs: npt.ArrayLike, mask: np.ndarray
) -> Tensors:
    """Fit tensors to a series ``(*space, n)`` within a mask, in the world."""
    from dipy.core.gradients import gradient_table
    from dipy.reconst.dti import TensorModel

    table = gradient_table(bvals, bvecs=bvecs, b0_threshold=B0_LIMIT)
    fit = TensorModel(table).fit(np.maximum(series, 1e-3), mask=mask)
    return Tensors(fit.fa, fit.evecs[..., 0])


def compare_series(
    model: LatentDiffusion,
    real: Volumes,
    generated: Volumes | None = None,
    seed: int = 0,
    sampling: Mapping = MappingProxyType({}),
) -> tuple[dict, dict[str, str]]:
    """Compare series with those made of their b = 0; return figures, pieces of a page.

    None is for generating them now, along the measured directions, with the further
    conditions that tables list for the real files.
    """
    files, columns = list(dict.fromkeys(real.files)), dict(real.gradients or {})
    if generated:
        generated_files = list(dict.fromkeys(generated.files))
        partner_of = pair_sources(files, generated_files, "generated file")
    else:
        columns |= _conditions_of(model, real)
    compared: list[dict[str, dict]] = []
    shown: list[np.ndarray] = []
    for number, file in enumerate(files):
        b0, images, gradients = _series_of(real, file, columns)
        mask = foreground(b0)
        if generated:
            own = _series_of(generated, partner_of[file], generated.gradients)
        else:
            options = {"conditions": gradients, "source": b0[None], "seed": seed}
            options |= {"first": number, "same_noise": True} | dict(sampling)
            own = b0, model.predict(len(images), **options), gradients
        tensors = {
            "generated": _fit(mask, *own),
            "reconstructed": _fit(mask, b0, model.vqvae_.predict(images), gradients),
            "real": _fit(mask, b0, images, gradients),
        }
        truth = tensors["real"]
        compared.append({n: one.compare(truth, mask) for n, one in tensors.items()})
        shown = shown or [tensors[name].fa for name in _SETS]
    whose = np.unique(find_subjects(files), return_inverse=True)[1]
    figures = {
        title: {n: _mean([of[n][title] for of in compared], whose, seed) for n in _SETS}
        for title in compared[0]["real"]
    }
    counts = {"series": len(files), "subjects": len(np.unique(whose))}
    pieces = _pieces(figures, counts, np.array(shown)[..., None], real.affine)
    return counts | figures, pieces


def _mean(values, whose, seed):
    """Return the mean of what is finite, of one subject without an interval."""
    finite = [value for value in values if np.isfinite(value)]
    plain = float(np.mean(finite)) if finite else None
    return mean_of(values, whose, seed) or plain


def _fit(mask, b0, images, gradients):
    """Fit tensors to a volume of b = 0 and weighted ones, each ``(*space, 1)``."""
    series = np.moveaxis(np.stack([b0, *images])[..., 0], 0, -1)
    bvecs = [(0.0, 0.0, 0.0), *gradients[DIRECTION]]
    return fit_tensors(series, [0.0, *gradients[BVAL]], bvecs, mask)


def _conditions_of(model, real):
    """Read the further conditions of real series, if tables have them."""
    values: dict = {}
    for name in [name for name in model.conditions_ if name not in real.gradients]:
        try:
            values |= real.conditions(name)
        except InputError as error:
            logger.warning("%s of the real series is drawn: %s", name, error)
    return without_unknown_levels(model.conditions_, values)


def _series_of(volumes, file, columns):
    """Return b = 0, images and rows of columns, such as gradients, of a series."""
    places = [i for i, other in enumerate(volumes.files) if other == file]
    if len(places) < _MIN_DIRECTIONS:
        raise InputError(
            f"{file} has {len(places)} diffusion-weighted volumes, and a tensor needs "
            f"{_MIN_DIRECTIONS}; leave the file out."
        )
    rows = take_rows(columns, places)
    return volumes.sources[places[0]], volumes.images[places], rows


def _pieces(figures, counts, shown, affine):
    """Write the pieces of the page."""
    rows = [[title, *map(row.get, _SETS)] for title, row in figures.items()]
    n = f"{counts['series']} series of {counted(counts['subjects'], 'subject')}"
    below = "below each mean is its 95 % interval"
    below = below if counts["subjects"] > 1 else "intervals need two"
    picture = montage(planes(shown, affine), columns=1)
    caption = f"FA of the first series: {', '.join(_SETS)}."
    return {
        "tensors": page.table(["mean of series", *_SETS], rows, f"{n}; {below}."),
        "pictures": page.picture(picture, caption),
    }
