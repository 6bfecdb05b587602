"""Evaluation results, their conclusions, and the report as an HTML page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
import numpy.typing as npt

from dipy_ldm._utils.values import listed
from dipy_ldm.data.channels import Channel, scan_column
from dipy_ldm.evaluation import _page as page
from dipy_ldm.evaluation._anatomy import TISSUES
from dipy_ldm.evaluation._condition_probe import ProbeResult
from dipy_ldm.evaluation._fidelity import Sets, is_worse_than_real
from dipy_ldm.evaluation._page import Report, number
from dipy_ldm.evaluation.two_sample import NetworkTest
from dipy_ldm.plots import montage, pictures

TITLES = {
    "kernel": "kernel distance (KID)",
    "frechet": "Fréchet distance",
    **{name: name for name in ("precision", "recall", "density", "coverage")},
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
    **{tissue: f"{tissue}, share" for tissue in TISSUES},
}
_TEXTURES = "finest", "0.7 to 1.4 voxels", "1.4 to 2.8 voxels", "2.8 to 5.6 voxels"
# Images of each set on the page, and how many in a row.
_SHOWN, _SHOWN_VOLUMES = (40, 10), (4, 2)
# Training accuracy below which a classifier that finds no difference is inconclusive.
_MIN_TRAINING_ACCURACY = 0.9


@dataclass(eq=False, repr=False)
class Evaluation(Report):
    """Result of an evaluation; notebooks show it as a page.

    Parameters
    ----------
    figures : dict
        All figures, as nested dictionaries of intervals, numbers and text.
    sets : Sets
        The images that were compared.
    measured : dict of str to dict
        Anatomical measurements ``(n,)`` of volumes, by name, by the name of the set.
    probes : dict of str to ProbeResult
        Linear probes of the requested conditions.
    affine : ndarray or None
        From voxels of volumes to millimetres.
    notes : list of str
        How the images were chosen and preprocessed.
    network : NetworkTest or None
        Classifier two-sample test of the generated images, if it was requested.
    channels : sequence of Channel
        Named channels, if there are any.
    """

    figures: dict
    sets: Sets
    measured: dict[str, dict]
    probes: dict[str, ProbeResult]
    affine: np.ndarray | None
    notes: list[str]
    network: NetworkTest | None = None
    channels: Sequence[Channel] = ()

    def conclusions(self) -> list[tuple[str, str]]:
        """Return the conclusions as sentences, each with good, fair, bad or plain."""
        return conclude(self.figures)

    def to_html(self) -> str:
        """Return the report as an HTML page."""
        return write_page(self, {})


def write_page(
    evaluation: Evaluation, about: Mapping[str, Any], agreements: Sequence[str] = ()
) -> str:
    """Return the report of an evaluation as an HTML page."""
    figures = evaluation.figures
    accuracy = "classified as their label, or as the requested one"
    return page.report(
        "Evaluation of a latent diffusion model",
        conclude(figures),
        about,
        evaluation.notes,
        "evaluation.html",
        pictures=_pictures(evaluation),
        fidelity=_fidelity(figures["features"]),
        variety=_table({"similarity of pairs (MS-SSIM)": figures["variety"]}),
        class_accuracy=_table({"share": figures.get("as_asked")}, head=accuracy),
        **_classifier(evaluation),
        sharpness=_sharpness(figures["sharpness"]),
        texture=_by_scale(figures.get("texture"), _TEXTURES, "texture"),
        **_anatomy(evaluation),
        channels=_channels(figures.get("channels", {})),
        agreements="".join(agreements),
        probes="".join(_probe_part(*item) for item in evaluation.probes.items()),
        reconstruction=_reconstruction(figures["reconstruction"]),
    )


def conclude(figures: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the conclusions from the figures as sentences and their kinds."""
    sentences = []
    for name, kind in figures["features"].items():
        worse = [
            title
            for key, title in TITLES.items()
            if is_worse_than_real(kind["figures"], key)
        ]
        can, by = ("can", f" by {', '.join(worse)}") if worse else ("cannot", "")
        start = f"In the features “{name}”, {figures['n']} generated images"
        sentence = f"{start} {can} be distinguished from real ones{by}."
        sentences.append((sentence, "bad" if worse else "good"))
    if figures["variety"]["generated"].low > figures["variety"]["real"].high:
        sentences.append(("Generated images vary less than real ones.", "bad"))
    if "classifier" in figures:
        sentences.append(_conclude_classifier(**figures["classifier"]))
    for name, rows in figures.get("channels", {}).items():
        if differ := [title for title, row in rows.items() if _differs(row)]:
            text = f"{name}: generated and real images differ in {listed(differ)}."
            sentences.append((text, "bad"))
    probes = figures.get("probes", {})
    return sentences + [_conclude_probe(name, probe) for name, probe in probes.items()]


