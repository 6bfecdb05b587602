"""Comparison of generated and measured diffusion series by DIPY's tensor fits."""

from collections.abc import Mapping
import logging
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from dipy_ldm import InputError, LatentDiffusion
from dipy_ldm._conditions import BVAL, without_unknown_levels
from dipy_ldm._utils.values import counted, grouped, take_rows
from dipy_ldm.data import Volumes
from dipy_ldm.data._bvals_bvecs import B0_LIMIT, DIRECTION
from dipy_ldm.data._pairing import pair_sources
from dipy_ldm.evaluation import _page as page
from dipy_ldm.evaluation._anatomy import foreground
from dipy_ldm.evaluation._fidelity import finite_mean
from dipy_ldm.metrics import Interval
from dipy_ldm.plots import montage, planes

logger = logging.getLogger(__name__)

# Parameters of a tensor, and the FA above which its direction is compared.
_MIN_DIRECTIONS, _MIN_FA = 6, 0.2
_SETS = "generated", "reconstructed", "real"
# A b = 0 volume, weighted ones, each ``(*space, 1)``, and columns of these.
Series = tuple[np.ndarray, np.ndarray, Mapping]


class Tensors(NamedTuple):
    """FA ``(*space)`` and principal directions ``(*space, 3)`` within a mask."""

    fa: np.ndarray
    directions: np.ndarray

    def compare(self, truth: "Tensors", mask: np.ndarray) -> dict[str, float]:
        """Return mean FA, and errors of FA and directions against the truth."""
        error = np.abs(self.fa - truth.fa)[mask].mean()
        certain = mask & (truth.fa > _MIN_FA)
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
    """Fit tensors to a series ``(*space, n)`` within a mask, in world coordinates."""
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
    """Compare real series with those generated from their b = 0 volumes.

    By default, these are generated here, along the measured directions, with the other
    conditions in the tables of the real files. Return figures, and HTML by placeholder.
    """
    rows_of, columns = _rows_of_series(real), dict(real.gradients or {})
    files = list(rows_of)
    if generated:
        generated_rows = _rows_of_series(generated)
        partner_of = pair_sources(files, list(generated_rows), "generated file")
    else:
        columns |= _conditions_of(model, real)
    compared: list[dict[str, dict]] = []
    first_maps: list[np.ndarray] = []
    for number, file in enumerate(files):
        b0, images, gradients = _take(real, rows_of[file], columns)
        mask = foreground(b0)
        if generated:
            rows = generated_rows[partner_of[file]]
            samples = _take(generated, rows, generated.gradients)
        else:
            options: dict[str, Any] = {
                "conditions": gradients,
                "source": b0[None],
                "seed": seed,
            }
            options |= {"first": number, "same_noise": True} | dict(sampling)
            samples = b0, model.predict(len(images), **options), gradients
        tensors = {
            "generated": _fit(mask, samples),
            "reconstructed": _fit(mask, (b0, model.vqvae_.predict(images), gradients)),
            "real": _fit(mask, (b0, images, gradients)),
        }
        truth = tensors["real"]
        compared.append({n: fit.compare(truth, mask) for n, fit in tensors.items()})
        first_maps = first_maps or [tensors[name].fa for name in _SETS]
    subject_of = dict(zip(real.files, real.subjects))
    ids = np.unique([subject_of[file] for file in files], return_inverse=True)[1]
    figures = {
        title: {n: _mean([of[n][title] for of in compared], ids, seed) for n in _SETS}
        for title in compared[0]["real"]
    }
    counts = {"series": len(files), "subjects": len(np.unique(ids))}
    pieces = _pieces(figures, counts, np.array(first_maps)[..., None], real.affine)
    return counts | figures, pieces


def _mean(
    values: list[float], subject_ids: np.ndarray, seed: int
) -> Interval | float | None:
    """Return the mean of finite values, without an interval for a single subject."""
    finite = [value for value in values if np.isfinite(value)]
    plain = float(np.mean(finite)) if finite else None
    return finite_mean(values, subject_ids, seed) or plain


def _fit(mask: np.ndarray, series: Series) -> Tensors:
    """Fit tensors to a series within a mask."""
    b0, images, gradients = series
    volumes = np.moveaxis(np.stack([b0, *images])[..., 0], 0, -1)
    bvecs = [(0.0, 0.0, 0.0), *gradients[DIRECTION]]
    return fit_tensors(volumes, [0.0, *gradients[BVAL]], bvecs, mask)


def _conditions_of(model: LatentDiffusion, real: Volumes) -> dict:
    """Return the other conditions of real series that tables have."""
    values: dict = {}
    for name in [
        name for name in model.conditions_ if name not in (real.gradients or ())
    ]:
        try:
            values |= real.conditions(name)
        except InputError as error:
            logger.warning("%s of the real series is drawn at random: %s", name, error)
    return without_unknown_levels(model.conditions_, values)


def _rows_of_series(volumes: Volumes) -> dict:
    """Return the rows of each series, by its file; refuse too few for a tensor."""
    rows_of = grouped((file, row) for row, file in enumerate(volumes.files))
    for file, rows in rows_of.items():
        if len(rows) < _MIN_DIRECTIONS:
            raise InputError(
                f"{file} has {len(rows)} diffusion-weighted volumes, but a tensor "
                f"needs {_MIN_DIRECTIONS}",
                "leave the file out",
            )
    return rows_of


def _take(volumes: Volumes, rows: list[int], columns: Mapping | None) -> Series:
    """Return b = 0, weighted volumes and rows of columns of a series."""
    b0 = np.asarray(volumes.sources)[rows[0]]
    return b0, volumes.images[rows], take_rows(columns, rows) or {}


def _pieces(
    figures: dict, counts: dict, fa: np.ndarray, affine: np.ndarray
) -> dict[str, str]:
    """Return the HTML of the page by placeholder."""
    rows = [[title, *map(row.get, _SETS)] for title, row in figures.items()]
    n = f"{counts['series']} series of {counted(counts['subjects'], 'subject')}"
    below = "95 % intervals below the means"
    below = below if counts["subjects"] > 1 else "intervals need two subjects"
    picture = montage(planes(fa, affine), columns=1)
    caption = f"FA of the first series: {', '.join(_SETS)}."
    return {
        "tensors": page.table(["mean over series", *_SETS], rows, f"{n}; {below}."),
        "pictures": page.picture(picture, caption),
    }
