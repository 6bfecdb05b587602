"""Evaluation of a model: its samples compared with real images."""

from collections.abc import Iterable, Mapping, Sequence
import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt

from dipy_ldm import VQVAE, InputError, LatentDiffusion
from dipy_ldm._conditions import (
    ConditionsLike,
    requested_columns,
    without_unknown_levels,
)
from dipy_ldm._utils.checks import check_seed, whole
from dipy_ldm._utils.subjects import number_subjects
from dipy_ldm._utils.values import listed, take_rows, with_codes
from dipy_ldm.data import _sources as sources
from dipy_ldm.data._batches import rescale
from dipy_ldm.data._image_checks import check_finite, check_range
from dipy_ldm.data._scans import ImagesLike
from dipy_ldm.data._table_rows import join_rows
from dipy_ldm.evaluation import two_sample
from dipy_ldm.evaluation._fidelity import MIN_IMAGES, Sets
from dipy_ldm.evaluation._measures import Comparison, Evaluation, measure_all
from dipy_ldm.evaluation.features import Features, features_of

__all__ = ["Evaluation", "evaluate"]

# Sets whose sizes differ by a larger factor are taken for a mistake.
_MAX_SIZE_RATIO = 10
# Images of each set; with more, figures hardly change.
MAX_IMAGES = 5000
# Subjects in each half that intervals need.
_MIN_SUBJECTS = 4
# Random splits to try: subjects with many images may leave too few for the other half.
_N_SPLITS = 16


def evaluate(
    model: LatentDiffusion,
    real: ImagesLike,
    generated: ImagesLike | None = None,
    *,
    n: int | None = None,
    conditions: ConditionsLike = None,
    source: npt.ArrayLike | None = None,
    requested: ConditionsLike = None,
    subjects: npt.ArrayLike | None = None,
    subjects_generated: npt.ArrayLike | None = None,
    features: Sequence[Features] | None = None,
    classifier: bool = False,
    seed: int = 0,
    verbose: bool = False,
    **sampling: Any,
) -> Evaluation:
    """Compare the samples of a model with real images.

    All sets are compared with the reference, half of the real images. The other half is
    the floor, and as many samples are generated.

    Parameters
    ----------
    model : LatentDiffusion
        Fitted model.
    real : array_like or Volumes
        Images that it was not trained on, ``(n, *space, channels)``, in the range of
        the training images, in random order.
    generated : array_like or Volumes, optional
        Samples of the model. Default: they are generated.
    n : int, optional
        Number of images of each set. Default: as many as there are, up to 5000.
    conditions : dict of str to sequence or DataFrame, optional
        Of each real image. Samples are requested with those of the floor.
    source : array_like, optional
        Source image of each real image, for models conditioned on source images, as of
        :meth:`dipy_ldm.LatentDiffusion.predict`. Samples are generated from those of
        the floor; not needed with `generated`.
    requested : dict of str to sequence or DataFrame, optional
        Conditions that the images of `generated` were requested with.
    subjects : array_like, optional
        Subject of each real image, such as ``"sub-01"``: no subject is in both halves,
        and intervals are those of subjects. Default: those of Volumes and file names,
        or all differ.
    subjects_generated : array_like, optional
        Subject of the source image of each image of `generated`. Such samples are close
        to images of the subject by design, and left out if it is in the reference.
        Default: those of Volumes and file names, or no source images.
    features : sequence of Features, optional
        To compare. Default: :func:`dipy_ldm.evaluation.features.features_of`.
    classifier : bool
        Also run classifier two-sample tests (:mod:`dipy_ldm.evaluation.two_sample`),
        which take minutes.
    seed : int
        Of the noise, and of the bootstrap.
    verbose : bool
        Show progress bars.
    **sampling
        As of :meth:`dipy_ldm.LatentDiffusion.predict`.

    Returns
    -------
    Evaluation
        Figures and images.

    Raises
    ------
    InputError
        If there are too few images, or they do not fit the model.
    """
    of_generated = {"requested": requested, "subjects_generated": subjects_generated}
    check_arguments(model, generated, of_generated, sampling, seed)
    kinds = _list_features(model, features)
    images, owners = _read_images(model, real, subjects, "real image")
    conditions = read_usable(model, "conditions", conditions, len(images), owners)
    subject_ids, origins = number_subjects(owners, len(images)), None
    if generated is not None:
        samples, named = _read_images(
            model, generated, subjects_generated, "generated image"
        )
        requested = read_conditions(model, "requested", requested, len(samples), named)
        origins = _number_samples(named, len(samples), owners, len(images))
    n_samples = None if origins is None else len(origins)
    rows = _choose_sets(
        subject_ids, choose_sample_count(len(images), n_samples, n), origins
    )
    notes = _describe_counts(subject_ids, rows, origins)
    if classifier:
        kind, minimum = "generated and as many reference", two_sample.MIN_IMAGES
        refuse_few("`classifier`", kind, len(rows[0]), minimum)
    if origins is None:
        source = sources_of(model, source, len(images))
        options = {"seed": seed, "verbose": verbose, **sampling}
        samples, requested = generate(model, rows[1], conditions, source, options)
        # Subjects of the source images, or none.
        nobody = len(images) + np.arange(len(samples))
        origins = nobody if source is None else subject_ids[rows[1]]
    else:
        samples, requested = samples[rows[2]], take_rows(requested, rows[2])
        origins = origins[rows[2]]
    of_sets = _by_set(subject_ids[rows[0]], subject_ids[rows[1]], origins)
    sets = _sets(model.vqvae_, images, rows, samples, of_sets)
    reference, floor = (take_rows(conditions, indices) for indices in rows[:2])
    labels = _by_set(reference, floor, requested)
    return measure_all(
        Comparison(model, sets, labels, kinds, classifier, seed, verbose, notes)
    )


