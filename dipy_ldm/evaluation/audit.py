"""Audit of whether a model generates copies of its training images."""

from collections.abc import Callable, Sequence, Sized
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from dipy_ldm import VQVAE, InputError, LatentDiffusion
from dipy_ldm._conditions import UNSPECIFIED, ConditionBatch, ConditionsLike
from dipy_ldm._utils.checks import whole
from dipy_ldm._utils.subjects import number_subjects, refuse_same_subjects
from dipy_ldm._utils.values import listed, take_rows
from dipy_ldm.data._scans import ImagesLike
from dipy_ldm.evaluation import _memorization as memorization
from dipy_ldm.evaluation._audit_report import Audit, Pair
from dipy_ldm.evaluation._measures import run_tasks
from dipy_ldm.evaluation.evaluate import (
    check_arguments,
    generate,
    read_conditions,
    read_usable,
    refuse_few,
    refuse_real,
    refuse_unequal,
    scaled,
    sources_of,
)
from dipy_ldm.evaluation.features import (
    MAX_AUGMENTED_VALUES,
    MAX_FIT_IMAGES,
    Features,
    Projection,
    downsample,
    encoder,
    fit_invariant_projection,
    invariant,
    voxels,
)

__all__ = ["Audit", "Pair", "Reference", "audit"]

# Images of each set; with more, the power hardly increases.
_MAX_IMAGES = 2000
# Images of each set for membership inference.
_MAX_MEMBERSHIP_IMAGES = 500
# Suspicious pairs that are listed.
_MAX_PAIRS = 12
# Values of a chunk of images, about.
_CHUNK_VALUES = 2**24


class Reference(NamedTuple):
    """A model trained on none of the training images, and all images on its own grid.

    ``sources`` and ``conditions`` are source images and conditions of both sets, if
    there are any; ``subjects`` are the subjects of the training images.
    """

    model: LatentDiffusion
    train: np.ndarray
    held_out: np.ndarray
    sources: tuple[Any, Any] = (None, None)
    conditions: tuple[Any, Any] = (None, None)
    subjects: npt.ArrayLike | None = None

    def with_shared_conditions(self) -> "Reference":
        """Drop conditions with missing values, or with most of them out of range."""
        tables = [table or {} for table in self.conditions]
        names: list[str] = []
        for name in self.model.conditions_:
            more = [*names, name]
            if all(name in x and _are_usable(self.model, more, x) for x in tables):
                names = more
        train, held_out = ({n: x[n] for n in names} or None for x in tables)
        return self._replace(conditions=(train, held_out))


