"""The page of an evaluation: what was found, in words, plots, pictures and tables."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dipy_ldm.evaluation import _charts as charts, _html as page
from dipy_ldm.evaluation._fidelity import is_worse_than_real
from dipy_ldm.evaluation._html import number
from dipy_ldm.evaluation.evaluate import Evaluation
from dipy_ldm.metrics import Interval

TITLES = {
    "kernel": "kernel distance (KID)",
    "frechet": "Fréchet distance",
    "precision": "precision",
    "recall": "recall",
    "density": "density",
    "coverage": "coverage",
}
_SETS = {
    "generated": "generated",
    "real": "real (floor)",
    "reconstructed": "reconstructed",
}
_MEASURES = {
    "foreground": "foreground, ml",
    "intensity": "mean intensity of the foreground",
    "symmetry": "correlation with the mirror image",
    "dark tissue": "dark tissue, share",
    "middle tissue": "middle tissue, share",
    "bright tissue": "bright tissue, share",
}
# Pictures of each kind: of images and of volumes.
_SHOWN = 40, 4


def write_page(
    evaluation: Evaluation, about: Mapping[str, Any], agreements: Sequence[str] = ()
) -> str:
    """Write the page of an evaluation."""
    figures = evaluation.figures
    return page.page(
        "Evaluation of a latent diffusion model",
        *(page.note(sentence, kind) for sentence, kind in conclude(figures)),
        page.facts(about),
        page.text(*evaluation.notes),
        page.section("Pictures", _pictures(evaluation)),
        page.section(
            "Fidelity and variety",
            _fidelity(figures["features"]),
            _variety(figures["variety"]),
            _class_accuracy(figures),
        ),
        page.section(
            "Sharpness",
            _sharpness(figures["sharpness"]),
            _texture(figures.get("texture")),
        ),
        page.section("Anatomy", _anatomy(evaluation)),
        page.section("Asked and measured", *agreements),
        page.section("Asked and told by a probe", _probes(evaluation.probes)),
        page.section("Reconstruction", _reconstruction(figures["reconstruction"])),
        page.section("How to read this", page.text(*_HELP)),
    )


_HELP = """
Every figure has three values. The floor is that of real images: nothing can be nearer
to real images than others are. That of reconstructions is what the autoencoder allows,
since samples come from its decoder. Where a generated value lies within the interval of
the floor, generated images can't be told from real ones by it.

Kernel and Fréchet distances are 0 for sets of one distribution, but for chance.
Precision is the share of generated images that are among real ones, recall the share
of real ones that are among generated ones; density and coverage are the same, less
sensitive to outliers. Density may be above 1, where samples are too near to the middle.

All of them depend on the features and on the number of images: compare them with
others of this page, or of the same command with the same number. Below each value is
its 95 % interval, by the bootstrap.

Copies of training images have the best figures of all. Look for them with
dipy_audit_ldm.
""".strip().split("\n\n")


def conclude(figures: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Say in sentences what the figures say."""
    sentences = []
    for name, kind in figures["features"].items():
        worse = [
            title
            for key, title in TITLES.items()
            if is_worse_than_real(kind["figures"], key)
        ]
        if worse:
            end, how = f"can be told from real ones: {', '.join(worse)}", "bad"
        else:
            end, how = "can't be told from real ones", "good"
        start = f"In the features “{name}”, {figures['n']} generated images"
        sentences.append((f"{start} {end}.", how))
    alike, real = figures["variety"]["generated"], figures["variety"]["real"]
    if alike.low > real.high:
        sentences.append(("Generated images are more alike than real ones are.", "bad"))
    probes = figures.get("probes", {})
    return sentences + [_obeys(name, probe) for name, probe in probes.items()]


