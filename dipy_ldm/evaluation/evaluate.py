"""Evaluating a model: all figures of what it makes, beside those of real images."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt

from dipy_ldm._conditions import ConditionsLike, check_names, without_unknown_levels
from dipy_ldm._utils.checks import InputError, check_seed, whole
from dipy_ldm._utils.progress import tqdm
from dipy_ldm._utils.subjects import number_subjects
from dipy_ldm._utils.values import listed, take_rows, with_codes
from dipy_ldm.data import _sources as sources
from dipy_ldm.data._batches import scaled_to
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

# Sets whose sizes differ more than so much are taken for a mistake.
_MAX_SIZE_RATIO = 10
# A set with more than so many is cut: figures hardly change any more.
MAX_IMAGES = 5000
# Subjects on each side, with fewer of whom no interval can be told.
_MIN_SUBJECTS = 4
# Ways to halve subjects that are tried: some with many images leave too few to others.
_DRAWS = 16
# Share of real digits that the packaged classifier must be right about.
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
    """Compare what a model generates with real images.

    Half of the real images is what all others are compared with. The other half is the
    floor, and as many are generated.

    Parameters
    ----------
    model : LatentDiffusion
        Fitted model.
    real : array_like or Volumes
        Images that it was not trained on, ``(n, *space, channels)``, in the range of
        the training images, in a drawn order.
    generated : array_like or Volumes, optional
        What it generated. None is for generating them now.
    n : int, optional
        How many of each kind to compare; as many as there are, up to 5000, if None.
    conditions : dict of str to sequence or DataFrame, optional
        Of each real image. The generated ones are asked for with those of the floor.
    source : array_like, optional
        Source image of each real image, for models conditioned on source images, as of
        :meth:`dipy_ldm.LatentDiffusion.predict`. Samples are made from those of the
        floor; not needed for given ones.
    requested : dict of str to sequence or DataFrame, optional
        What images that are given as generated were asked to be.
    subjects : array_like, optional
        Whose each real image is, such as ``"sub-01"``, so that no subject is on both
        sides, and intervals are those of other subjects. None is for others all, or
        those that Volumes and names of files tell.
    subjects_generated : array_like, optional
        Of whose image each given sample was made, if it was. It is near to that by
        design, so that none of a subject of the reference is compared. None is for
        samples of noise alone, or for those that Volumes and names of files tell.
    features : sequence of Features, optional
        What to compare in; those of :func:`dipy_ldm.evaluation.features.features_of` if
        None.
    classifier : bool
        Also let classifiers tell images of each kind from real ones, as of
        :mod:`dipy_ldm.evaluation.two_sample`, which takes minutes.
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
        If there are too few images, or they are not of the model.
    """
    of_generated = {"requested": requested, "subjects_generated": subjects_generated}
    check_arguments(model, generated, of_generated, sampling, seed)
    kinds = features_of(model) if features is None else list(features)
    _refuse_equal_names(kinds)
    images, subjects = _read_images(model, real, subjects, "real image")
    conditions = read_usable(model, "conditions", conditions, len(images), subjects)
    whose, origins = number_subjects(subjects, len(images)), None
    if generated is not None:
        samples, own = _read_images(
            model, generated, subjects_generated, "generated image"
        )
        requested = read_conditions(model, "requested", requested, len(samples), own)
        origins = _number_samples(own, len(samples), subjects, len(images))
    n_samples = None if origins is None else len(origins)
    rows = _apart(whose, choose_sample_count(len(images), n_samples, n), origins)
    notes = _describe_counts(whose, rows, origins)
    if classifier:
        two_sample.check_count(len(rows[0]))
    if origins is None:
        source = sources_of(model, source, len(images))
        options = {"seed": seed, "verbose": verbose, **sampling}
        samples, requested = generate(model, rows[1], conditions, source, options)
        # Of whose sources they are made, or of none.
        nobody = len(images) + np.arange(len(samples))
        origins = nobody if source is None else whose[rows[1]]
    else:
        samples, requested = samples[rows[2]], take_rows(requested, rows[2])
        origins = origins[rows[2]]
    subjects = _by_set(whose[rows[0]], whose[rows[1]], origins)
    sets = _sets(model.vqvae_, images, rows, samples, subjects)
    reference, floor = (take_rows(conditions, own) for own in rows[:2])
    labels = _by_set(reference, floor, requested)
    return _measure(model, sets, labels, kinds, notes, classifier, seed, verbose)


def _refuse_equal_names(features):
    """Refuse features of the same name, by which their figures are kept."""
    names = [kind.name for kind in features]
    if len(set(names)) < len(names):
        raise InputError(
            f"`features` must have different names, not {listed(names)}; name yours "
            "with own(function, name)."
        )


def _number_samples(own, n, subjects, n_real):
    """Return numbers of the subjects of samples: of real images those of these."""
    numbers = number_subjects(own, n, "subjects_generated") + n_real
    if own is None or subjects is None:
        return numbers
    return number_subjects([*subjects, *own], n_real + n)[n_real:]


def _by_set(reference, real, generated):
    """Name what belongs to the images of each set: reconstructions are of real ones."""
    sets = {"reference": reference, "real": real, "reconstructed": real}
    return sets | {"generated": generated}


def _read_images(model, images, subjects, name):
    """Return images of the model's shape, if they are finite, and whose they are."""
    array, subjects = model._read_images(images, subjects)
    return check_finite(array, range(len(array)), name), subjects


