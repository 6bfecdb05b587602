"""Measure how well generated volumes follow their conditions.

For models of a virtual cohort with covariates (``virtual_cohort.py --covariates``).
Each covariate is measured in the volumes: by regression on intensities at a few points,
fitted to the exact values of the training cohort. Held-out volumes, whose exact values
are known, and their reconstructions show how reliable the measurement is.
"""

from common import add_sampling, load_model, log, make_parser, print_scores, sampling
import numpy as np
from scipy.ndimage import gaussian_filter, map_coordinates

from dipy_ldm._conditions import ConditionBatch
from dipy_ldm.data._covariates import read_covariates
from dipy_ldm.data.volumes import load_volumes
from dipy_ldm.prior._ridge import ConditionalMean, fit_kernel_ridge

# Ranges of sampling points in mm from the centre of the brain, and their spacing:
# around the ventricles and the lesion, and in the whole brain.
NEAR = ((-40, 41), (-44, 57), (-24, 37)), 6
WHOLE = ((-66, 67), (-84, 85), (-60, 61)), 8
# Blur in mm before sampling, so that sharpness has no effect.
BLUR = 4
# Contrast is measured in the whole brain.
LOOK = {"ventricles": NEAR, "offset": NEAR, "contrast": WHOLE, "group": NEAR}
# Hyperparameters: ridges relative to the mean product, and weights of squared products.
RIDGES = np.logspace(-6, 0, 13)
SQUARES = 0.0, 0.5
NUMBERS = ("ventricles", "offset", "contrast")
GROUPS = ("control", "patient")


def add_cohorts(parser):
    """Add the model and its cohorts."""
    parser.add_argument("model", help="model file")
    parser.add_argument("--train", required=True, help="folder of its volumes")
    parser.add_argument("--real", required=True, help="folder of held-out volumes")


def add_generated_options(parser):
    """Add the options of :func:`score_generated`."""
    add_cohorts(parser)
    add_sampling(parser, n_samples=200, batch_size=None)


def score_generated(options):
    """Measure covariates of real, reconstructed and generated volumes."""
    model, grid = load_model(options.model)
    images, values = load_cohort(options.train, grid)
    train = features(images, grid.affine)
    measures = {name: Measure(train[name], values[name]) for name in values}
    images, truth = load_cohort(options.real, grid)
    real, variance = features(images, grid.affine), mean_variance(images)
    reconstructed = features(model.vqvae_.predict(images), grid.affine)
    scores = {
        f"{title}_{name}": measure(volume_features[name], truth[name])
        for title, volume_features in (("real", real), ("reconstructed", reconstructed))
        for name, measure in measures.items()
    }
    rng, variety = np.random.default_rng(options.seed), []
    for names in [*((name,) for name in measures), ("ventricles", "contrast")]:
        log(f"requesting {' and '.join(names)}")
        requested = {name: draw(name, values, options.n_samples, rng) for name in names}
        images = model.predict(
            options.n_samples,
            conditions=requested,
            batch_size=options.batch_size,
            **sampling(options),
        )
        variety.append(mean_variance(images) / variance)
        volume_features = features(images, grid.affine)
        for name in names:
            title = name if len(names) == 1 else f"both_{name}"
            scores[title] = measures[name](volume_features[name], requested[name])
    return scores | {"variety": float(np.mean(variety))}


def features(images, affine):
    """Return the intensities of volumes at a few points.

    Shapes: images ``(n, x, y, z, 1)``, result ``(n, k)``.
    """
    places = np.moveaxis(np.indices(images.shape[1:4]), 0, -1)
    world = places @ affine[:3, :3].T + affine[:3, 3]
    rows_by_look: dict[tuple, list] = {look: [] for look in (NEAR, WHOLE)}
    for image in images[..., 0]:
        inside = image > 0.2 * np.quantile(image, 0.99)
        blurred = gaussian_filter(image, BLUR / np.linalg.norm(affine[:3, :3], axis=0))
        # Relative to white matter.
        blurred = blurred / np.quantile(blurred[inside], 0.9)
        for look, rows in rows_by_look.items():
            rows.append(_sample_at(blurred, world[inside].mean(axis=0), affine, *look))
    return {name: np.array(rows_by_look[look]) for name, look in LOOK.items()}


def _sample_at(image, centre, affine, box, step):
    """Interpolate a volume at a grid of points in millimetres."""
    axes = [np.arange(low, high, step) for low, high in box]
    places = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3) + centre
    indices = (places - affine[:3, 3]) @ np.linalg.inv(affine[:3, :3]).T
    return map_coordinates(image, indices.T, order=1)