def audit(
    model: LatentDiffusion,
    train: ImagesLike,
    held_out: ImagesLike,
    generated: ImagesLike | None = None,
    *,
    n: int | None = None,
    conditions: ConditionsLike = None,
    conditions_held_out: ConditionsLike = None,
    source: npt.ArrayLike | None = None,
    source_held_out: npt.ArrayLike | None = None,
    requested: ConditionsLike = None,
    subjects: npt.ArrayLike | None = None,
    reference: Reference | None = None,
    seed: int = 0,
    verbose: bool = False,
    **sampling: Any,
) -> Audit:
    """Search the samples of a model for copies of training images.

    Parameters
    ----------
    model : LatentDiffusion
        Fitted model.
    train : array_like or Volumes
        All training images, ``(n, *space, channels)``, in their range.
    held_out : array_like or Volumes
        Images of other subjects, one of each.
    generated : array_like or Volumes, optional
        Samples of the model. Default: as many as held-out images are generated.
    n : int, optional
        Maximum number of samples and of held-out images. Default: all, up to 2000.
    conditions : dict of str to sequence or DataFrame, optional
        Of the training images. Samples are requested with those of the first images, as
        is most likely to reproduce memorised ones; with source images, with those of
        the held-out images.
    conditions_held_out : dict of str to sequence or DataFrame, optional
        Of the held-out images. Membership is inferred with the conditions that all
        images of both sets have, most of them within the training range.
    source, source_held_out : array_like, optional
        Source image of each training and of each held-out image, for models
        conditioned on source images, as of :meth:`dipy_ldm.LatentDiffusion.predict`.
        Samples are generated from the latter, one of each: those from a training source
        are close to its training image by design (also in `generated`).
    requested : dict of str to sequence or DataFrame, optional
        Conditions that the images of `generated` were requested with.
    subjects : array_like, optional
        Subject of each training image, such as ``"sub-01"``: images of a subject count
        as one in membership inference. Default: those of Volumes and file names, or all
        differ.
    reference : Reference, optional
        A model trained on none of these images: what its loss separates is no leak.
    seed : int
        Of the noise, and of all random choices.
    verbose : bool
        Show progress bars.
    **sampling
        As of :meth:`dipy_ldm.LatentDiffusion.predict`.

    Returns
    -------
    Audit
        Suspicious pairs, shares of copies with p-values, and membership inference.

    Raises
    ------
    InputError
        If there are too few images, they do not fit the model, held-out ones are
        training images or of training subjects, or generated ones are held-out images.
    """
    check_arguments(model, generated, {"requested": requested}, sampling, seed)
    vqvae, generates = model.vqvae_, generated is None
    target = _read(
        model,
        (train, held_out),
        (source, source_held_out),
        (conditions, conditions_held_out),
        subjects,
    )
    if reference is not None and reference.subjects is None:
        reference = reference._replace(subjects=target.subjects)
    if generated is not None:
        generated, subject_ids = model._read_images(generated)
        requested = read_conditions(
            model, "requested", requested, len(generated), subject_ids
        )
    count, n_held_out = _count(len(target.train), len(target.held_out), generated, n)
    refuse_training_images(vqvae, target.train, target.held_out)
    if generated is None:
        options = {"seed": seed, "verbose": verbose, **sampling}
        generated, requested = _generate(target, count, options)
        count = len(generated)
    real = np.asarray(target.held_out[:n_held_out], "float32")
    generated = np.asarray(generated[:count], "float32")
    refuse_real(real, generated)  # not training images: copies are to be found
    sets = target.train, vqvae.predict(real), generated
    spaces = {
        "voxels": voxels(),
        "latents": encoder(model),
        "invariant": invariant(_learn(target.train, vqvae, seed)),
    }
    tasks = {n: partial(_search, f, sets, vqvae) for n, f in spaces.items()}
    searches = run_tasks(tasks, verbose)
    losses, errors = memorization.denoising_losses, memorization.reconstruction_losses
    attacks = {"denoiser": partial(_infer, losses, target, seed)}
    if reference is not None:
        attacks["reference"] = partial(_infer, losses, reference, seed)
    attacks["autoencoder"] = partial(_infer, errors, target, seed)
    return Audit(
        count,
        n_held_out,
        searches,
        {name: memorization.count_copies(search) for name, search in searches.items()},
        run_tasks(attacks, verbose, "membership, "),
        _classes(model, searches, requested, count),
        _suspicious(searches),
        scaled(generated, vqvae),
        _notes(target, count, n_held_out, generates),
    )


def _read(
    model: LatentDiffusion,
    images: tuple[ImagesLike, ImagesLike],
    sources: tuple[npt.ArrayLike | None, npt.ArrayLike | None],
    conditions: tuple[ConditionsLike, ConditionsLike],
    subjects: npt.ArrayLike | None,
) -> Reference:
    """Check training and held-out images, with their sources and conditions."""
    train, subjects = model._read_images(images[0], subjects)
    held_out, held_out_subjects = model._read_images(images[1])
    subject_ids = number_subjects(subjects, len(train))
    if len(set(held_out_subjects or ())) < len(held_out_subjects or ()):
        raise InputError(
            "`held_out` has several images of a subject, but the statistics need "
            "independent images",
            "give one of each subject",
        )
    refuse_same_subjects(subjects, held_out_subjects)
    source = (
        sources_of(model, sources[0], len(train)),
        sources_of(model, sources[1], len(held_out), "source_held_out"),
    )
    n, name = len(held_out), "conditions_held_out"
    values = (
        read_usable(model, "conditions", conditions[0], len(train), subjects),
        read_usable(model, name, conditions[1], n, held_out_subjects),
    )
    return Reference(model, train, held_out, source, values, subject_ids)


