"""Write metrics and pages of evaluations and audits."""

from collections.abc import Sequence
import logging
import math
from pathlib import Path
import re
from typing import Any

import numpy as np

from dipy_ldm import _serialization
from dipy_ldm._backend import distributed
from dipy_ldm._utils.checks import InputError
from dipy_ldm._utils.values import listed
from dipy_ldm.data._paths import rows_of_lists
from dipy_ldm.data._tables import as_number
from dipy_ldm.evaluation import (
    _audit_report as audit_page,
    _measures as measures,
)
from dipy_ldm.evaluation._condition_probe import measure_agreement
from dipy_ldm.evaluation._page import report
from dipy_ldm.evaluation.audit import Audit, Reference, audit, refuse_training_images
from dipy_ldm.evaluation.evaluate import Evaluation, as_json, evaluate, scaled
from dipy_ldm.latent_diffusion import LatentDiffusion
from dipy_ldm.workflows import _launch as launch
from dipy_ldm.workflows._conditions import read_facts
from dipy_ldm.workflows._evaluation_images import EvaluationImages
from dipy_ldm.workflows._option_table import AuditOptions, EvaluateOptions
from dipy_ldm.workflows._outputs import write_page

logger = logging.getLogger(__name__)


def label_metadata(metadata: dict) -> dict[str, Any]:
    """Return the metadata that a page shows, with their names split into words."""
    return {
        re.sub("(?<!^)(?=[A-Z])", " ", name).capitalize(): _shorten(value)
        for name, value in metadata.items()
        if name not in ("Synthetic", "GeneratedBy")
    }


def _shorten(value: Any) -> Any:
    if isinstance(value, list):
        return " ".join(value[:3]) + (" …" if len(value) > 3 else "")
    return value


def evaluate_images(
    model: LatentDiffusion,
    real: EvaluationImages,
    generated: EvaluationImages | None,
    options: EvaluateOptions,
    sampling: dict,
) -> Evaluation:
    """Evaluate a model, with progress bars."""
    evaluation = evaluate(
        model,
        real.images,
        generated.images if generated else None,
        n=options.n_samples,
        conditions=real.conditions,
        source=real.sources,
        requested=generated.conditions if generated else None,
        subjects=real.named,
        subjects_generated=generated.named if generated else None,
        classifier=options.classifier,
        seed=options.seed,
        verbose=True,
        **sampling,
    )
    notes = real.notes + (generated.notes if generated else [])
    evaluation.notes = notes + evaluation.notes
    return evaluation


def write_evaluation(
    outputs: Sequence[Path],
    evaluation: Evaluation,
    metadata: dict,
    followed: dict[str, tuple],
) -> None:
    """Write the metrics and the page of an evaluation."""
    parts = [
        measures.agreement_part(name, requested, measured, agreement)
        for name, (requested, measured, agreement) in followed.items()
    ]
    agreements = {name: agreement for name, (*_, agreement) in followed.items()}
    figures = evaluation.figures | ({"followed": agreements} if agreements else {})
    page = measures.write_page(evaluation, label_metadata(metadata), parts)
    _write(outputs, evaluation, metadata, figures, page)


def _write(
    outputs: Sequence[Path],
    result: Evaluation | Audit,
    metadata: dict,
    figures: dict,
    page: str,
) -> None:
    """Log the conclusions of a result; write these, its figures and its page."""
    conclusions = [sentence for sentence, _ in result.conclusions()]
    for sentence in conclusions:
        logger.info("%s", sentence)
    record = {"Notes": result.notes, "Conclusions": conclusions}
    write_page(outputs, metadata | record | {"Figures": as_json(figures)}, page)


def write_series(
    outputs: Sequence[Path], figures: dict, pieces: dict[str, str], metadata: dict
) -> None:
    """Write the metrics and the page of an evaluation of diffusion series."""
    title = "Evaluation of diffusion series"
    page = report(title, (), label_metadata(metadata), (), "series.html", **pieces)
    write_page(outputs, metadata | {"Figures": as_json(figures)}, page)


