"""Measure how well volumes are what was asked for, as one line of JSON.

For models of a virtual cohort with covariates (``virtual_cohort.py --covariates``).
Each covariate is measured in the volumes themselves: from a few features of a volume,
by a linear fit to the exact values of the training cohort. What such a measurement is
worth is shown on volumes that were held out, whose values are exact too. Then volumes
are generated, asked for one covariate with the others left open, and for two at once.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from common import Parser, add_sampling, print_scores, sampling, tell
import numpy as np
from scipy.ndimage import gaussian_filter, map_coordinates
from volumes_quality import load_model

from dipy_ldm.data.covariates import read_covariates
from dipy_ldm.data.volumes import load_volumes

# Relative to the centre of the brain, in mm: where lesions are, and how far they reach.
LESION = np.array([26.0, 46.0, 15.0]), np.array([15.0, 15.0, 15.0])
# How far ventricles reach, with room for subjects of all sizes.
VENTRICLES = np.array([34.0, 42.0, 26.0])
# The same for the box around the ventricles, and how far apart its places are.
BOX, STEP = ((-40, 41), (-44, 57), (-24, 37)), 6
# How much smaller than they fit best weights are, for the many places of the box and
# for the few other features.
RIDGES = {"ventricles": 1.0, "offset": 1e-3, "contrast": 1e-3, "group": 1e-3}
NUMBERS = ("ventricles", "offset", "contrast")
GROUPS = ("control", "patient")


def features(images, affine):
    """Describe volumes by a few numbers.

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
    rows = [_describe(image[..., 0], world, affine) for image in images]
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def _describe(image, world, affine):
    inside = image > 0.2 * np.quantile(image, 0.99)
    white = np.quantile(image[inside], 0.9)
    relative, centre = image / white, world[inside].mean(axis=0)
    tissue = np.quantile(relative[inside], np.linspace(0.1, 0.8, 8))
    around = _box(relative, centre, affine)
    return {
        "ventricles": around,
        "offset": _offsets(relative, inside, world - centre),
        "contrast": tissue,
        "group": _lesion(relative, world - centre),
    }


def _offsets(relative, inside, off):
    """Find the middle of what is dark around the ventricles, from left to right."""
    found = []
    for reach in (VENTRICLES, 1.2 * VENTRICLES):
        near = _near(off, np.array([0.0, 6.0, 5.0]), reach) * inside
        for limit in (0.6, 0.65, 0.7, 0.75):
            dark = np.clip((limit - relative) / 0.1, 0, 1) * near
            found.append((dark * off[..., 0]).sum() / max(dark.sum(), 1e-6))
    return found


def _box(relative, centre, affine):
    """Look at places around the ventricles, whatever the voxels are."""
    axes = [np.arange(low, high, STEP) for low, high in BOX]
    places = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3) + centre
    indices = (places - affine[:3, 3]) @ np.linalg.inv(affine[:3, :3]).T
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    smooth = gaussian_filter(relative, 4 / sizes)
    return map_coordinates(smooth, indices.T, order=1)


def _lesion(relative, off):
    """Compare where a lesion may be with the other side."""
    found = []
    for side in (1, -1):
        place, reach = LESION
        weights = _near(off, place * [side, 1, 1], reach)
        values = relative[weights > 0.3]
        found += [np.average(relative, weights=weights)]
        found += [*np.quantile(values, [0.02, 0.1, 0.3])]
    return found


def _near(off, place, reach):
    """Return weights that fall from 1 at a place to 0 where the reach ends."""
    squared = (((off - place) / reach) ** 2).sum(-1)
    return np.clip(2 - 2 * squared, 0, 1)


class Measure:
    """A linear fit from features to what is known exactly.

    Parameters
    ----------
    table : ndarray
        Features, ``(n, k)``.
    values : sequence
        Exact values, numbers or the names of two groups; None where not known.
    ridge : float
        How much smaller than they fit best the weights are.
    """

    def __init__(self, table, values, ridge):
        known = [i for i, value in enumerate(values) if value is not None]
        self.of_groups = isinstance(values[known[0]], str)
        wanted = np.array([self.code(values[i]) for i in known])
        self.centre, self.mean = table[known].mean(0), wanted.mean()
        self.scale = 1.0 if table.shape[1] > len(known) else table[known].std(0) + 1e-9
        terms = self.terms(table[known])
        products = terms @ terms.T
        more = ridge * products.trace() / len(known) * np.eye(len(known))
        inverse = np.linalg.inv(products + more)
        weights = inverse @ (wanted - self.mean)
        # Each as it is measured by a fit to the others: too near to the mean, which is
        # made up for.
        left_out = wanted - weights / inverse.diagonal()
        slope, _ = np.polyfit(wanted, left_out, 1)
        self.weights = terms.T @ weights / slope

    def code(self, value):
        """Return a number for a value: groups are -1 and 1."""
        return 2.0 * GROUPS.index(value) - 1 if self.of_groups else value

    def terms(self, table):
        """Return features whose mean is 0."""
        return (table - self.centre) / self.scale

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
        measured = self.terms(table[there]) @ self.weights + self.mean
        if self.of_groups:
            return {"right": float(np.mean(np.sign(measured) == asked))}
        slope, _ = np.polyfit(asked, measured, 1)
        return {"r": float(np.corrcoef(asked, measured)[0, 1]), "slope": float(slope)}


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
        volumes, ``both_`` where two were asked for. ``variety`` is how much samples
        differ, held-out volumes being 1.
    """
    model, grid = load_model(options.model)
    images, values = load_known(options.train, grid)
    train = features(images, grid.affine)
    measures = {
        name: Measure(train[name], values[name], RIDGES[name]) for name in values
    }
    images, known = load_known(options.real, grid)
    real, variance = features(images, grid.affine), differences(images)
    scores = {
        f"real_{name}": measure(real[name], known[name])
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