def check_arguments(
    model: LatentDiffusion,
    generated: object,
    of_generated: Mapping[str, object],
    sampling: Mapping[str, Any],
    seed: int,
) -> None:
    """Refuse what is no fitted model, invalid seeds, and options without effect."""
    if not isinstance(model, LatentDiffusion):
        raise InputError(
            f"`model` must be a LatentDiffusion, not {model!r}; of a file or a name it "
            "is LatentDiffusion.load(name)."
        )
    model._check_fitted()
    check_seed(seed)
    if generated is not None and sampling:
        raise InputError(
            f"`{next(iter(sampling))}` has no effect on images that are generated "
            "already; leave it out, or correct its spelling."
        )
    for name, values in of_generated.items():
        if generated is None and values is not None:
            raise InputError(f"`{name}` is of `generated`; give these images, too.")


def read_conditions(
    model: LatentDiffusion,
    option: str,
    conditions: ConditionsLike,
    n: int,
    subjects: Any = None,
) -> dict[str, list] | None:
    """Return conditions as lists; refuse those without a value for each of n images."""
    joined = join_rows(conditions, subjects)
    table = check_names(model.conditions_, conditions if joined is None else joined)
    columns = {name: with_codes(name, values) for name, values in table.items()}
    for name, values in columns.items():
        if len(values) != n:
            raise InputError(
                f"`{option}` must have {n} values of {name}, one for each image, not "
                f"{len(values)}."
            )
    return columns or None


def read_usable(model: LatentDiffusion, *of_images: Any) -> dict[str, list] | None:
    """Return conditions as :func:`read_conditions`, without levels of no training."""
    return without_unknown_levels(model.conditions_, read_conditions(model, *of_images))


def sources_of(
    model: LatentDiffusion, source: npt.ArrayLike | None, n: int, name: str = "source"
) -> np.ndarray | None:
    """Return the source of each of n images, of which one may be that of all."""
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
    """Generate a sample for each of some rows of conditions and source images.

    Returned are samples, and the conditions that they were asked for with.
    """
    own = None if source is None else source[rows]
    requested = take_rows(conditions, rows)
    images = model.predict(len(rows), conditions=requested, source=own, **options)
    return images, requested


def choose_sample_count(
    real: int, generated: int | None = None, n: int | None = None
) -> int:
    """Choose how many images of each kind are compared, at most."""
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
            f"{task} needs {minimum} {kind} images, not {count}; give more."
        )