def _list_features(
    model: LatentDiffusion, features: Sequence[Features] | None
) -> list[Features]:
    """Return features, by default those for the model; refuse equal names."""
    kinds = features_of(model) if features is None else list(features)
    names = [kind.name for kind in kinds]
    if len(set(names)) < len(names):
        raise InputError(
            f"`features` must have different names, not {listed(names)}",
            "name yours with own(function, name)",
        )
    return kinds


def _number_samples(
    owners: Sequence | None, n: int, subjects: Sequence | None, n_real: int
) -> np.ndarray:
    """Return subject numbers of samples, shared with those of the real images."""
    numbers = number_subjects(owners, n, "subjects_generated") + n_real
    if owners is None or subjects is None:
        return numbers
    return number_subjects([*subjects, *owners], n_real + n)[n_real:]


def _by_set(reference: Any, real: Any, generated: Any) -> dict[str, Any]:
    """Return values by set; reconstructions have those of the real images."""
    sets = {"reference": reference, "real": real, "reconstructed": real}
    return sets | {"generated": generated}


def _read_images(
    model: LatentDiffusion,
    images: ImagesLike,
    subjects: npt.ArrayLike | None,
    name: str,
) -> tuple[np.ndarray, Any]:
    """Return images of the model's shape, checked to be finite, and their subjects."""
    array, subjects = model._read_images(images, subjects)
    check_finite(array, range(len(array)), name)
    return array, subjects


def check_arguments(
    model: LatentDiffusion,
    generated: object,
    of_generated: Mapping[str, object],
    sampling: Mapping[str, Any],
    seed: int,
) -> None:
    """Refuse unfitted models, invalid seeds, and options without effect."""
    if not isinstance(model, LatentDiffusion):
        raise InputError(
            f"`model` must be a LatentDiffusion, not {model!r}",
            "load a file or a packaged model with LatentDiffusion.load(name)",
        )
    model._check_fitted()
    check_seed(seed)
    if generated is not None and sampling:
        raise InputError(
            f"`{next(iter(sampling))}` has no effect on images that are generated "
            "already",
            "remove it, or correct its spelling",
        )
    for name, values in of_generated.items():
        if generated is None and values is not None:
            raise InputError(
                f"`{name}` describes `generated`", "give these images, too"
            )