def _differs(row):
    """Return whether the intervals of generated and real images do not overlap."""
    generated, real = row.get("generated"), row.get("real")
    if not (generated and real):
        return False
    return generated.high < real.low or generated.low > real.high


def _conclude_classifier(network, learnt, **_):
    """Return a sentence on whether a network distinguishes samples from real images."""
    values = {name: number(area.value) for name, area in network.items()}
    worse = network["generated"].low > max(0.5, network["real"].high)
    if not worse and (share := learnt["generated"]) < _MIN_TRAINING_ACCURACY:
        sentence = (
            f"A network had an accuracy of only {share:.0%} on its training half: "
            "there is no difference to learn, or the training was too short."
        )
        return sentence, "plain"
    sentence = (
        f"A network trained on half of the images can{'' if worse else 'not'} "
        f"distinguish generated images from real ones (AUC {values['generated']}; "
        f"other real ones {values['real']}, reconstructions {values['reconstructed']})."
    )
    return sentence, "bad" if worse else "good"


def _conclude_probe(name, probe):
    """Return a sentence on whether samples follow a condition, by its probe."""
    if probe["kind"] == "class":
        key, chances = "right", probe["guessing"]
        claim = f"{name}: predictions from generated images match the requests"
    else:
        key, chances = "r", {"real": 0.0, "generated": 0.0}
        claim = f"{name}: predictions from generated images correlate with the requests"
    real, generated = (probe["figures"][n][key] for n in ("real", "generated"))
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


def _table(rows: Mapping[str, Any], caption: str = "", head: str = "figure") -> str:
    """Tabulate figures of generated, real and reconstructed images, if any."""
    cells = [[name, *map(own.get, _SETS)] for name, own in rows.items() if own]
    return page.table([head, *_SETS.values()], cells, caption) if cells else ""


def _by_title(figures):
    """Return figures of sets by their titles on the page."""
    return {title: figures[name] for name, title in _SETS.items()}


def _pictures(evaluation):
    n, columns = _SHOWN if evaluation.affine is None else _SHOWN_VOLUMES
    small = evaluation.affine is None and evaluation.sets.real.shape[2] <= 40
    captions = {
        "real": "Real images (floor).",
        "reconstructed": "The same, reconstructed by the autoencoder.",
        "generated": "Generated images: the first ones, without selection.",
    }
    written = ""
    for name, caption in captions.items():
        images = evaluation.sets.compared[name][:n]
        shown = pictures(images, evaluation.affine, evaluation.channels)
        shown = montage(shown, columns=columns, limits=(0, 1))
        written += page.picture(shown, caption, 1 + small)
    return written


def _fidelity(features):
    """Draw and tabulate the figures in each kind of features."""
    written = ""
    for name, kind in features.items():
        rows = {
            title: {n: figures[key] for n, figures in kind["figures"].items()}
            for key, title in TITLES.items()
            if kind["figures"]["generated"][key] is not None
        }
        why = "No Fréchet distance: it needs more images than features (at most 256)."
        table = _table(rows, why if len(rows) < len(TITLES) else "")
        drawn = page.intervals({title: _by_title(row) for title, row in rows.items()})
        title = f"Features “{name}”"
        written += page.part(title, page.text(kind["says"]), drawn, table)
    return written


def _classifier(evaluation):
    """Return the AUC of the classifiers, and the saliency maps of the network."""
    figures = evaluation.figures.get("classifier")
    if not figures:
        return dict.fromkeys(("classifier", "training_accuracy", "saliency"), "")
    rows = {"network": figures["network"]}
    rows |= {f"logistic regression on “{n}”": x for n, x in figures["features"].items()}
    accuracies = (
        f"{title} {number(figures['learnt'][name])} ({figures['rounds'][name]} rounds)"
        for name, title in _SETS.items()
    )
    caption = (
        "Generated images that the network recognises best, each with its saliency "
        "map; last, the means of the best eight."
    )
    return {
        "classifier": _table(rows, head="area under the curve"),
        "training_accuracy": ", ".join(accuracies),
        "saliency": page.picture(_saliency(evaluation), caption, 2),
    }


