"""Evaluation of a model: its samples compared with real images."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt

from dipy_ldm._conditions import (
    ConditionsLike,
    requested_columns,
    without_unknown_levels,
)
from dipy_ldm._utils.checks import InputError, check_seed, whole
from dipy_ldm._utils.progress import tqdm
from dipy_ldm._utils.subjects import number_subjects
from dipy_ldm._utils.values import listed, take_rows, with_codes
from dipy_ldm.data import _sources as sources
from dipy_ldm.data._batches import rescale
from dipy_ldm.data._image_checks import check_finite, check_range
from dipy_ldm.data._scans import ImagesLike
from dipy_ldm.data._table_rows import join_rows
from dipy_ldm.data.channels import scan_column
from dipy_ldm.evaluation import (
    _anatomy as anatomy,
    _fidelity as fidelity,
    two_sample,
)
from dipy_ldm.evaluation._condition_probe import class_accuracy, probe_all
from dipy_ldm.evaluation._evaluation_report import Evaluation
from dipy_ldm.evaluation._fidelity import MIN_IMAGES, Sets
from dipy_ldm.evaluation.features import Features, classify, features_of
from dipy_ldm.latent_diffusion import LatentDiffusion
from dipy_ldm.vqvae import VQVAE

__all__ = ["Evaluation", "evaluate"]

# Sets whose sizes differ by a larger factor are taken for a mistake.
_MAX_SIZE_RATIO = 10
# Images of each set; with more, figures hardly change.
MAX_IMAGES = 5000
# Subjects in each half that intervals need.
_MIN_SUBJECTS = 4
# Random splits to try: subjects with many images may leave too few for the other half.
_N_SPLITS = 16
# Accuracy of the packaged classifier that shows that images are digits.
_MIN_DIGIT_ACCURACY = 0.9


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
    images, subjects = _read_images(model, real, subjects, "real image")
    conditions = read_usable(model, "conditions", conditions, len(images), subjects)
    subject_ids, origins = number_subjects(subjects, len(images)), None
    if generated is not None:
        samples, own = _read_images(
            model, generated, subjects_generated, "generated image"
        )
        requested = read_conditions(model, "requested", requested, len(samples), own)
        origins = _number_samples(own, len(samples), subjects, len(images))
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
    subjects = _by_set(subject_ids[rows[0]], subject_ids[rows[1]], origins)
    sets = _sets(model.vqvae_, images, rows, samples, subjects)
    reference, floor = (take_rows(conditions, own) for own in rows[:2])
    labels = _by_set(reference, floor, requested)
    return _measure(model, sets, labels, kinds, notes, classifier, seed, verbose)


def _list_features(model, features):
    """Return features, by default those for the model; refuse equal names."""
    kinds = features_of(model) if features is None else list(features)
    names = [kind.name for kind in kinds]
    if len(set(names)) < len(names):
        raise InputError(
            f"`features` must have different names, not {listed(names)}",
            "name yours with own(function, name)",
        )
    return kinds


def _number_samples(own, n, subjects, n_real):
    """Return subject numbers of samples, shared with those of the real images."""
    numbers = number_subjects(own, n, "subjects_generated") + n_real
    if own is None or subjects is None:
        return numbers
    return number_subjects([*subjects, *own], n_real + n)[n_real:]


def _by_set(reference, real, generated):
    """Return values by set; reconstructions have those of the real images."""
    sets = {"reference": reference, "real": real, "reconstructed": real}
    return sets | {"generated": generated}


def _read_images(model, images, subjects, name):
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
    joined = join_rows(conditions, subjects)
    table = requested_columns(
        model.conditions_, conditions if joined is None else joined
    )
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
    own = None if source is None else source[rows]
    requested = take_rows(conditions, rows)
    images = model.predict(len(rows), conditions=requested, source=own, **options)
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


def _describe_counts(subject_ids, rows, of_samples):
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


def _choose_sets(subject_ids, count, of_samples=None):
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


def _halve(order, subject_ids, count, of_samples):
    """Return rows ``(3, n)`` of reference, and of real images and samples of others.

    As many as possible, up to count; with the lowest number of subjects of a set.
    """
    own, places = subject_ids, order
    if of_samples is not None:
        own, places = of_samples, np.arange(len(of_samples))
    for n in range(count, -1, -1):
        reference = subject_ids[order[:n]]
        real = order[~np.isin(subject_ids[order], reference)]
        samples = places[~np.isin(own[places], reference)]
        if min(len(real), len(samples)) >= n:
            break
    owners = reference, subject_ids[real[:n]], own[samples[:n]]
    rows = np.stack([order[:n], real[:n], samples[:n]])
    return rows, min(len(np.unique(x)) for x in owners)


def _sets(vqvae, images, rows, samples, subjects):
    """Return sets of equal size, in [0, 1], with reconstructions."""
    reference, real = (np.asarray(images[own], "float32") for own in rows[:2])
    generated = np.asarray(samples, "float32")
    refuse_real([*reference, *real], generated)
    arrays = reference, real, generated, vqvae.predict(real)
    return Sets._make([*(scaled(array, vqvae) for array in arrays), subjects])


def refuse_real(real: Iterable[np.ndarray], generated: Iterable[np.ndarray]) -> None:
    """Refuse generated images that are identical to real ones."""

    def digest(image):
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


def run_tasks(
    tasks: Mapping[str, Callable], verbose: bool, prefix: str = ""
) -> dict[str, Any]:
    """Run tasks in order, with a progress bar, and return their results by name."""
    results = {}
    bar = tqdm(tasks.items(), disable=not verbose)
    for name, task in bar:
        bar.set_description(prefix + name)
        results[name] = task()
    return results


def _measure(model, sets, labels, kinds, notes, classifier, seed, verbose):
    """Return the evaluation with all its figures."""
    affine = model.vqvae_.affine_ if sets.real.ndim == 5 else None
    tasks = {k.name: partial(_compare_features, sets, k, seed) for k in kinds}
    compared = run_tasks(tasks, verbose, "features, ")
    rows = {name: features for name, (features, _) in compared.items()}
    fidelities = {name: own for name, (_, own) in compared.items()}
    figures: dict[str, Any] = {"n": len(sets.real), "features": fidelities}
    figures |= run_tasks(_further_tasks(model, sets, affine, seed), verbose)
    measured = figures.pop("anatomy", {})
    if measured:
        differences = anatomy.compare_anatomy(measured, sets, seed)
        unit = "standard deviations of the real volumes"
        figures["anatomy"] = {"unit": unit, **differences}
    network = None
    if classifier:
        network, figures["classifier"] = _two_sample_tests(sets, rows, seed, verbose)
    # Features of the model's own encoder would favour its samples.
    independent = {kind.name: rows[kind.name] for kind in kinds if kind.independent}
    probes, probe_notes = _probe(model, sets, labels, independent, figures, seed)
    rest = affine, notes + probe_notes, network, model.channels_
    return Evaluation(figures, sets, measured, probes, *rest)


def _compare_features(sets, kind, seed):
    """Return the features of all sets, and the figures in these."""
    rows = fidelity.compute_features(sets, kind)
    figures = fidelity.measure_fidelity(rows, seed, sets.subjects)
    return rows, {"version": kind.version, "says": kind.says, "figures": figures}


def _further_tasks(model, sets, affine, seed):
    """Return the tasks that measure images without features."""
    tasks = {
        "variety": partial(fidelity.measure_variety, sets, seed),
        "sharpness": partial(fidelity.measure_sharpness, sets, seed),
        "reconstruction": partial(
            fidelity.measure_reconstruction, model.vqvae_, sets, seed
        ),
    }
    if affine is None:
        return tasks
    tasks["texture"] = partial(fidelity.measure_texture, sets, seed)
    channels = model.channels_
    if (column := scan_column(channels)) is not None:
        tasks["anatomy"] = partial(_measure_anatomy, sets, affine, column)
    if channels:
        bounds = model.vqvae_.intensity_
        measure = anatomy.measure_channels
        tasks["channels"] = partial(measure, channels, sets, affine, seed, bounds)
    return tasks


def _measure_anatomy(sets, affine, column):
    """Measure one channel of the volumes of each set."""
    return {
        name: anatomy.measure_anatomy(volumes[..., column : column + 1], affine)
        for name, volumes in sets.by_name.items()
    }


def _two_sample_tests(sets, rows, seed, verbose):
    """Run classifier two-sample tests of each set against the reference."""
    images = sets.by_name
    greys = {name: two_sample.grey_levels(x) for name, x in images.items()}

    def against_reference(test, by_set, name):
        subjects = sets.subjects_of("reference", name)
        return test(by_set["reference"], by_set[name], subjects=subjects, seed=seed)

    tasks = {
        name: partial(against_reference, two_sample.network_test, images, name)
        for name in sets.compared
    }
    tests = run_tasks(tasks, verbose, "classifier, ")
    figures: dict[str, dict] = {
        "network": {name: test.auc for name, test in tests.items()},
        "learnt": {name: test.learnt for name, test in tests.items()},
        "rounds": {name: test.rounds for name, test in tests.items()},
    }
    figures["features"] = {
        kind: {n: against_reference(two_sample.logistic_test, x, n) for n in tests}
        for kind, x in (rows | {"grey levels": greys}).items()
    }
    return tests["generated"], figures


def _probe(model, sets, labels, rows, figures, seed):
    """Compare requested conditions with those that linear probes predict."""
    conditions = dict(model.conditions_)
    if accuracy := _digit_accuracy(sets, labels):
        figures["as_asked"] = accuracy
        conditions.pop("label", None)
    probes, notes = probe_all(conditions, labels, rows, seed, sets.subjects)
    if probes:
        figures["probes"] = {name: one.as_figures() for name, one in probes.items()}
    return probes, notes


def _digit_accuracy(sets, labels_of_sets):
    """Measure the share of digits that are classified as requested."""
    labels = {n: (labels_of_sets[n] or {}).get("label", [None]) for n in sets.compared}
    unknown = any(None in values for values in labels.values())
    if sets.real.shape[1:] != (28, 28, 1) or unknown:
        return None
    right = {
        name: class_accuracy(labels[name], classify(images).argmax(1))
        for name, images in sets.compared.items()
    }
    # Otherwise these are no digits, but other images of this size.
    return right if right["real"].value > _MIN_DIGIT_ACCURACY else None


def as_json(figures: Any) -> Any:
    """Return figures as JSON data: records such as intervals become dictionaries."""
    if hasattr(figures, "_asdict"):
        figures = figures._asdict()
    if isinstance(figures, Mapping):
        return {name: as_json(value) for name, value in figures.items()}
    if isinstance(figures, list | tuple):
        return [as_json(value) for value in figures]
    return figures.tolist() if isinstance(figures, np.generic | np.ndarray) else figures