def _generate(target: Reference, count: int, options: dict) -> tuple[np.ndarray, Any]:
    """Return samples and their requested conditions.

    Source images are those of held-out images, each once: samples from training sources
    are close to training images by design.
    """
    of = int(target.model.source_ is not None)
    n = len(target.held_out if of else target.train)
    rows = np.arange(min(count, n) if of else count) % n
    return generate(
        target.model, rows, target.conditions[of], target.sources[of], options
    )


def refuse_training_images(
    vqvae: VQVAE,
    train: np.ndarray,
    held_out: np.ndarray,
    names: tuple[Sequence, Sequence] | None = None,
) -> None:
    """Refuse held-out images that are training images."""
    prints = (
        apply_in_chunks(memorization.fingerprints, x, vqvae) for x in (train, held_out)
    )
    if same := memorization.duplicates(*prints):
        of_train, of_held_out = names or (range(len(train)), range(len(held_out)))
        pairs = ", ".join(f"{of_held_out[i]} ({of_train[j]})" for i, j in same[:5])
        more = f" and {len(same) - 5} more" if len(same) > 5 else ""
        raise InputError(
            f"{len(same)} of the held-out images are training images, too: "
            f"{pairs}{more}",
            "remove them from `held_out`",
        )


def _search(
    features: Features, sets: tuple[np.ndarray, np.ndarray, np.ndarray], vqvae: VQVAE
) -> memorization.Search:
    """Find the nearest training image of each held-out and generated image."""
    train, held_out, generated = (
        apply_in_chunks(features.compute, images, vqvae) for images in sets
    )
    return memorization.search(features, train, held_out, generated)


def _infer(losses: Callable, attacked: Reference, seed: int) -> memorization.Membership:
    """Infer membership from the losses of training and held-out images."""
    set_losses, owners = [], []
    attacked = attacked.with_shared_conditions()
    model, sets = attacked.model, (attacked.train, attacked.held_out)
    subjects = attacked.subjects, None
    kinds = zip(sets, attacked.sources, attacked.conditions, subjects, strict=True)
    for images, source, conditions, subject_ids in kinds:
        subject_ids = number_subjects(subject_ids, len(images))
        rows = _within_range(model, conditions, len(images))
        if len(np.unique(subject_ids)) < len(subject_ids):  # the first rows are of few
            rows = np.random.default_rng(seed).permutation(rows).tolist()
        rows = sorted(rows[:_MAX_MEMBERSHIP_IMAGES])
        taken = None if source is None else source[rows]
        values = take_rows(conditions, rows)
        set_losses.append(losses(model, np.asarray(images[rows]), seed, taken, values))
        owners.append(subject_ids[rows])
    return memorization.infer_membership(set_losses[0], set_losses[1], seed, owners)


def _within_range(
    model: LatentDiffusion, conditions: dict[str, list] | None, n: int
) -> list[int]:
    """Return the indices of images without conditions that would be clipped."""
    clipped = {
        row
        for name, values in (conditions or {}).items()
        for row in range(n)
        if model.conditions_[name].encode(name, values[row])[1]
    }
    return [row for row in range(n) if row not in clipped]


def _are_usable(
    model: LatentDiffusion, names: Sequence[str], table: dict[str, list]
) -> bool:
    """Return whether all images have these conditions, and most within their range."""
    values, n = {name: table[name] for name in names}, len(table[names[0]])
    conditions = {name: model.conditions_[name] for name in names}
    batch = ConditionBatch.of(conditions, values, lenient=True)
    complete = (batch.numbers != UNSPECIFIED).all()
    return complete and 2 * len(_within_range(model, values, n)) > n