def _saliency(evaluation):
    test = evaluation.network
    column = scan_column(evaluation.channels) or 0
    images = evaluation.sets.generated[test.recognised][..., column : column + 1]
    highest = test.maps.max(tuple(range(1, test.maps.ndim)), keepdims=True)
    maps = test.maps / np.maximum(highest, 1e-12)
    pairs = np.stack([images, maps], 1)
    pairs = np.concatenate([pairs[:3], pairs.mean(0, keepdims=True)])
    pairs = pairs.reshape(-1, *pairs.shape[2:])
    return montage(pictures(pairs, evaluation.affine), columns=2)


def _sharpness(sharpness):
    if not sharpness:
        return page.text("The images are too small for octaves of frequencies.")
    octaves = (f"{2**i}–{2 ** (i + 1)} voxels" for i in count())
    return _by_scale(sharpness, octaves, "half wavelength")


def _by_scale(ratios, scales, head):
    """Tabulate ratios at each scale, from the finest."""
    if not ratios:
        return ""
    sets = {n: title for n, title in (_SETS | {"true": "true"}).items() if n in ratios}
    rows = zip(scales, *(ratios[name] for name in sets))
    return page.table([head, *sets.values()], rows)


def _anatomy(evaluation):
    if not evaluation.measured:
        return {"anatomy": "", "histograms": ""}
    measured, figures = evaluation.measured, evaluation.figures["anatomy"]
    drawn, rows = [], {}
    for name, title in _MEASURES.items():
        values = _by_title({kind: measured[kind][name] for kind in _SETS})
        drawn.append(page.part(title, page.histograms(values, title, bins=15)))
        title = title.removesuffix(", ml")
        rows[title] = {kind: figures[kind].get(name) for kind in _SETS}
    table = _table(rows, head="difference in standard deviations")
    return {"anatomy": table, "histograms": page.row(drawn)}


def _channels(figures):
    """Tabulate the measurements of each channel."""
    return "".join(page.part(n, _table(x, head="")) for n, x in figures.items())


def _reconstruction(figures: Mapping[str, Any]) -> str:
    names = {
        "mse": "mean squared error",
        "psnr": "peak signal-to-noise ratio, dB",
        "ms_ssim": "structural similarity (MS-SSIM)",
        "codes_used": f"codes used, of {figures['n_codes']}",
        "perplexity": "perplexity of the codes",
    }
    rows = [[title, figures[key]] for key, title in names.items()]
    return page.table(["figure", "of real images"], rows)


_PROBE_FIGURES = {
    "right": "accuracy",
    "r": "correlation (r)",
    "slope": "slope (1 is ideal)",
    "error": "mean absolute error",
}


def _probe_part(name, probed):
    """Return the part of the page on the probe of a condition."""
    rows = {
        _PROBE_FIGURES[key]: {kind: probed.figures[kind][key] for kind in _SETS}
        for key in probed.figures["generated"]
    }
    caption = (
        f"Predicted from the features “{probed.features}”, which are best for it, by a "
        f"regression fitted to {probed.n} real images of the reference."
    )
    if probed.guessing:
        real, generated = (number(probed.guessing[n]) for n in ("real", "generated"))
        caption += (
            " Accuracy is the share predicted as labelled (generated: as requested); "
            f"by guessing, it is {real} for real and {generated} for generated images."
        )
    drawn = ""
    if probed.kind != "class":
        pairs = probed.requested["generated"], probed.predicted["generated"]
        drawn = page.scatter(*pairs, f"requested {name}", "predicted by the probe")
    return page.part(name, drawn, _table(rows, caption))


def agreement_part(
    name: str, requested: npt.ArrayLike, measured: npt.ArrayLike, agreement: Mapping
) -> str:
    """Return the part of the page on requested and measured values ``(n,)``."""
    drawn = page.scatter(requested, measured, f"requested {name}", "measured")
    return page.part(name, drawn, page.table(["figure", "value"], agreement.items()))