def _obeys(name, probe):
    """Say whether generated images are what was asked for, as far as a probe tells."""
    if probe["kind"] == "class":
        key, chance, claim = (
            "right",
            probe["guessing"],
            "are taken for what they shall be",
        )
    else:
        key, chance, claim = "r", 0.0, "correlate with what is asked for"
    real, generated = (probe["figures"][of][key] for of in ("real", "generated"))
    if real.low <= chance:
        sentence = (
            f"A probe can't tell {name} of real images, and says nothing of generated "
            "ones."
        )
        return sentence, "plain"
    values = f"({number(generated.value)}, and real ones {number(real.value)})"
    if generated.low <= chance:
        return f"{name}: generated images {claim} as by chance {values}.", "bad"
    if generated.high < real.low:
        return (
            f"{name}: generated images {claim}, but less than real ones {values}.",
            "bad",
        )
    return f"{name}: generated images {claim} as real ones do {values}.", "good"


def _pictures(evaluation):
    from dipy_ldm.plots import montage, planes

    def look(images):
        if evaluation.affine is None:
            return montage(images[: _SHOWN[0]], columns=10)
        return montage(planes(images[: _SHOWN[1]], evaluation.affine), columns=2)

    scale = (
        1 if evaluation.affine is not None or evaluation.sets.real.shape[2] > 40 else 2
    )
    captions = {
        "real": "Real images of the floor.",
        "reconstructed": "The same, reconstructed by the autoencoder.",
        "generated": "Generated images, the first of them and not the best.",
    }
    return "".join(
        page.picture(look(evaluation.sets.compared[name]), caption, scale)
        for name, caption in captions.items()
    )


def _fidelity(features):
    return "".join(
        page.part(f"In the features “{name}”", page.text(kind["says"]), _figures(kind))
        for name, kind in features.items()
    )


def _figures(kind):
    """Draw and tabulate the figures in some features."""
    rows = {
        title: {_SETS[s]: intervals[key] for s, intervals in kind["figures"].items()}
        for key, title in TITLES.items()
        if kind["figures"]["generated"][key] is not None
    }
    cells = [[title, *intervals.values()] for title, intervals in rows.items()]
    missing = len(rows) < len(TITLES)
    why = "No Fréchet distance: it needs more images than features (at most 256)."
    return charts.gauges(rows) + page.table(
        ["figure", *_SETS.values()], cells, why if missing else ""
    )


def _variety(variety):
    cells = [["similarity of pairs (MS-SSIM)", *(variety[name] for name in _SETS)]]
    return page.part(
        "Variety",
        page.table(
            ["figure", *_SETS.values()],
            cells,
            "Above the floor, generated images are more alike than real ones are; far "
            "below, they have structure that real ones lack, such as noise.",
        ),
    )


def _class_accuracy(figures):
    if "as_asked" not in figures:
        return ""
    cells = [["share", *(figures["as_asked"][name] for name in _SETS)]]
    table = page.table(
        ["taken by a classifier for what they are, or shall be", *_SETS.values()], cells
    )
    return page.part("As asked", table)


def _sharpness(sharpness):
    if not sharpness:
        return page.text("The images are too small to tell octaves apart.")
    octaves = range(len(sharpness["true"]))
    places = [i + 1 for i in octaves]
    drawn = {
        _SETS[name]: (places, [octave.value for octave in sharpness[name]])
        for name in _SETS
    }
    names = [f"{2**i}–{2 ** (i + 1)} voxels" for i in octaves]
    rows = [
        [title, *(sharpness[name][i] for name in _SETS), sharpness["true"][i]]
        for i, title in enumerate(names)
    ]
    head = ["half a wave", *_SETS.values(), "true"]
    return (
        page.text(
            "How much there is of each octave of spatial frequencies, over that of "
            "real images: 1 is as much. “True” is the correlation of reconstructions "
            "with the originals: what is invented adds energy, and takes from it."
        )
        + charts.curves(drawn, "octave (1 is the finest)", "energy over real")
        + page.table(head, rows)
    )


