"""Auditing a model: whether it generates images of its training set."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from dipy_ldm._conditions import UNSPECIFIED, ConditionBatch, ConditionsLike
from dipy_ldm._utils.checks import InputError, whole
from dipy_ldm._utils.subjects import number_subjects, refuse_same_subjects
from dipy_ldm._utils.values import listed, take_rows
from dipy_ldm.data._scans import ImagesLike
from dipy_ldm.evaluation import _memorization as copies, features as learnt
from dipy_ldm.evaluation._audit_report import Audit, Pair
from dipy_ldm.evaluation.evaluate import (
    check_arguments,
    generate,
    read_conditions,
    read_usable,
    refuse_few,
    refuse_real,
    refuse_unequal,
    run_tasks,
    scaled,
    sources_of,
)
from dipy_ldm.evaluation.features import encoder, voxels
from dipy_ldm.latent_diffusion import LatentDiffusion
from dipy_ldm.vqvae import VQVAE

__all__ = ["Audit", "Pair", "Reference", "audit"]

# Images of each kind, at most: with more, the chance of missing any hardly changes.
_MAX_IMAGES = 2000
# Of which membership is inferred.
_MAX_MEMBERSHIP_IMAGES = 500
# Pairs that are shown.
_MAX_PAIRS = 12
# Numbers of images that are looked at together, about.
_CHUNK_VALUES = 2**24


class Reference(NamedTuple):
    """A model that saw no training image, and the same images on its own grid.

    ``sources`` are the source images of both kinds, if there are any, ``conditions``
    the values of their conditions, and ``subjects`` say whose each training image is.
    """

    model: LatentDiffusion
    train: np.ndarray
    held_out: np.ndarray
    sources: tuple[Any, Any] = (None, None)
    conditions: tuple[Any, Any] = (None, None)
    subjects: npt.ArrayLike | None = None

    def with_shared_conditions(self):
        """Leave out conditions that a set lacks for an image, or has out of range."""
        both = [own or {} for own in self.conditions]
        names: list[str] = []
        for name in self.model.conditions_:
            more = [*names, name]
            if all(name in own and _are_usable(self.model, more, own) for own in both):
                names = more
        train, held_out = ({n: own[n] for n in names} or None for own in both)
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
    """Look for training images among what a model generates.

    Parameters
    ----------
    model : LatentDiffusion
        Fitted model.
    train : array_like or Volumes
        All images that it was trained on, ``(n, *space, channels)``, in their range.
    held_out : array_like or Volumes
        Others, one of each of other subjects.
    generated : array_like or Volumes, optional
        What it generated. None is for generating now, as many as held-out ones.
    n : int, optional
        How many of each kind at most; as many as there are, up to 2000, if None.
    conditions : dict of str to sequence or DataFrame, optional
        Of the training images. Generated ones are asked for with those of the first,
        which is how a model that has memorised them is asked for them; with source
        images, with those of the held-out ones.
    conditions_held_out : dict of str to sequence or DataFrame, optional
        Of the held-out images. Membership is inferred with those conditions that are
        known of all images of both kinds, and of most within the range of the training.
    source, source_held_out : array_like, optional
        Source image of each training and of each held-out image, for models
        conditioned on source images, as of :meth:`dipy_ldm.LatentDiffusion.predict`.
        Samples are made from the latter, one of each: of a training source they are
        near to its training image by design, and so are given ones.
    requested : dict of str to sequence or DataFrame, optional
        What images that are given as generated were asked to be.
    subjects : array_like, optional
        Whose each training image is, such as ``"sub-01"``: several of a subject count
        as one where membership is inferred. None is for others all, or those that
        Volumes and names of files tell.
    reference : Reference, optional
        A model that saw none of these images. What it tells of them by its loss is no
        leak.
    seed : int
        Of the noise, and of all that is drawn.
    verbose : bool
        Show progress bars.
    **sampling
        As of :meth:`dipy_ldm.LatentDiffusion.predict`.

    Returns
    -------
    Audit
        What was found.

    Raises
    ------
    InputError
        If there are too few images, they are not of the model, held-out ones are
        training images or of training subjects, or generated ones are held-out images.
    """
    check_arguments(model, generated, {"requested": requested}, sampling, seed)
    vqvae, generates = model.vqvae_, generated is None
    both = (source, source_held_out), (conditions, conditions_held_out)
    own = _read(model, train, held_out, *both, subjects)
    if reference is not None and reference.subjects is None:
        reference = reference._replace(subjects=own.subjects)
    if generated is not None:
        generated, whose = model._read_images(generated)
        requested = read_conditions(
            model, "requested", requested, len(generated), whose
        )
    count, n_held_out = _count(len(own.train), len(own.held_out), generated, n)
    refuse_training_images(vqvae, own.train, own.held_out)
    if generated is None:
        options = {"seed": seed, "verbose": verbose, **sampling}
        generated, requested = _generate(own, count, options)
        count = len(generated)
    real = np.asarray(own.held_out[:n_held_out], "float32")
    generated = np.asarray(generated[:count], "float32")
    refuse_real(real, generated)  # copies of training images are what it looks for
    sets = own.train, vqvae.predict(real), generated
    projection = _learn(own.train, vqvae, seed)
    spaces = {
        "voxels": voxels(),
        "latents": encoder(model),
        "invariant": learnt.invariant(projection),
    }
    tasks = {n: partial(_search, f, sets, vqvae) for n, f in spaces.items()}
    searches = run_tasks(tasks, verbose)
    attacks = {
        "denoiser": (copies.denoising_losses, own),
        "reference": (copies.denoising_losses, reference),
        "autoencoder": (copies.reconstruction_losses, own),
    }
    tasks = {
        name: partial(_infer, losses, subject, seed)
        for name, (losses, subject) in attacks.items()
        if subject is not None
    }
    return Audit(
        count,
        n_held_out,
        searches,
        {name: copies.judge(search) for name, search in searches.items()},
        run_tasks(tasks, verbose, "membership, "),
        _classes(model, searches, requested, count),
        _suspicious(searches),
        scaled(generated, vqvae),
        projection,
        _notes(own, count, n_held_out, generates),
    )


def _read(model, train, held_out, sources, conditions, subjects):
    """Check training and held-out images, and what belongs to each of them."""
    train, subjects = model._read_images(train, subjects)
    held_out, held_out_subjects = model._read_images(held_out)
    whose = number_subjects(subjects, len(train))
    if len(set(held_out_subjects or ())) < len(held_out_subjects or ()):
        raise InputError(
            "`held_out` has several images of a subject, and chance is counted by "
            "subjects; give one of each."
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
    return Reference(model, train, held_out, source, values, whose)


def _generate(own: Reference, count: int, options: dict) -> tuple[np.ndarray, Any]:
    """Generate samples; return them, and the conditions that they were asked for with.

    Of training sources they would be near to training images by design: those of
    held-out images are taken, each once.
    """
    of = int(own.model.source_ is not None)
    n = len(own.held_out if of else own.train)
    rows = np.arange(min(count, n) if of else count) % n
    return generate(own.model, rows, own.conditions[of], own.sources[of], options)


def refuse_training_images(
    vqvae: VQVAE,
    train: np.ndarray,
    held_out: np.ndarray,
    names: tuple[Sequence, Sequence] | None = None,
) -> None:
    """Refuse held-out images that are training images, by their names or numbers."""
    prints = (in_pieces(copies.fingerprints, x, vqvae) for x in (train, held_out))
    if same := copies.duplicates(*prints):
        of_train, of_held_out = names or (range(len(train)), range(len(held_out)))
        pairs = ", ".join(f"{of_held_out[i]} ({of_train[j]})" for i, j in same[:5])
        more = f" and {len(same) - 5} more" if len(same) > 5 else ""
        raise InputError(
            f"{len(same)} of the held-out images are training images, too: "
            f"{pairs}{more}; leave them out of `held_out`."
        )


def _search(features, sets, vqvae):
    rows = (in_pieces(features.compute, images, vqvae) for images in sets)
    return copies.search(features, *rows)


def _infer(losses, subject, seed):
    """Infer membership from the losses of a model of training and held-out images."""
    both, owners = [], []
    subject = subject.with_shared_conditions()
    model, sets = subject.model, (subject.train, subject.held_out)
    subjects = subject.subjects, None
    kinds = zip(sets, subject.sources, subject.conditions, subjects, strict=True)
    for images, source, conditions, whose in kinds:
        whose = number_subjects(whose, len(images))
        rows = _within_range(model, conditions, len(images))
        if len(np.unique(whose)) < len(whose):  # the first may be of a few subjects
            rows = np.random.default_rng(seed).permutation(rows).tolist()
        rows = sorted(rows[:_MAX_MEMBERSHIP_IMAGES])
        own = None if source is None else source[rows], take_rows(conditions, rows)
        both.append(losses(model, np.asarray(images[rows]), seed, *own))
        owners.append(whose[rows])
    return copies.infer_membership(both[0], both[1], seed, owners)


def _within_range(model, conditions, n):
    """List the images whose values are none that would be clipped."""
    clipped = {
        row
        for name, values in (conditions or {}).items()
        for row in range(n)
        if model.conditions_[name].encode(name, values[row])[1]
    }
    return [row for row in range(n) if row not in clipped]


def _are_usable(model, names, table):
    """Return whether conditions are known of all images, and most would be left."""
    own = {name: model.conditions_[name] for name in names}
    values, n = {name: table[name] for name in names}, len(table[names[0]])
    known = (ConditionBatch.of(own, values, lenient=True).numbers != UNSPECIFIED).all()
    return known and 2 * len(_within_range(model, values, n)) > n


def _classes(model, searches, requested, count):
    """Count copies in the levels of each class."""
    return {
        name: copies.judge_levels(searches, values[:count])
        for name, values in (requested or {}).items()
        if model.conditions_[name].kind == "class"
        and any(v is not None for v in values[:count])
    }


def in_pieces(function: Callable, images: np.ndarray, vqvae: VQVAE) -> np.ndarray:
    """Apply a function to images in [0, 1], of which there may be more than memory has.

    Shapes: images ``(n, *space, channels)``, in the range of the training images.
    """
    size = max(1, _CHUNK_VALUES // int(np.prod(images.shape[1:])))
    starts = range(0, len(images), size)
    pieces = ((i, images[i : i + size]) for i in starts)
    return np.concatenate([function(scaled(x, vqvae, i)) for i, x in pieces])


def _learn(train, vqvae, seed):
    """Fit invariant features to a subset of the training images."""
    drawn = np.random.default_rng(seed).permutation(len(train))[: learnt.MAX_IMAGES]
    chosen = sorted(drawn.tolist())
    reduced = [learnt.small(scaled(train[[i]], vqvae, i)) for i in chosen]
    return learnt.fit_invariant_projection(np.concatenate(reduced), seed)


def _count(train, held_out, generated, n):
    """Count the generated and the held-out images that are compared."""
    available = held_out if generated is None else len(generated)
    if n is None:
        refuse_unequal(held_out, available, "held-out")
        n = _MAX_IMAGES
    else:
        whole("n", n, copies.MIN_IMAGES)
        available = n if generated is None else available
    counts = min(available, n), min(held_out, n)
    refuse_few("an audit", "held-out", counts[1], copies.MIN_IMAGES)
    refuse_few("an audit", "generated", counts[0], copies.MIN_IMAGES)
    refuse_few("an audit", "training", train, copies.N_NEIGHBOURS + 1)
    return counts


def _notes(own, n, n_held_out, generates):
    """Note what was compared, and with which conditions membership was inferred."""
    start = f"{n} generated images, and {n_held_out} held-out ones as the autoencoder"
    end = f"were each compared with all {len(own.train)} training images."
    notes = [f"{start} reconstructs them, {end}"]
    fewest = copies.fewest_detectable(n, n_held_out)
    if fewest > 1:
        notes.append(
            f"Of {n} images, fewer than {fewest} copies can't be distinguished from "
            "chance, even if they are exact."
        )
    if own.model.source_ is not None:
        notes.append(
            "A sample was made of the source image of each held-out image."
            if generates
            else "A sample of a training image's source image is near to that training "
            "image by design, and no copy: none such must be among the given ones."
        )
    if own.model.conditions_:
        shared = own.with_shared_conditions().conditions[0]
        notes.append(
            f"Membership was inferred with the conditions {listed(shared)}."
            if shared
            else "Membership was inferred without conditions: none is known of all "
            "images, and of most within the range of the training."
        )
    return notes


def _suspicious(searches):
    """List the most suspicious pairs, each generated image once.

    By what makes an image a copy: its ratio, or its distance, beside the least of
    held-out images.
    """
    scores = np.stack(
        [
            np.minimum(
                search.generated.nearness / max(search.held_out.nearness.min(), 1e-12),
                search.generated.distance / max(search.held_out.distance.min(), 1e-12),
            )
            for search in searches.values()
        ]
    )
    names, best = list(searches), scores.argmin(0)
    pairs = []
    for i in np.argsort(scores.min(0), kind="stable")[:_MAX_PAIRS].tolist():
        near = searches[names[best[i]]].generated
        figures = float(near.nearness[i]), float(near.distance[i])
        pairs.append(Pair(i, int(near.nearest[i]), *figures, names[best[i]]))
    return pairs