def audit_on_device(
    device: object,
    model: LatentDiffusion,
    images: tuple[EvaluationImages, EvaluationImages, EvaluationImages | None],
    reference_images: Sequence[EvaluationImages] | None,
    options: AuditOptions,
    sampling: dict,
) -> Audit:
    """Audit a model on a device, with a reference model if there is one."""
    train, held_out, generated = images
    reference = None
    if options.reference and reference_images:
        path = _serialization.find(options.reference)
        other, _ = launch.load(path, options.devices, None)
        reference_train, reference_held_out, _ = reference_images
        sets = reference_train.images, reference_held_out.images
        conditions = reference_train.conditions, reference_held_out.conditions
        reference = Reference(other, *sets, conditions=conditions)
    sets, names = (train.images, held_out.images), (train.names, held_out.names)
    with distributed(device):
        try:
            result = audit(
                model,
                *sets,
                generated.images if generated else None,
                conditions=train.conditions,
                conditions_held_out=held_out.conditions,
                source=train.sources,
                source_held_out=held_out.sources,
                requested=generated.conditions if generated else None,
                subjects=train.named,
                reference=reference,
                n=options.n_samples,
                seed=options.seed,
                verbose=True,
                **sampling,
            )
        except InputError:
            refuse_training_images(model.vqvae_, *sets, names)  # and name them
            raise
    notes = [note for group in images if group for note in group.notes]
    result.notes = [*dict.fromkeys(notes), *result.notes]
    return result


def write_audit(outputs: Sequence[Path], result: Audit, metadata: dict) -> None:
    """Write the metrics and the page of an audit, without names of training images."""
    members = {
        name: {"auc": m.auc, "found": m.true_positive_rate, "false_rate": m.false_rate}
        for name, m in result.members.items()
    }
    figures = {
        "n": result.n,
        "n_held_out": result.n_held_out,
        "copies_beyond_chance": result.spaces_with_copies,
        "copies": result.findings,
        "membership": members,
        "classes": result.classes,
        # Its index would identify a training image to anyone who has the set.
        "pairs": [
            {name: value for name, value in pair._asdict().items() if name != "train"}
            for pair in result.pairs
        ],
    }
    page = audit_page.write_page(result, label_metadata(metadata))
    _write(outputs, result, metadata, figures, page)


def pairs_page(
    result: Audit,
    model: LatentDiffusion,
    images: tuple[EvaluationImages, EvaluationImages, EvaluationImages | None],
    metadata: dict,
) -> str:
    """Return the page of the most suspicious pairs, which shows training images."""
    train, _, generated = images
    names = {pair.train: train.names[pair.train] for pair in result.pairs}
    vqvae = model.vqvae_

    def image(number: int) -> np.ndarray:
        return scaled(train.images[[number]], vqvae)[0]

    affine = vqvae.affine_ if result.generated.ndim == 5 else None
    samples = generated.names if generated else ()
    about = label_metadata(metadata)
    channels = model.channels_
    return audit_page.write_pairs(
        result, image, names, affine, about, samples, channels
    )


def read_measurements(
    document: dict, table: str | Path | None, seed: int = 0
) -> dict[str, tuple]:
    """Read requested and measured values of generated volumes, and compare them."""
    if table is None:
        return {}
    numeric = [n for n, c in document["conditions"].items() if c["kind"] != "class"]
    rows = {Path(f): lines[0].cells for f, lines in rows_of_lists([table]).items()}
    columns: set[str] = set().union(*rows.values())
    names = [name for name in numeric if name in columns]
    if not names:
        raise InputError(
            f"{table} has no column of a numeric condition of the model "
            f"({listed(numeric) or 'it has none'})",
            "give a list of generated volumes with a column for each measured "
            "condition",
        )
    if classes := [n for n in document["conditions"] if n in columns - set(numeric)]:
        logger.warning("measurements of classes are not compared: %s.", listed(classes))
    sidecars = [read_facts(file).get("Conditions", {}) for file in rows]
    measurements = {}
    for name in names:
        requested = [_number(conditions.get(name)) for conditions in sidecars]
        if not any(map(math.isfinite, requested)):
            raise InputError(
                f"the JSON files beside the volumes of {table} have no requested "
                f"{name}",
                "generate the volumes with `conditions` or a `table`",
            )
        measured = [_number(cells.get(name)) for cells in rows.values()]
        agreement = measure_agreement(requested, measured, seed)
        measurements[name] = requested, measured, agreement
    return measurements


def _number(value: object) -> float:
    number = as_number(str(value)) if value is not None else None
    return math.nan if number is None else number