def _texture(texture):
    if not texture:
        return ""
    scales = ("finest", "0.7 to 1.4 voxels", "1.4 to 2.8 voxels", "2.8 to 5.6 voxels")
    rows = [
        [title, *(texture[name][i] for name in _SETS)] for i, title in enumerate(scales)
    ]
    caption = (
        "Energy of texture over that of real volumes, inside of the head and away from "
        "its rim, between blurs by so many voxels. Much more than 1 at the size of a "
        "latent is patches."
    )
    table = page.table(["texture", *_SETS.values()], rows, caption)
    return page.part("Texture inside", table)


def _anatomy(evaluation):
    if not evaluation.measured:
        return ""
    pieces = []
    for name, title in _MEASURES.items():
        shown = {
            _SETS[kind]: evaluation.measured[kind][name]
            for kind in _SETS
            if len(evaluation.measured[kind][name])
        }
        if shown:
            pieces.append(page.part(title, charts.histograms(shown, title, bins=15)))
    rows = [
        [title, *(evaluation.figures["anatomy"][kind].get(name) for kind in _SETS)]
        for name, title in _MEASURES.items()
    ]
    caption = (
        "Difference of the means from that of the reference, in standard deviations of "
        "the real volumes. Tissues are by DIPY's TissueClassifierHMRF, of up to 16 "
        "volumes of each kind; symmetry is about the middle of what is not dark."
    )
    return page.table(["measurement", *_SETS.values()], rows, caption) + page.row(
        pieces
    )


def _reconstruction(figures: Mapping[str, Any]) -> str:
    names = {
        "mse": "mean squared error",
        "psnr": "peak signal-to-noise ratio, dB",
        "ms_ssim": "structural similarity (MS-SSIM)",
        "codes_used": f"codes used, of {figures['n_codes']}",
        "perplexity": "perplexity of the codes",
    }
    return page.table(
        ["figure", "of real images"], [[n, figures[key]] for key, n in names.items()]
    )


def _probes(probes):
    if not probes:
        return ""
    pieces = [_probed(name, probed) for name, probed in probes.items()]
    return page.text(
        "What images are asked to be, told from the images by a ridge regression that "
        "learnt it from real ones. How well it tells that of other real images is the "
        "most that can be expected of generated ones."
    ) + "".join(pieces)


_PROBE_FIGURES = {
    "right": "share that is right",
    "r": "correlation (r)",
    "slope": "slope (1 is ideal)",
    "error": "mean error",
}


def _probed(name, probed):
    """Write the piece of a page on what a probe says of a condition."""
    keys = probed.figures["generated"]
    rows = [
        [_PROBE_FIGURES[key], *(probed.figures[of][key] for of in _SETS)]
        for key in keys
    ]
    caption = (
        f"In the features “{probed.features}”, of those that tell most of it; learnt "
        f"from {probed.n} real images, by none of which it is judged."
    )
    if probed.guessing is not None:
        caption += (
            " Right are those that are taken for what they are or, if generated, shall "
            f"be; by guessing, {number(probed.guessing)} are."
        )
    drawn = ""
    if probed.kind != "class":
        requested, predicted = (
            x["generated"] for x in (probed.requested, probed.predicted)
        )
        drawn = charts.scatter(
            requested, predicted, f"asked {name}", "told by the probe"
        )
    return page.part(
        name, drawn, page.table(["figure", *_SETS.values()], rows, caption)
    )


def follow_page(name: str, requested: Any, measured: Any, agreement: Mapping) -> str:
    """Write the piece of a page on one number that was asked for.

    Shapes: asked, measured ``(n,)``.
    """
    a, b = np.asarray(requested, float), np.asarray(measured, float)
    finite = np.isfinite(a) & np.isfinite(b)
    figures: list[list[str | Interval]] = [[key, agreement[key]] for key in agreement]
    return page.part(
        name,
        charts.scatter(a[finite], b[finite], f"asked {name}", "measured"),
        page.table(["figure", "value"], figures),
    )