def read_conditions(
    model: LatentDiffusion,
    option: str,
    conditions: ConditionsLike,
    n: int,
    subjects: Any = None,
) -> dict[str, list] | None:
    """Return conditions as lists, checked to have a value for each of n images."""
    table = requested_columns(model.conditions_, join_rows(conditions, subjects))
    columns = {name: with_codes(name, values) for name, values in table.items()}
    for name, values in columns.items():
        if len(values) != n:
            raise InputError(
                f"`{option}` must have {n} values of {name}, one for each image, not "
                f"{len(values)}"
            )
    return columns or None


def read_usable(model: LatentDiffusion, *of_images: Any) -> dict[str, list] | None:
    """Return conditions as :func:`read_conditions`, without unknown levels."""
    return without_unknown_levels(model.conditions_, read_conditions(model, *of_images))


def sources_of(
    model: LatentDiffusion, source: npt.ArrayLike | None, n: int, name: str = "source"
) -> np.ndarray | None:
    """Return the source image of each of n images, or the same for all."""
    space = model.vqvae_.shape_[:-1]
    array = sources.check(model.source_, source, space, n=n, name=name)
    return None if array is None else np.broadcast_to(array, (n, *array.shape[1:]))


def generate(
    model: LatentDiffusion,
    rows: np.ndarray,
    conditions: Mapping[str, Sequence] | None,
    source: np.ndarray | None,
    options: dict[str, Any],
) -> tuple[np.ndarray, dict[str, list] | None]:
    """Generate a sample for each row of conditions and source images.

    Return samples and their requested conditions.
    """
    if source is not None:
        source = source[rows]
    requested = take_rows(conditions, rows)
    images = model.predict(len(rows), conditions=requested, source=source, **options)
    return images, requested