class Measure:
    """Kernel ridge regression from features to exact values.

    Leave-one-out cross-validation chooses the ridge and the weight of products of
    features.

    Shapes: table ``(n, k)``.
    """

    def __init__(self, table, values):
        present = [i for i, value in enumerate(values) if value is not None]
        self.of_groups = isinstance(values[present[0]], str)
        targets = np.array([self.code(values[i]) for i in present])
        self.centre = table[present].mean(0)
        self.scale = np.sqrt(((table[present] - self.centre) ** 2).sum(1).mean())
        self.terms = (table[present] - self.centre) / self.scale
        fits = [
            self._fit(targets, ridge, share) for share in SQUARES for ridge in RIDGES
        ]
        self.share, weights, offset, left_out = min(
            fits, key=lambda fit: np.mean((fit[-1] - targets) ** 2)
        )
        # Correct for the shrinkage towards the mean.
        slope, start = np.polyfit(targets, left_out, 1)
        self.weights, self.offset = weights / slope, (offset - start) / slope

    def _fit(self, targets, ridge, share):
        """Fit, and return leave-one-out predictions, too."""
        products = _kernel(self.terms, self.terms, share)
        more = ridge * products.trace() / len(targets)
        subjects = np.arange(len(targets))
        return share, *fit_kernel_ridge(products, targets, [more], subjects)

    def code(self, value):
        """Return a value as a number: groups are -1 and 1."""
        return 2.0 * GROUPS.index(value) - 1 if self.of_groups else value

    def __call__(self, table, values):
        """Compare measured values with exact or requested ones.

        Shapes: table ``(n, k)``.
        """
        present = [i for i, value in enumerate(values) if value is not None]
        requested = np.array([self.code(values[i]) for i in present])
        terms = (table[present] - self.centre) / self.scale
        products = _kernel(terms, self.terms, self.share)
        measured = products @ self.weights + self.offset
        if self.of_groups:
            return {"right": float(np.mean(np.sign(measured) == requested))}
        slope, _ = np.polyfit(requested, measured, 1)
        return {
            "r": float(np.corrcoef(requested, measured)[0, 1]),
            "slope": float(slope),
        }


def _kernel(a, b, share):
    products = a @ b.T
    return products + share * products**2


def load_cohort(folder, grid):
    """Load a cohort with its covariates."""
    volumes = load_volumes([folder], grid=grid, verbose=True)
    covariates = read_covariates([*NUMBERS, "group"], volumes.files)
    return volumes.images, covariates.values


def mean_variance(images):
    """Return the mean variance of voxels over images ``(n, x, y, z, 1)``."""
    return float(np.var(images, 0, dtype="float64").mean())


def draw(name, values, n, rng):
    """Draw conditions uniformly over the range of the training volumes."""
    if name == "group":
        return [GROUPS[i % 2] for i in range(n)]
    present = [value for value in values[name] if value is not None]
    return rng.uniform(*np.quantile(present, [0.05, 0.95]), n).tolist()


def add_mean_options(parser):
    """Add the options of :func:`score_conditional_mean`."""
    add_cohorts(parser)
    parser.add_argument("--n", type=int, nargs="+", default=[6, 8, 12, 20, 100, 400])
    parser.add_argument("--draws", type=int, default=5, help="of volumes")
    parser.add_argument("--seed", type=int, default=0)


def score_conditional_mean(options):
    """Measure how much of the latents' variance conditions explain before training."""
    model, grid = load_model(options.model)
    conditions = model.conditions_
    train, real = (encode(model, at, grid) for at in (options.train, options.real))
    rng = np.random.default_rng(options.seed)
    for n in options.n:
        shares: dict[str, list] = {"left": [], "permuted": []}
        for _ in range(options.draws if n < len(train[0]) else 1):
            subset = rng.permutation(len(train[0]))[:n]
            latents, numbers = (array[subset] for array in train)
            numbers_by_name = {"left": numbers, "permuted": rng.permutation(numbers)}
            for name, rows in numbers_by_name.items():
                shares[name].append(unexplained_share(latents, rows, conditions, *real))
        ends = {name: [min(shares), max(shares)] for name, shares in shares.items()}
        yield {"n": n} | ends


def encode(model, folder, grid):
    """Return latents of unit variance, and their encoded conditions."""
    images, values = load_cohort(folder, grid)
    latents = model._scaled(model.vqvae_.encode(images))
    return latents, ConditionBatch.of(model.conditions_, values, len(images)).numbers


def unexplained_share(latents, numbers, conditions, others, other_numbers):
    """Return the share of other latents' variance that conditions leave unexplained."""
    mean = latents.mean(0)
    expected = ConditionalMean.learn(latents - mean, numbers, conditions).predict(
        other_numbers
    )
    residual = others - mean
    return float(np.mean((residual - expected) ** 2) / np.mean(residual**2))


MEASURES = {
    "generated": (add_generated_options, score_generated),
    "conditional_mean": (add_mean_options, score_conditional_mean),
}


if __name__ == "__main__":
    print_scores(make_parser(__doc__, MEASURES))
