"""Measure how well volumes are what was asked for, as one line of JSON.

For models of a virtual cohort with covariates (``virtual_cohort.py --covariates``).
Each covariate is measured in the volumes themselves: from their brightness at a few
places, by a fit to the exact values of the training cohort. What such a measurement is
worth is shown on volumes that were held out, whose values are exact too, and on their
reconstructions. Then volumes are generated, asked for one covariate with the others
drawn, and for two at once.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from common import Parser, add_sampling, print_scores, sampling, tell
import numpy as np
from scipy.ndimage import gaussian_filter, map_coordinates
from volumes_quality import load_model

from dipy_ldm.data._covariates import read_covariates
from dipy_ldm.data.volumes import load_volumes
from dipy_ldm.prior._probe import ridge_regression

# Places at which volumes are looked at, in mm from the middle of the brain, and how far
# they are apart: around the ventricles, where the lesion is, too, and everywhere.
NEAR = ((-40, 41), (-44, 57), (-24, 37)), 6
WHOLE = ((-66, 67), (-84, 85), (-60, 61)), 8
# Blurred first, in mm: how sharp a volume is makes no difference.
BLUR = 4
# The brightness of tissues is found everywhere.
LOOK = {"ventricles": NEAR, "offset": NEAR, "contrast": WHOLE, "group": NEAR}
# What is tried: ridges, in mean products, and shares of squares of products.
RIDGES = np.logspace(-6, 0, 13)
SQUARES = 0.0, 0.5
NUMBERS = ("ventricles", "offset", "contrast")
GROUPS = ("control", "patient")


def features(images, affine):
    """Describe volumes by their brightness at a few places.

    Parameters
    ----------
    images : ndarray
        ``(n, x, y, z, 1)``.
    affine : ndarray
        From voxels to millimetres, ``(4, 4)``.

    Returns
    -------
    dict of str to ndarray
        Features of each volume, ``(n, k)``, by the name of what they tell of.
    """
    places = np.moveaxis(np.indices(images.shape[1:4]), 0, -1)
    world = places @ affine[:3, :3].T + affine[:3, 3]
    found: dict[tuple, list] = {look: [] for look in (NEAR, WHOLE)}
    for image in images[..., 0]:
        inside = image > 0.2 * np.quantile(image, 0.99)
        blurred = gaussian_filter(image, BLUR / np.linalg.norm(affine[:3, :3], axis=0))
        # Beside white matter.
        blurred = blurred / np.quantile(blurred[inside], 0.9)
        for look, rows in found.items():
            rows.append(_at(blurred, world[inside].mean(axis=0), affine, *look))
    return {name: np.array(found[look]) for name, look in LOOK.items()}


def _at(image, centre, affine, box, step):
    """Look at places, whatever the voxels are."""
    axes = [np.arange(low, high, step) for low, high in box]
    places = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3) + centre
    indices = (places - affine[:3, 3]) @ np.linalg.inv(affine[:3, :3]).T
    return map_coordinates(image, indices.T, order=1)


class Measure:
    """A kernel ridge regression from features to what is known exactly.

    Its ridge, and whether products of features have a part, are those with which each
    volume is measured best by a fit to the others.

    Parameters
    ----------
    table : ndarray
        Features, ``(n, k)``.
    values : sequence
        Exact values, numbers or the names of two groups; None where not known.
    """

    def __init__(self, table, values):
        known = [i for i, value in enumerate(values) if value is not None]
        self.of_groups = isinstance(values[known[0]], str)
        wanted = np.array([self.code(values[i]) for i in known])
        self.centre = table[known].mean(0)
        self.scale = np.sqrt(((table[known] - self.centre) ** 2).sum(1).mean())
        self.terms = (table[known] - self.centre) / self.scale
        tried = [
            self._fit(wanted, ridge, share) for share in SQUARES for ridge in RIDGES
        ]
        self.share, weights, offset, left_out = min(
            tried, key=lambda fit: np.mean((fit[-1] - wanted) ** 2)
        )
        # What is measured lies too near to the mean, which is made up for.
        slope, start = np.polyfit(wanted, left_out, 1)
        self.weights, self.offset = weights / slope, (offset - start) / slope

    def _fit(self, wanted, ridge, share):
        """Fit, and measure each by a fit to the others."""
        products = _products(self.terms, self.terms, share)
        more = ridge * products.trace() / len(wanted)
        return share, *ridge_regression(products, wanted, more)

    def code(self, value):
        """Return a number for a value: groups are -1 and 1."""
        return 2.0 * GROUPS.index(value) - 1 if self.of_groups else value

    def __call__(self, table, values):
        """Compare what is measured with what is known or was asked for.

        Parameters
        ----------
        table : ndarray
            Features, ``(n, k)``.
        values : sequence
            Of each volume; None where there is none.

        Returns
        -------
        dict
            Correlation and slope (measured over asked), or the share of groups that are
            right.
        """
        there = [i for i, value in enumerate(values) if value is not None]
        asked = np.array([self.code(values[i]) for i in there])
        terms = (table[there] - self.centre) / self.scale
        products = _products(terms, self.terms, self.share)
        measured = products @ self.weights + self.offset
        if self.of_groups:
            return {"right": float(np.mean(np.sign(measured) == asked))}
        slope, _ = np.polyfit(asked, measured, 1)
        return {"r": float(np.corrcoef(asked, measured)[0, 1]), "slope": float(slope)}


def _products(some, others, share):
    products = some @ others.T
    return products + share * products**2


def load_known(folder, grid):
    """Load a cohort with its covariates.

    Parameters
    ----------
    folder : str
        Where ``virtual_cohort.py --covariates`` wrote it.
    grid : Grid
        Of the model.

    Returns
    -------
    images : ndarray
        The volumes.
    values : dict of str to list
        Covariates.
    """
    volumes = load_volumes([folder], grid=grid, verbose=True)
    found = read_covariates([*NUMBERS, "group"], volumes.files)
    return volumes.images, found.values


def differences(images):
    """Return the mean variance of a voxel among images, ``(n, x, y, z, 1)``."""
    return float(np.var(images, 0, dtype="float64").mean())


def draw(name, values, n, rng):
    """Draw what to ask for, evenly over what the training volumes are.

    Parameters
    ----------
    name : str
        A covariate.
    values : dict of str to list
        Those of the training volumes.
    n : int
        How many.
    rng : numpy.random.Generator
        Draws them.

    Returns
    -------
    list
        Numbers, from the twentieth lowest to the twentieth highest of a hundred, or
        groups.
    """
    if name == "group":
        return [GROUPS[i % 2] for i in range(n)]
    there = [value for value in values[name] if value is not None]
    return rng.uniform(*np.quantile(there, [0.05, 0.95]), n).tolist()


def measure(options):
    """Measure real volumes, and generated ones.

    Parameters
    ----------
    options : argparse.Namespace
        As of :func:`make_parser`.

    Returns
    -------
    dict
        As of :class:`Measure`, by the name of the covariate: ``real_`` for held-out
        volumes, ``reconstructed_`` for what the autoencoder makes of them, ``both_``
        where two were asked for. ``variety`` is how much samples
        differ, held-out volumes being 1.
    """
    model, grid = load_model(options.model)
    images, values = load_known(options.train, grid)
    train = features(images, grid.affine)
    measures = {name: Measure(train[name], values[name]) for name in values}
    images, known = load_known(options.real, grid)
    real, variance = features(images, grid.affine), differences(images)
    made = features(model.vqvae_.predict(images), grid.affine)
    scores = {
        f"{title}_{name}": measure(found[name], known[name])
        for title, found in (("real", real), ("reconstructed", made))
        for name, measure in measures.items()
    }
    rng, variety = np.random.default_rng(options.seed), []
    for names in [*((name,) for name in measures), ("ventricles", "contrast")]:
        tell(f"asking for {' and '.join(names)}")
        asked = {name: draw(name, values, options.n_samples, rng) for name in names}
        images = model.predict(
            options.n_samples,
            conditions=asked,
            batch_size=options.batch_size,
            **sampling(options),
        )
        variety.append(differences(images) / variance)
        found = features(images, grid.affine)
        for name in names:
            title = name if len(names) == 1 else f"both_{name}"
            scores[title] = measures[name](found[name], asked[name])
    return scores | {"variety": float(np.mean(variety))}


def make_parser():
    """Make the parser of the command line."""
    parser = Parser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", help="model file")
    parser.add_argument("--train", required=True, help="folder of its volumes")
    parser.add_argument("--real", required=True, help="folder of held-out volumes")
    add_sampling(parser, n_samples=200, batch_size=None)
    return parser


if __name__ == "__main__":
    print_scores(make_parser(), measure)
