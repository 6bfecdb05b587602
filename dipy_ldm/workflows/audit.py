"""The workflow behind ``dipy_audit_ldm``."""

from pathlib import Path
import time

from dipy_ldm import _serialization
from dipy_ldm._utils.subjects import refuse_same_subjects
from dipy_ldm.workflows import _launch as launch
from dipy_ldm.workflows._config import write_config
from dipy_ldm.workflows._evaluation_images import (
    describe_evaluated,
    one_of_each_subject,
    read_for,
    read_reference,
    reading_options,
    refuse_samples_beside_real,
    refuse_train_subjects,
    refuse_unnamed,
    take_in_turn,
)
from dipy_ldm.workflows._option_table import AuditOptions
from dipy_ldm.workflows._options import takes_options
from dipy_ldm.workflows._outputs import LDMFlow, json_and_page, write_text
from dipy_ldm.workflows._sources import SourceInputs, is_of_series

_KINDS = "Train", "HeldOut", "Generated"


class AuditLDMFlow(LDMFlow):
    """Search the samples of a latent diffusion model for copies of training images."""

    example = "ldm.safetensors --train_files scans/ --held_out others/"
    verdict = ""  # a sentence on copies, if there are any

    @takes_options
    def run(self, options: AuditOptions) -> None:
        """Search the samples of a latent diffusion model for copies of training images.

        Generated and held-out images are compared with all training images: in voxels,
        in latents, and in learnt features that are invariant to flips and small
        motions. Writes all metrics (.json) and a page (.html), which neither show nor
        name a training image. The exit status is 1 if there are more copies than
        expected by chance. Finding none does not prove that there are none.
        """
        start = time.monotonic()
        ends = ["-private.html"] * options.pictures
        name, folder = options.out_audit, options.out_dir
        outputs = json_and_page(self, options.model_file, folder, ends, out_audit=name)
        path = _serialization.find(options.model_file)
        document = _serialization.read_document(path, "latent_diffusion")
        other, metadata_of_other = read_reference(path, document, options.reference)
        images = _read(document, options, options.generated_files, options.source_files)
        pair = images, (_read(other, options) if other else None)
        with launch.quiet_start():
            from dipy_ldm.workflows import _reports as reports

        model, device = launch.load(path, options.devices, None)
        sampling = launch.choose_sampling(model, options)
        sets = {f"{kind}Images": group for kind, group in zip(_KINDS, images)}
        metadata = describe_evaluated(path, options.seed, sampling, **sets)
        metadata |= metadata_of_other
        result = reports.audit_on_device(device, model, *pair, options, sampling)
        metadata["Seconds"] = round(time.monotonic() - start, 1)
        reports.write_audit(outputs[:2], result, metadata)
        if options.pictures:
            sources = options.train_files, options.held_out, options.generated_files
            files = zip(_KINDS, sources)
            names = {f"{kind}Files": list(map(str, x)) for kind, x in files if x}
            page = reports.pairs_page(result, model, images, metadata | names)
            write_text(outputs[-1], page, mode=0o600)
        self.outputs = outputs
        write_config(self, outputs[0], options, **sampling)
        private_page = outputs[-1] if options.pictures else None
        self.verdict = _verdict(result.spaces_with_copies, private_page)


def _read(document, options, generated_files=None, source_files=None):
    """Read training and held-out images, and generated ones if there are any."""
    of_series = is_of_series(document)
    if not of_series:
        SourceInputs.of(document, source_files)  # refuses unneeded ones
    named = [] if of_series else source_files
    refuse_unnamed(named, options.train_files, options.held_out)
    reading, choice = reading_options(options)
    real = choice | reading | {"source_files": source_files}
    train = read_for(
        document, options.train_files, "train_files", split="train", **real
    )
    held_out = read_for(document, options.held_out, "held_out", **real)
    refuse_samples_beside_real(train, held_out)
    refuse_same_subjects(train.subjects, held_out.subjects)
    held_out = one_of_each_subject(held_out)
    generated = generated_files and read_for(
        document, generated_files, "generated_files", generated=True, **reading
    )
    if generated and of_series:
        generated = take_in_turn(generated, options.n_samples)
    if generated and document["source"]:
        refuse_train_subjects(train, generated)
    return train, held_out, generated


def _verdict(spaces: list[str], pairs: Path | None) -> str:
    """Return what to do if there are copies; empty if there are none."""
    if not spaces:
        return ""
    where = ", ".join(spaces)
    return (
        f"there are more copies of training images than expected by chance (in "
        f"{where}); inspect {pairs or 'the pairs (--pictures)'}, and publish neither "
        "these samples nor the model."
    )