def _describe_counts(whose, rows, of_samples):
    """Note how many images of each kind are compared."""
    count, n_subjects = len(rows[0]), len(np.unique(whose))
    start = f"{count} of the {len(whose)} real images are what all others are compared "
    notes = [f"{start}with, and {count} others are the floor."]
    if of_samples is not None and count < len(of_samples):
        notes.append(f"Of {len(of_samples)} generated images, {count} are compared.")
        if shared := np.isin(of_samples, whose[rows[0]]).sum():
            notes.append(
                f"{shared} were left out, since they were made of images of subjects "
                "with whom all are compared."
            )
    if n_subjects < len(whose):
        notes.append(
            f"The real images are of {n_subjects} subjects, none of whom is on both "
            "sides, and intervals are those of subjects."
        )
    return notes


def refuse_unequal(real: int, generated: int, kind: str) -> None:
    """Refuse sets whose sizes differ so much that a mistake is likely."""
    if max(real, generated) > _MAX_SIZE_RATIO * min(real, generated):
        raise InputError(
            f"there are {real} {kind} and {generated} generated images; give sets "
            "whose sizes differ less than tenfold, or a number with `n`."
        )


def _apart(whose, count, of_samples=None):
    """Choose images to compare with, and others and samples, none of their subjects.

    Returns rows, ``(3, n)``; samples that are not made yet will be of the others.
    """
    n_subjects = len(np.unique(whose))
    for draw in range(_DRAWS if n_subjects < len(whose) else 1):
        order = np.arange(len(whose))
        if n_subjects < len(whose):
            # Of images in a drawn order, subjects with many tend to be first.
            drawn = np.random.default_rng(draw).permutation(whose.max() + 1)
            order = np.argsort(drawn[whose], kind="stable")
        if of_samples is not None:
            # First those of whom there are no samples, which would be left out.
            order = order[np.argsort(np.isin(whose[order], of_samples), kind="stable")]
        rows, fewest = _halve(order, whose, count, of_samples)
        if rows.shape[1] >= MIN_IMAGES and fewest >= _MIN_SUBJECTS:
            return rows
    further = ", and as many generated ones must be of nobody in the first"
    raise InputError(
        f"the real images are of {n_subjects} subjects: each half needs {MIN_IMAGES} "
        f"images of {_MIN_SUBJECTS} subjects or more"
        f"{'' if of_samples is None else further}; give images of more subjects."
    )


def _halve(order, whose, count, of_samples):
    """Take as many images of each kind as there are of other subjects.

    Returns rows ``(3, n)``, and of how few subjects the images of a kind are.
    """
    own, places = whose, order
    if of_samples is not None:
        own, places = of_samples, np.arange(len(of_samples))
    for n in range(count, -1, -1):
        reference = whose[order[:n]]
        real = order[~np.isin(whose[order], reference)]
        samples = places[~np.isin(own[places], reference)]
        if min(len(real), len(samples)) >= n:
            break
    owners = reference, whose[real[:n]], own[samples[:n]]
    rows = np.stack([order[:n], real[:n], samples[:n]])
    return rows, min(len(np.unique(x)) for x in owners)


def _sets(vqvae, images, rows, samples, subjects):
    """Make sets of equal sizes, in [0, 1], with reconstructions."""
    reference, real = (np.asarray(images[own], "float32") for own in rows[:2])
    generated = np.asarray(samples, "float32")
    refuse_real([*reference, *real], generated)
    arrays = reference, real, generated, vqvae.predict(real)
    return Sets._make([*(scaled(array, vqvae) for array in arrays), subjects])


def refuse_real(real: Iterable[np.ndarray], generated: Iterable[np.ndarray]) -> None:
    """Refuse generated images that are real ones, to the bit."""

    def digest(image):
        return hashlib.sha256(image.tobytes()).digest()

    of_real = set(map(digest, real))
    if count := sum(digest(image) in of_real for image in generated):
        raise InputError(
            f"{count} of the generated images are real ones; give images that the "
            "model generated, and others that it did not."
        )


