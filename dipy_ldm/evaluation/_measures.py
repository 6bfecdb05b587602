"""The measures of an evaluation, a row each: what is computed, shown and concluded.

JSON and page follow from the rows. A new measure is a row of ``MEASURES``, and its
placeholder in ``evaluation.html``.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import chain, count
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from dipy_ldm import LatentDiffusion
from dipy_ldm._utils.progress import tqdm
from dipy_ldm._utils.values import listed
from dipy_ldm.data.channels import Channel, empty_columns, scan_column
from dipy_ldm.evaluation import (
    _anatomy as anatomy,
    _condition_probe as probe,
    _fidelity as fidelity,
    _page as page,
    two_sample,
)
from dipy_ldm.evaluation._fidelity import Sets
from dipy_ldm.evaluation._page import Report, number
from dipy_ldm.evaluation.features import Features, classify
from dipy_ldm.evaluation.two_sample import NetworkTest
from dipy_ldm.metrics import Interval
from dipy_ldm.plots import montage, pictures

# Images of each set on the page, and how many in a row.
_IMAGES_ON_PAGE, _VOLUMES_ON_PAGE = (40, 10), (4, 2)
# Accuracy of the packaged classifier that shows that images are digits.
_MIN_DIGIT_ACCURACY = 0.9
# Training accuracy below which a classifier that finds no difference is inconclusive.
_MIN_TRAINING_ACCURACY = 0.9

Sentences = list[tuple[str, str]]
Figures = Mapping[str, Any]
BySet = Mapping[str, Interval | None]


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


@dataclass(eq=False)
class Comparison:
    """Sets of images of a model, with their conditions by set, and how to compare."""

    model: LatentDiffusion
    sets: Sets
    labels: Mapping[str, Mapping[str, Sequence] | None]
    features: Sequence[Features]
    classifier: bool
    seed: int
    verbose: bool
    notes: list[str]
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def is_of_volumes(self) -> bool:
        return self.sets.real.ndim == 5

    @property
    def affine(self) -> np.ndarray | None:
        """From voxels of volumes to millimetres; None for images."""
        return self.model.vqvae_.affine_ if self.is_of_volumes else None

    @property
    def empty(self) -> np.ndarray:
        """Values of channels ``(channels,)`` outside of heads."""
        # The columns of named channels have the range of images, from 0 to 1.
        return empty_columns(self.model.channels_, self.sets.real.shape[-1])

    @cached_property
    def rows(self) -> dict[str, dict[str, np.ndarray]]:
        """Features of all sets ``(n, features)``, by their name."""
        compute = partial(fidelity.compute_features, self.sets)
        tasks = {kind.name: partial(compute, kind) for kind in self.features}
        return run_tasks(tasks, self.verbose, "features, ")

    @cached_property
    def digit_accuracy(self) -> dict[str, Interval] | None:
        """Share of digits that are classified as requested; None for other images."""
        sets = self.sets.compared
        labels = {name: (self.labels[name] or {}).get("label", [None]) for name in sets}
        unknown = any(None in values for values in labels.values())
        if self.sets.real.shape[1:] != (28, 28, 1) or unknown:
            return None
        accuracies = {
            name: probe.class_accuracy(labels[name], classify(images).argmax(1))
            for name, images in sets.items()
        }
        # Otherwise these are no digits, but other images of this size.
        return accuracies if accuracies["real"].value > _MIN_DIGIT_ACCURACY else None


@dataclass(eq=False, repr=False)
class Evaluation(Report):
    """Result of an evaluation; notebooks show it as a page.

    Parameters
    ----------
    figures : dict
        All figures, as nested dictionaries of intervals, numbers and text.
    sets : Sets
        The images that were compared.
    details : dict of str to object
        What the page shows besides figures: measurements of each volume (``anatomy``),
        linear probes (``probes``), the network of the classifier two-sample test
        (``classifier``).
    affine : ndarray or None
        From voxels of volumes to millimetres.
    notes : list of str
        How the images were chosen and preprocessed.
    channels : sequence of Channel
        Named channels, if there are any.
    """

    figures: dict
    sets: Sets
    details: dict[str, Any]
    affine: np.ndarray | None
    notes: list[str]
    channels: Sequence[Channel] = ()

    def conclusions(self) -> Sentences:
        """Return the conclusions as sentences, each with good, fair, bad or plain."""
        return conclude(self.figures)

    def to_html(self) -> str:
        """Return the report as an HTML page."""
        return write_page(self, {})


class Measure(NamedTuple):
    """A measure: its name in the JSON file and on the page, and three functions.

    ``compute`` returns figures, or None where a measure does not apply; ``write``
    returns the HTML of figures, and ``conclude`` sentences on those of n images.
    """

    name: str
    compute: Callable[[Comparison], Figures | None]
    write: Callable[[Any, Evaluation], str]
    conclude: Callable[[Any, int], Sentences] = lambda figures, n: []


class Figure(NamedTuple):
    """Title of a figure, and what is good: low, high, or the value of real images."""

    title: str
    good: str = "real"

    def is_worse(self, by_set: BySet) -> bool:
        """Return whether generated images are significantly worse than real ones."""
        generated, real = by_set.get("generated"), by_set.get("real")
        if generated is None or real is None:
            return False
        above, below = generated.low > real.high, generated.high < real.low
        return {"low": above, "high": below, "real": above or below}[self.good]


SETS = {
    "generated": "generated",
    "real": "real (floor)",
    "reconstructed": "reconstructed",
}


def _table(rows: Mapping[str, BySet], caption: str = "", head: str = "figure") -> str:
    """Tabulate figures of generated, real and reconstructed images."""
    cells = [[title, *map(by_set.get, SETS)] for title, by_set in rows.items()]
    return page.table([head, *SETS.values()], cells, caption)


def _by_title(by_set: Mapping[str, Any]) -> dict[str, Any]:
    """Return figures of sets by their titles on the page."""
    return {title: by_set[name] for name, title in SETS.items()}


FIDELITY = {
    "kernel": Figure("kernel distance (KID)", "low"),
    "frechet": Figure("Fréchet distance", "low"),
    "precision": Figure("precision", "high"),
    "recall": Figure("recall", "high"),
    "density": Figure("density", "high"),
    "coverage": Figure("coverage", "high"),
}


def _measure_fidelity(comparison: Comparison) -> Figures | None:
    measure, figures = fidelity.measure_fidelity, {}
    for kind in comparison.features:
        rows = comparison.rows[kind.name]
        by_set = measure(rows, comparison.seed, comparison.sets.subjects)
        record = {"version": kind.version, "says": kind.says}
        figures[kind.name] = record | {"figures": by_set}
    return figures


def _by_figure(by_set: Mapping[str, Mapping[str, Any]], name: str) -> dict[str, Any]:
    """Return one figure of each set."""
    return {kind: figures[name] for kind, figures in by_set.items()}


def _write_fidelity(features: Figures, evaluation: Evaluation) -> str:
    """Draw and tabulate the figures in each kind of features."""
    written = ""
    for name, kind in features.items():
        by_figure = {key: _by_figure(kind["figures"], key) for key in FIDELITY}
        rows = {
            FIDELITY[key].title: by_set
            for key, by_set in by_figure.items()
            if by_set["generated"] is not None
        }
        why = "No Fréchet distance: it needs more images than features (at most 256)."
        table = _table(rows, why if len(rows) < len(FIDELITY) else "")
        drawn = page.intervals({title: _by_title(row) for title, row in rows.items()})
        title = f"Features “{name}”"
        written += page.part(title, page.text(kind["says"]), drawn, table)
    return written


def find_worse(by_set: Mapping[str, Mapping[str, Interval | None]]) -> list[str]:
    """Return the names of figures that are worse than those of real images."""
    return [n for n, f in FIDELITY.items() if f.is_worse(_by_figure(by_set, n))]


def _conclude_fidelity(features: Figures, n: int) -> Sentences:
    sentences = []
    for name, kind in features.items():
        worse = [FIDELITY[key].title for key in find_worse(kind["figures"])]
        can, by = ("can", f" by {', '.join(worse)}") if worse else ("cannot", "")
        start = f"In the features “{name}”, {n} generated images"
        sentence = f"{start} {can} be distinguished from real ones{by}."
        sentences.append((sentence, "bad" if worse else "good"))
    return sentences


_VARIETY = Figure("similarity of pairs (MS-SSIM)", "low")


def _conclude_variety(by_set: BySet, n: int) -> Sentences:
    sentence = "Generated images vary less than real ones."
    return [(sentence, "bad")] if _VARIETY.is_worse(by_set) else []


def _write_accuracy(by_set: BySet, evaluation: Evaluation) -> str:
    head = "classified as their label, or as the requested one"
    return _table({"share": by_set}, head=head)


def _test_by_classifiers(comparison: Comparison) -> Figures | None:
    """Run classifier two-sample tests of each set against the reference."""
    if not comparison.classifier:
        return None
    sets, images = comparison.sets, comparison.sets.by_name
    greys = {name: two_sample.grey_levels(x) for name, x in images.items()}

    def against_reference(
        test: Callable, by_set: Mapping[str, np.ndarray], name: str
    ) -> Any:
        subjects, seed = sets.subjects_of("reference", name), comparison.seed
        return test(by_set["reference"], by_set[name], subjects=subjects, seed=seed)

    tasks = {
        name: partial(against_reference, two_sample.network_test, images, name)
        for name in sets.compared
    }
    tests = run_tasks(tasks, comparison.verbose, "classifier, ")
    logistic = {
        kind: {n: against_reference(two_sample.logistic_test, x, n) for n in tests}
        for kind, x in (comparison.rows | {"grey levels": greys}).items()
    }
    figures = {
        "network": {name: test.auc for name, test in tests.items()},
        "learnt": {name: test.learnt for name, test in tests.items()},
        "rounds": {name: test.rounds for name, test in tests.items()},
        "features": logistic,
    }
    comparison.details["classifier"] = tests["generated"]
    return figures


def _write_classifiers(figures: Figures, evaluation: Evaluation) -> str:
    """Return the AUC of the classifiers, and the saliency maps of the network."""
    rows = {"network": figures["network"]}
    rows |= {f"logistic regression on “{n}”": x for n, x in figures["features"].items()}
    accuracies = ", ".join(
        f"{title} {number(figures['learnt'][name])} ({figures['rounds'][name]} rounds)"
        for name, title in SETS.items()
    )
    below = f"Accuracy of the network on its training half: {accuracies}."
    caption = (
        "Generated images that the network recognises best, each with its saliency "
        "map; last, the means of the best eight."
    )
    saliency = page.picture(draw_saliency(evaluation), caption, 2)
    return _table(rows, below, "area under the curve") + saliency


def draw_saliency(evaluation: Evaluation) -> np.ndarray:
    """Draw the best recognised images beside their saliency maps."""
    test: NetworkTest = evaluation.details["classifier"]
    column = scan_column(evaluation.channels) or 0
    images = evaluation.sets.generated[test.recognised][..., column : column + 1]
    highest = test.maps.max(tuple(range(1, test.maps.ndim)), keepdims=True)
    maps = test.maps / np.maximum(highest, 1e-12)
    pairs = np.stack([images, maps], 1)
    pairs = np.concatenate([pairs[:3], pairs.mean(0, keepdims=True)])
    pairs = pairs.reshape(-1, *pairs.shape[2:])
    return montage(pictures(pairs, evaluation.affine), columns=2)


def _conclude_classifiers(figures: Figures, n: int) -> Sentences:
    """Return a sentence on whether a network distinguishes samples from real images."""
    network, share = figures["network"], figures["learnt"]["generated"]
    values = {name: number(area.value) for name, area in network.items()}
    worse = network["generated"].low > max(0.5, network["real"].high)
    if not worse and share < _MIN_TRAINING_ACCURACY:
        sentence = (
            f"A network had an accuracy of only {share:.0%} on its training half: "
            "there is no difference to learn, or the training was too short."
        )
        return [(sentence, "plain")]
    sentence = (
        f"A network trained on half of the images can{'' if worse else 'not'} "
        f"distinguish generated images from real ones (AUC {values['generated']}; "
        f"other real ones {values['real']}, reconstructions {values['reconstructed']})."
    )
    return [(sentence, "bad" if worse else "good")]


_TEXTURES = "finest", "0.7 to 1.4 voxels", "1.4 to 2.8 voxels", "2.8 to 5.6 voxels"


def _write_sharpness(ratios: Mapping[str, list], evaluation: Evaluation) -> str:
    if not ratios:
        return page.text("The images are too small for octaves of frequencies.")
    octaves = (f"{2**i}–{2 ** (i + 1)} voxels" for i in count())
    return _by_scale(ratios, octaves, "half wavelength")


def _by_scale(ratios: Mapping[str, list], scales: Iterable[str], head: str) -> str:
    """Tabulate ratios at each scale, from the finest."""
    titles = SETS | {"true": "true"}
    sets = {name: title for name, title in titles.items() if name in ratios}
    rows = zip(scales, *(ratios[name] for name in sets))
    return page.table([head, *sets.values()], rows)


def _measure_texture(comparison: Comparison) -> Figures | None:
    if not comparison.is_of_volumes:
        return None
    sets, seed = comparison.sets, comparison.seed
    return fidelity.measure_texture(sets, seed, comparison.empty)


_ANATOMY = {
    "foreground": "foreground, ml",
    "intensity": "mean intensity of the foreground",
    "symmetry": "correlation with the mirror image",
    **{tissue: f"{tissue}, share" for tissue in anatomy.TISSUES},
}


def _measure_anatomy(comparison: Comparison) -> Figures | None:
    """Measure the anatomy of volumes with a scan."""
    column = scan_column(comparison.model.channels_)
    if comparison.affine is None or column is None:
        return None
    sets, affine = comparison.sets, comparison.affine
    empty = float(comparison.empty[column])
    measured = anatomy.measure_sets(sets, affine, column, empty)
    unit = {"unit": "standard deviations of the real volumes"}
    differences = anatomy.compare_anatomy(measured, sets, comparison.seed)
    comparison.details["anatomy"] = measured
    return unit | differences


def _write_anatomy(figures: Figures, evaluation: Evaluation) -> str:
    measured, drawn, rows = evaluation.details["anatomy"], [], {}
    for name, title in _ANATOMY.items():
        values = _by_title({kind: measured[kind][name] for kind in SETS})
        drawn.append(page.part(title, page.histograms(values, title, bins=15)))
        by_set = {kind: figures[kind].get(name) for kind in SETS}
        rows[title.removesuffix(", ml")] = by_set
    table = _table(rows, head="difference in standard deviations")
    return table + page.row(drawn)


def _measure_channels(comparison: Comparison) -> Figures | None:
    channels, affine = comparison.model.channels_, comparison.affine
    if affine is None or not channels:
        return None
    bounds, seed = comparison.model.vqvae_.intensity_, comparison.seed
    return anatomy.measure_channels(channels, comparison.sets, affine, seed, bounds)


def _write_channels(figures: Figures, evaluation: Evaluation) -> str:
    """Tabulate the measurements of each channel."""
    return "".join(page.part(n, _table(x, head="")) for n, x in figures.items())


_differs = Figure("any value").is_worse


def _conclude_channels(figures: Figures, n: int) -> Sentences:
    sentences = []
    for name, rows in figures.items():
        if differing := [title for title, row in rows.items() if _differs(row)]:
            text = f"{name}: generated and real images differ in {listed(differing)}."
            sentences.append((text, "bad"))
    return sentences


_PROBES = {
    "right": "accuracy",
    "r": "correlation (r)",
    "slope": "slope (1 is ideal)",
    "error": "mean absolute error",
}


def _probe(comparison: Comparison) -> Figures | None:
    """Compare requested conditions with those that linear probes predict."""
    conditions = comparison.model.conditions_
    kinds = {name: condition.kind for name, condition in conditions.items()}
    if comparison.digit_accuracy:
        kinds.pop("label", None)
    # Features of the model's own encoder would favour its samples.
    independent = (kind.name for kind in comparison.features if kind.independent)
    rows = {name: comparison.rows[name] for name in independent}
    seed, subjects = comparison.seed, comparison.sets.subjects
    labels = comparison.labels
    results, notes = probe.probe_all(kinds, labels, rows, seed, subjects)
    comparison.notes += notes
    comparison.details["probes"] = results
    return {name: result.as_figures() for name, result in results.items()} or None


def _write_probes(figures: Figures, evaluation: Evaluation) -> str:
    return "".join(_write_probe(*item) for item in evaluation.details["probes"].items())


def _write_probe(name: str, result: probe.ProbeResult) -> str:
    """Return the part of the page on the probe of a condition."""
    rows = {
        _PROBES[key]: _by_figure(result.figures, key)
        for key in result.figures["generated"]
    }
    caption = (
        f"Predicted from the features “{result.features}”, which are best for it, by a "
        f"regression fitted to {result.n} real images of the reference."
    )
    if result.guessing:
        real, generated = (number(result.guessing[n]) for n in ("real", "generated"))
        caption += (
            " Accuracy is the share predicted as labelled (generated: as requested); "
            f"by guessing, it is {real} for real and {generated} for generated images."
        )
    drawn = ""
    if result.kind != "class":
        requested, predicted = (
            values["generated"] for values in (result.requested, result.predicted)
        )
        labels = f"requested {name}", "predicted by the probe"
        drawn = page.scatter(requested, predicted, labels[0], labels[1])
    return page.part(name, drawn, _table(rows, caption))


def _conclude_probes(figures: Figures, n: int) -> Sentences:
    return [_conclude_probe(name, result) for name, result in figures.items()]


def _conclude_probe(name: str, result: Mapping[str, Any]) -> tuple[str, str]:
    """Return a sentence on whether samples follow a condition, by its probe."""
    if result["kind"] == "class":
        key, chances = "right", result["guessing"]
        claim = f"{name}: predictions from generated images match the requests"
    else:
        key, chances = "r", {"real": 0.0, "generated": 0.0}
        claim = f"{name}: predictions from generated images correlate with the requests"
    real, generated = (result["figures"][n][key] for n in ("real", "generated"))
    if real.low <= chances["real"]:
        start = f"A linear probe cannot predict {name} from real images"
        return f"{start}, and is uninformative for generated ones.", "plain"
    if chances["generated"] == 1:
        start = f"All requests have the same {name}"
        return f"{start}: whether the model follows it cannot be tested.", "plain"
    values = f"({number(generated.value)}; real images {number(real.value)})"
    if generated.low <= chances["generated"]:
        return f"{claim} only by chance {values}.", "bad"
    if generated.high < real.low:
        return f"{claim}, but less than for real images {values}.", "bad"
    return f"{claim} as well as for real images {values}.", "good"


def _write_reconstruction(figures: Figures, evaluation: Evaluation) -> str:
    names = {
        "mse": "mean squared error",
        "psnr": "peak signal-to-noise ratio, dB",
        "ms_ssim": "structural similarity (MS-SSIM)",
        "codes_used": f"codes used, of {figures['n_codes']}",
        "perplexity": "perplexity of the codes",
    }
    rows = [[title, figures[key]] for key, title in names.items()]
    return page.table(["figure", "of real images"], rows)


MEASURES = (
    Measure("features", _measure_fidelity, _write_fidelity, _conclude_fidelity),
    Measure(
        "variety",
        lambda c: fidelity.measure_variety(c.sets, c.seed),
        lambda figures, _: _table({_VARIETY.title: figures}),
        _conclude_variety,
    ),
    Measure("as_asked", lambda c: c.digit_accuracy, _write_accuracy),
    Measure(
        "classifier", _test_by_classifiers, _write_classifiers, _conclude_classifiers
    ),
    Measure(
        "sharpness",
        lambda c: fidelity.measure_sharpness(c.sets, c.seed),
        _write_sharpness,
    ),
    Measure(
        "texture",
        _measure_texture,
        lambda figures, _: _by_scale(figures, _TEXTURES, "texture"),
    ),
    Measure("anatomy", _measure_anatomy, _write_anatomy),
    Measure("channels", _measure_channels, _write_channels, _conclude_channels),
    Measure("probes", _probe, _write_probes, _conclude_probes),
    Measure(
        "reconstruction",
        lambda c: fidelity.measure_reconstruction(c.model.vqvae_, c.sets, c.seed),
        _write_reconstruction,
    ),
)


def measure_all(comparison: Comparison) -> Evaluation:
    """Return the evaluation with the figures of all measures."""
    tasks = {m.name: partial(m.compute, comparison) for m in MEASURES}
    results = run_tasks(tasks, comparison.verbose)
    figures = {name: x for name, x in results.items() if x is not None}
    return Evaluation(
        {"n": len(comparison.sets.real)} | figures,
        comparison.sets,
        comparison.details,
        comparison.affine,
        comparison.notes,
        comparison.model.channels_,
    )


def write_page(
    evaluation: Evaluation, about: Mapping[str, Any], agreements: Sequence[str] = ()
) -> str:
    """Return the report of an evaluation as an HTML page."""
    figures = evaluation.figures
    pieces = {
        m.name: m.write(figures[m.name], evaluation) if m.name in figures else ""
        for m in MEASURES
    }
    return page.report(
        "Evaluation of a latent diffusion model",
        conclude(figures),
        about,
        evaluation.notes,
        "evaluation.html",
        pictures=_draw_sets(evaluation),
        agreements="".join(agreements),
        **pieces,
    )


def conclude(figures: Figures) -> Sentences:
    """Return the conclusions from the figures as sentences and their kinds."""
    measures = [measure for measure in MEASURES if measure.name in figures]
    parts = (m.conclude(figures[m.name], figures["n"]) for m in measures)
    return list(chain.from_iterable(parts))


def _draw_sets(evaluation: Evaluation) -> str:
    """Return the pictures of the first images of each set."""
    affine, channels = evaluation.affine, evaluation.channels
    n, columns = _IMAGES_ON_PAGE if affine is None else _VOLUMES_ON_PAGE
    small = affine is None and evaluation.sets.real.shape[2] <= 40
    captions = {
        "real": "Real images (floor).",
        "reconstructed": "The same, reconstructed by the autoencoder.",
        "generated": "Generated images: the first ones, without selection.",
    }
    written = ""
    for name, caption in captions.items():
        drawn = pictures(evaluation.sets.compared[name][:n], affine, channels)
        drawn = montage(drawn, columns=columns, limits=(0, 1))
        written += page.picture(drawn, caption, 1 + small)
    return written


def agreement_part(
    name: str, requested: npt.ArrayLike, measured: npt.ArrayLike, agreement: Mapping
) -> str:
    """Return the part of the page on requested and measured values ``(n,)``."""
    drawn = page.scatter(requested, measured, f"requested {name}", "measured")
    return page.part(name, drawn, page.table(["figure", "value"], agreement.items()))