def choose_sample_count(
    real: int, generated: int | None = None, n: int | None = None
) -> int:
    """Return the maximum number of images of each set to compare."""
    if n is not None:
        whole("n", n, MIN_IMAGES)
    elif generated is not None:
        refuse_unequal(real, generated, "real")
    refuse_few("an evaluation", "real", real, 2 * MIN_IMAGES)
    if generated is not None:
        refuse_few("an evaluation", "generated", generated, MIN_IMAGES)
    limits = [real // 2, MAX_IMAGES] + [x for x in (generated, n) if x is not None]
    return min(limits)


def refuse_few(task: str, kind: str, count: int, minimum: int) -> None:
    """Refuse sets that are too small for a task."""
    if count < minimum:
        raise InputError(
            f"{task} needs {minimum} {kind} images, not {count}", "give more"
        )


def _describe_counts(
    subject_ids: np.ndarray, rows: np.ndarray, of_samples: np.ndarray | None
) -> list[str]:
    """Return notes on the numbers of images that are compared."""
    count, n_subjects = len(rows[0]), len(np.unique(subject_ids))
    start = f"Of {len(subject_ids)} real images, {count} are the reference of all "
    notes = [f"{start}comparisons, and {count} others are the floor."]
    if of_samples is not None and count < len(of_samples):
        notes.append(f"Of {len(of_samples)} generated images, {count} are compared.")
        if shared := np.isin(of_samples, subject_ids[rows[0]]).sum():
            notes.append(
                f"{shared} were left out, since their source images are of subjects of "
                "the reference."
            )
    if n_subjects < len(subject_ids):
        notes.append(
            f"The real images are of {n_subjects} subjects, none of whom is in both "
            "halves, and intervals are those of subjects."
        )
    return notes


def refuse_unequal(real: int, generated: int, kind: str) -> None:
    """Refuse sets whose sizes differ more than tenfold."""
    if max(real, generated) > _MAX_SIZE_RATIO * min(real, generated):
        raise InputError(
            f"there are {real} {kind} and {generated} generated images",
            "give sets whose sizes differ less than tenfold, or set the number by `n`",
        )


def _choose_sets(
    subject_ids: np.ndarray, count: int, of_samples: np.ndarray | None = None
) -> np.ndarray:
    """Choose reference images, and real images and samples of other subjects.

    Return rows ``(3, n)``; samples that are not generated yet are of the real images.
    """
    n_subjects, order = len(np.unique(subject_ids)), np.arange(len(subject_ids))
    repeated = n_subjects < len(subject_ids)
    for draw in range(_N_SPLITS if repeated else 1):
        if repeated:
            # In a random order of images, subjects with many tend to come first.
            drawn = np.random.default_rng(draw).permutation(subject_ids.max() + 1)
            order = np.argsort(drawn[subject_ids], kind="stable")
        if of_samples is not None:
            # First subjects without samples: samples of the reference are left out.
            has_samples = np.isin(subject_ids[order], of_samples)
            order = order[np.argsort(has_samples, kind="stable")]
        rows, fewest = _halve(order, subject_ids, count, of_samples)
        if rows.shape[1] >= MIN_IMAGES and fewest >= _MIN_SUBJECTS:
            return rows
    further = ", and as many samples must be of subjects outside the first half"
    raise InputError(
        f"the real images are of {n_subjects} subjects: each half needs {MIN_IMAGES} "
        f"images of {_MIN_SUBJECTS} subjects or "
        f"more{'' if of_samples is None else further}",
        "give images of more subjects",
    )


def _halve(
    order: np.ndarray,
    subject_ids: np.ndarray,
    count: int,
    of_samples: np.ndarray | None,
) -> tuple[np.ndarray, int]:
    """Return rows ``(3, n)`` of reference, and of real images and samples of others.

    As many as possible, up to count; with the lowest number of subjects of a set.
    """
    sample_ids, candidates = subject_ids, order
    if of_samples is not None:
        sample_ids, candidates = of_samples, np.arange(len(of_samples))
    for n in range(count, -1, -1):
        reference = subject_ids[order[:n]]
        real = order[~np.isin(subject_ids[order], reference)]
        samples = candidates[~np.isin(sample_ids[candidates], reference)]
        if min(len(real), len(samples)) >= n:
            break
    owners = reference, subject_ids[real[:n]], sample_ids[samples[:n]]
    rows = np.stack([order[:n], real[:n], samples[:n]])
    return rows, min(len(np.unique(x)) for x in owners)


def _sets(
    vqvae: VQVAE,
    images: np.ndarray,
    rows: np.ndarray,
    samples: np.ndarray,
    subjects: dict[str, np.ndarray],
) -> Sets:
    """Return sets of equal size, in [0, 1], with reconstructions."""
    reference, real = (np.asarray(images[i], "float32") for i in rows[:2])
    generated = np.asarray(samples, "float32")
    refuse_real([*reference, *real], generated)
    arrays = reference, real, generated, vqvae.predict(real)
    return Sets._make([*(scaled(array, vqvae) for array in arrays), subjects])


def refuse_real(real: Iterable[np.ndarray], generated: Iterable[np.ndarray]) -> None:
    """Refuse generated images that are identical to real ones."""

    def digest(image: np.ndarray) -> bytes:
        return hashlib.sha256(image.tobytes()).digest()

    of_real = set(map(digest, real))
    if count := sum(digest(image) in of_real for image in generated):
        raise InputError(
            f"{count} of the generated images are real ones", "give two disjoint sets"
        )


def scaled(images: np.ndarray, vqvae: VQVAE, first: int = 0) -> np.ndarray:
    """Scale images ``(n, *space, channels)`` from the training range to [0, 1].

    Images out of range are refused, by numbers that start from first.
    """
    numbers = range(first, first + len(images))
    check_range(images, vqvae.intensity_, numbers)
    return np.clip(rescale(np.asarray(images, "float32"), vqvae.intensity_), 0, 1)


def as_json(figures: Any) -> Any:
    """Return figures as JSON data: records such as intervals become dictionaries."""
    if hasattr(figures, "_asdict"):
        figures = figures._asdict()
    if isinstance(figures, Mapping):
        return {name: as_json(value) for name, value in figures.items()}
    if isinstance(figures, list | tuple):
        return [as_json(value) for value in figures]
    return figures.tolist() if isinstance(figures, np.generic | np.ndarray) else figures