def scaled(images: np.ndarray, vqvae: VQVAE, first: int = 0) -> np.ndarray:
    """Scale images from the training range to [0, 1], or refuse them.

    Shapes: images ``(n, *space, channels)``; the number of the first is named.
    """
    numbers = range(first, first + len(images))
    check_range(images, vqvae.intensity_, numbers)
    return np.clip(scaled_to(np.asarray(images, "float32"), vqvae.intensity_), 0, 1)


def run_tasks(
    tasks: Mapping[str, Callable], verbose: bool, prefix: str = ""
) -> dict[str, Any]:
    """Run tasks one after the other, behind a progress bar with their names."""
    results = {}
    bar = tqdm(tasks.items(), disable=not verbose)
    for name, task in bar:
        bar.set_description(prefix + name)
        results[name] = task()
    return results


def _measure(model, sets, labels, kinds, notes, classifier, seed, verbose):
    """Measure all figures."""
    affine = model.vqvae_.affine_ if sets.real.ndim == 5 else None
    tasks = {k.name: partial(fidelity.compute_features, sets, k) for k in kinds}
    rows = run_tasks(tasks, verbose, "features, ")
    tasks = {
        kind.name: partial(_compare_features, sets, kind, rows[kind.name], seed)
        for kind in kinds
    }
    compared = run_tasks(tasks, verbose, "fidelity, ")
    figures: dict[str, Any] = {"n": len(sets.real), "features": compared}
    figures |= run_tasks(_further_tasks(model, sets, affine, seed), verbose)
    measured = figures.pop("anatomy", {})
    if measured:
        apart = anatomy.compare_anatomy(measured, sets, seed)
        unit = "standard deviations of the real volumes"
        figures["anatomy"] = {"unit": unit, **apart}
    network = None
    if classifier:
        network, figures["classifier"] = _two_sample_tests(sets, rows, seed, verbose)
    # What the model's own encoder sees is no independent judge.
    judges = {kind.name: rows[kind.name] for kind in kinds if kind.independent}
    probes, probe_notes = _probe(model, sets, labels, judges, figures, seed)
    rest = affine, notes + probe_notes, network, model.channels_
    return Evaluation(figures, sets, measured, probes, *rest)


def _compare_features(sets, kind, rows, seed):
    figures = fidelity.measure_fidelity(rows, seed, sets.subjects)
    return {"version": kind.version, "says": kind.says, "figures": figures}


def _further_tasks(model, sets, affine, seed):
    """Return what is to be measured beside features."""
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
    """Measure a column of the volumes of each set."""
    return {
        name: anatomy.measure_anatomy(volumes[..., column : column + 1], affine)
        for name, volumes in sets.by_name.items()
    }


def _two_sample_tests(sets, rows, seed, verbose):
    """Let networks, and regressions on features, tell each set from the reference."""
    images = sets.by_name
    greys = {name: two_sample.grey_levels(x) for name, x in images.items()}

    def against_reference(test, of, name):
        subjects = sets.whose("reference", name)
        return test(of["reference"], of[name], subjects=subjects, seed=seed)

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
        kind: {n: against_reference(two_sample.logistic_test, of, n) for n in tests}
        for kind, of in (rows | {"grey levels": greys}).items()
    }
    return tests["generated"], figures


def _probe(model, sets, labels, judges, figures, seed):
    """Compare requested conditions with those that probes predict."""
    conditions = dict(model.conditions_)
    if accuracy := _digit_accuracy(sets, labels):
        figures["as_asked"] = accuracy
        conditions.pop("label", None)
    probes, notes = probe_all(conditions, labels, judges, seed, sets.subjects)
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
    # Other images of this size are no digits, and their labels something else.
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