def _classes(
    model: LatentDiffusion,
    searches: dict[str, memorization.Search],
    requested: dict[str, list] | None,
    count: int,
) -> dict[str, dict[str, memorization.Level]]:
    """Count copies by level of each class."""
    return {
        name: memorization.count_copies_by_level(searches, values[:count])
        for name, values in (requested or {}).items()
        if model.conditions_[name].kind == "class"
        and any(v is not None for v in values[:count])
    }


def apply_in_chunks(function: Callable, images: np.ndarray, vqvae: VQVAE) -> np.ndarray:
    """Scale images to [0, 1] and apply a function, chunk by chunk to save memory.

    Shapes: images ``(n, *space, channels)``, in the training range.
    """
    size = max(1, _CHUNK_VALUES // int(np.prod(images.shape[1:])))
    starts = range(0, len(images), size)
    pieces = ((i, images[i : i + size]) for i in starts)
    return np.concatenate([function(scaled(x, vqvae, i)) for i, x in pieces])


def _learn(train: np.ndarray, vqvae: VQVAE, seed: int) -> Projection:
    """Fit invariant features to a subset of the training images."""
    drawn = np.random.default_rng(seed).permutation(len(train))[:MAX_FIT_IMAGES]
    images = (scaled(train[[i]], vqvae, i)[0] for i in sorted(drawn.tolist()))
    reduced = downsample(images, MAX_AUGMENTED_VALUES, symmetric=True)
    return fit_invariant_projection(reduced, seed)


def _count(
    train: int, held_out: int, generated: Sized | None, n: int | None
) -> tuple[int, int]:
    """Return the numbers of generated and of held-out images to compare."""
    available = held_out if generated is None else len(generated)
    if n is None:
        refuse_unequal(held_out, available, "held-out")
        n = _MAX_IMAGES
    else:
        whole("n", n, memorization.MIN_IMAGES)
        available = n if generated is None else available
    counts = min(available, n), min(held_out, n)
    refuse_few("an audit", "held-out", counts[1], memorization.MIN_IMAGES)
    refuse_few("an audit", "generated", counts[0], memorization.MIN_IMAGES)
    refuse_few("an audit", "training", train, memorization.N_NEIGHBOURS + 1)
    return counts


def _notes(target: Reference, n: int, n_held_out: int, generates: bool) -> list[str]:
    """Return notes on the compared images and the conditions."""
    start = f"{n} generated images and the reconstructions of {n_held_out}"
    end = f"were compared with all {len(target.train)} training images."
    notes = [f"{start} held-out images {end}"]
    fewest = memorization.fewest_detectable(n, n_held_out)
    if fewest > 1:
        notes.append(
            f"Fewer than {fewest} exact copies among {n} would not be significant."
        )
    if target.model.source_ is not None:
        notes.append(
            "Samples were generated from the source images of held-out images."
            if generates
            else "Samples from the source image of a training image are close to it by "
            "design: the samples must not include any."
        )
    if target.model.conditions_:
        shared = target.with_shared_conditions().conditions[0]
        notes.append(
            f"Membership was inferred with the conditions {listed(shared)}."
            if shared
            else "Membership was inferred without conditions: no condition has values "
            "for all images, most of them within the training range."
        )
    return notes


def _suspicious(searches: dict[str, memorization.Search]) -> list[Pair]:
    """List the most suspicious pairs, each generated image once.

    By the criterion for copies: ratio or distance relative to the held-out minimum.
    """
    scores = np.stack(
        [
            np.minimum(
                search.generated.ratio / max(search.held_out.ratio.min(), 1e-12),
                search.generated.distance / max(search.held_out.distance.min(), 1e-12),
            )
            for search in searches.values()
        ]
    )
    names, best = list(searches), scores.argmin(0)
    pairs = []
    for i in np.argsort(scores.min(0), kind="stable")[:_MAX_PAIRS].tolist():
        near = searches[names[best[i]]].generated
        ratio, distance = float(near.ratio[i]), float(near.distance[i])
        pairs.append(Pair(i, int(near.nearest[i]), ratio, distance, names[best[i]]))
    return pairs
