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
from dipy_ldm.workflows._options import gather, share_descriptions
from dipy_ldm.workflows._outputs import LDMFlow, json_and_page, write_text
from dipy_ldm.workflows._sources import SourceInputs, is_of_series

_KINDS = "Train", "HeldOut", "Generated"


class AuditLDMFlow(LDMFlow):
    """Search the samples of a latent diffusion model for copies of training images."""

    example = "ldm.safetensors --train_files scans/ --held_out others/"
    verdict = ""  # a sentence on copies, if there are any

    @share_descriptions
    def run(
        self,
        model_file,
        train_files=None,
        held_out=None,
        suffix=None,
        filter=None,
        generated_files=None,
        source_files=None,
        reference=None,
        n_samples=None,
        steps=None,
        guidance=None,
        seed=0,
        channels=False,
        cache_dir=None,
        devices=None,
        pictures=False,
        out_dir="",
        out_audit="audit",
    ):
        """Search the samples of a latent diffusion model for copies of training images.

        Generated and held-out images are compared with all training images: in voxels,
        in latents, and in learnt features that are invariant to flips and small
        motions. Writes all metrics (.json) and a page (.html), which neither show nor
        name a training image. The exit status is 1 if there are more copies than
        expected by chance. Finding none does not prove that there are none.

        Parameters
        ----------
        train_files : variable string or Path, optional
            All images that the model was trained on: NIfTI volumes, folders, wildcards
            or lists of them; arrays (.npy, .npz) and PNG files for a model of images;
            or the word mnist for the training digits. Of diffusion series, all volumes
            are compared.
        held_out : variable string or Path, optional
            Images of other subjects, at least 20 and preferably hundreds, or the word
            mnist for the test digits. One image per subject is compared.
        generated_files : variable string or Path, optional
            Generated images, such as those to be published. They must not be generated
            from source images of training subjects. Volumes are taken in turn from each
            diffusion series. Default: generate as many as there are held-out images,
            with the conditions of the training images and the source images of the
            held-out ones, if the model has any.
        source_files : variable string or Path, optional
            Source images of the training and the held-out volumes, for models
            conditioned on source images, paired by sub- and ses-.
        reference : string or Path, optional
            Another model, of images of the same kind and size, trained on none of
            these. How well it separates training from held-out images is reported for
            comparison: that much is not memorisation.
        n_samples : int, optional
            Maximum number of images of each kind. Default: all, up to 2,000.
        seed : int, optional
            Random seed of the noise and of all choices.
        pictures : bool, optional
            Also write a private page of the most suspicious pairs (-private.html),
            which shows and names training images; protect it like the data.
        out_audit : string, optional
            Name of the output files, without extension.
        """
        options = gather(locals())
        start = time.monotonic()
        ends = ["-private.html"] * pictures
        outputs = json_and_page(self, model_file, out_dir, ends, out_audit=out_audit)
        path = _serialization.find(model_file)
        document = _serialization.read_document(path, "latent_diffusion")
        other, metadata_of_other = read_reference(path, document, reference)
        images = _read(document, options, generated_files, source_files)
        pair = images, (_read(other, options) if other else None)
        with launch.quiet_start():
            from dipy_ldm.workflows import _reports as reports

        model, device = launch.load(path, devices, None)
        sampling = launch.choose_sampling(model, options)
        sets = {f"{kind}Images": group for kind, group in zip(_KINDS, images)}
        metadata = describe_evaluated(path, seed, sampling, **sets) | metadata_of_other
        result = reports.audit_on_device(device, model, *pair, options, sampling)
        metadata["Seconds"] = round(time.monotonic() - start, 1)
        reports.write_audit(outputs[:2], result, metadata)
        if pictures:
            files = zip(_KINDS, (train_files, held_out, generated_files))
            names = {f"{kind}Files": list(map(str, x)) for kind, x in files if x}
            page = reports.pairs_page(result, model, images, metadata | names)
            write_text(outputs[-1], page, mode=0o600)
        self.outputs = outputs
        write_config(self, outputs[0], options, **sampling)
        self.verdict = _verdict(
            result.spaces_with_copies, outputs[-1] if pictures else None
        )


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
