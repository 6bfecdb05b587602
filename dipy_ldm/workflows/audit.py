"""The workflow behind ``dipy_audit_ldm``."""

import time

from dipy.workflows.workflow import Workflow

from dipy_ldm import _serialization
from dipy_ldm.workflows import _restoring as restoring
from dipy_ldm.workflows._evaluation_images import (
    read_for,
    reference_document,
    refuse_same_subjects,
    refuse_unnamed,
)
from dipy_ldm.workflows._options import values_of
from dipy_ldm.workflows._outputs import json_and_page, write_page, write_private
from dipy_ldm.workflows._provenance import fingerprint, provenance
from dipy_ldm.workflows._quiet_start import quiet_start
from dipy_ldm.workflows._sources import SourceInputs
from dipy_ldm.workflows.evaluate import settled


class AuditLDMFlow(Workflow):
    """Look for training images among what a latent diffusion model generates."""

    verdict = ""  # what was found, if there are copies

    @classmethod
    def get_short_name(cls):
        """Return the prefix of the workflow's options in combined workflows."""
        return "audit_ldm"

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
        sampler="dpm++",
        steps=None,
        eta=0.0,
        guidance=None,
        seed=0,
        batch_size=None,
        channels=False,
        cache_dir=None,
        cache_limit=None,
        devices=None,
        fingerprints=False,
        pictures=False,
        out_dir="",
        out_audit="audit",
    ):
        """Look for training images among what a latent diffusion model generates.

        Each generated image is compared with all training images, and so are held-out
        ones: in voxels, in latents, and in learnt features that flips and small
        motions do not change. Writes all figures (.json) and a page (.html), which
        neither show nor name a training image. The exit status is 1 if there are copies
        beyond chance. A pass proves nothing.

        Parameters
        ----------
        model_file : string or Path
            A model file that dipy_train_ldm wrote, or the word mnist for the
            packaged model of handwritten digits.
        train_files : variable string or Path, optional
            All images that the model was trained on: NIfTI volumes, folders, wildcards
            or lists of them, or arrays (.npy, .npz) and PNG files for a model of
            images, or the word mnist for the training digits.
        held_out : variable string or Path, optional
            Images of other subjects, 20 at least and better hundreds, or the word mnist
            for the test digits.
        suffix : variable string, optional
            Volumes: kinds of scans to take, by the ends of their names, such as T1w.
            Needed where they have several. What is in folders derivatives or sourcedata
            is taken only if these are named.
        filter : variable string, optional
            Volumes: values that names of files must have, such as task=rest ses=01,02
            for any entity of BIDS.
        generated_files : variable string or Path, optional
            What the model generated, such as what shall be published. None is for
            generating now, as many as there are held-out images; a model with
            conditions is asked for those of the training images.
        source_files : variable string or Path, optional
            What the training and the held-out volumes are made of, where the model
            makes volumes of others; the sub- and ses- of their names tell which belong
            together.
        reference : string or Path, optional
            File of another model, of images of the same kind and size, that saw none of
            these. How well it tells training images from held-out ones stands beside
            the same of the model, and is no leak.
        n_samples : int, optional
            Images of each kind that are compared, at most. None is for as many as there
            are, up to 2000.
        sampler : string, optional
            How to walk back from noise: ddpm, ddim or dpm++.
        steps : int, optional
            Calls of the network for each sample. None is for the usual number.
        eta : float, optional
            Share of fresh noise in each step of ddim, from 0 to 1.
        guidance : float, optional
            How far to follow the network away from its smaller guide. None is for 2, or
            1 for volumes.
        seed : int, optional
            Seed of the noise, and of all that is drawn.
        batch_size : int, optional
            Images that are generated at once. None is for as many as memory surely
            allows.
        channels : bool, optional
            Take the fourth axis of the files for channels.
        cache_dir : string or Path, optional
            Where volumes are kept as the networks need them. None is for the user's
            cache.
        cache_limit : float, optional
            Gigabytes that all volumes may take there. Beyond, those that were used
            least recently are removed, but none that is in use. None is for no limit.
        devices : variable string, optional
            Device of this machine to use, such as GPU:1 or CPU:0. None is for the first
            GPU or, where there is none, for the processor.
        fingerprints : bool, optional
            Write also a file (.safetensors) of what dipy_generate_ldm --no_copies needs
            to know training images again: 96 numbers of each. They tell of an image
            whether it was in the training set; keep them as the data are kept.
        pictures : bool, optional
            Write also a private page of the most suspicious pairs (-private.html),
            which shows training images and names them: keep it as the data are kept.
        out_dir : string or Path, optional
            Output directory.
        out_audit : string, optional
            Stem of the names of the files.
        """
        start = time.monotonic()
        ends = [".safetensors"] * fingerprints + ["-private.html"] * pictures
        outputs = json_and_page(self, model_file, out_dir, ends, out_audit=out_audit)
        path = _serialization.find(model_file)
        document = _serialization.read_document(path, "latent_diffusion")
        files = train_files, held_out, generated_files
        how = {
            "channels": channels,
            "caching": {"cache_dir": cache_dir, "cache_limit": cache_limit},
        }
        choice = {"suffix": suffix, "filter": values_of(filter)}
        beside = reference_document(path, reference)
        images = _read(document, files, how, source_files=source_files, **choice)
        reference_images = beside and _read(beside, (*files[:2], None), how, **choice)
        with quiet_start():
            from dipy_ldm.workflows import _reports as judgement

        model, place = restoring.load(path, devices, None)
        other = reference_images and judgement.load_reference(
            reference, reference_images[:2], devices
        )
        judgement.refuse_training_images(model, *images[:2])
        options, sampling_facts = settled(
            model,
            generated_files,
            {"sampler": sampler, "steps": steps, "eta": eta, "guidance": guidance},
            seed=seed,
            batch_size=batch_size,
        )
        facts = provenance(path, Seed=seed) | _facts(images, reference) | sampling_facts
        result = judgement.audit_on(
            place, model, images, options, reference=other, n=n_samples, seed=seed
        )
        facts["Seconds"] = round(time.monotonic() - start, 1)
        figures, html = judgement.audit_outputs(result, facts)
        write_page(outputs[:2], facts | {"Notes": result.notes} | figures, html)
        if fingerprints:
            judgement.guard(result, facts["ModelFingerprint"]).save(outputs[2])
        if pictures:
            named = facts | _names(files)
            pairs = judgement.pairs_page(result, model, images[0], named)
            write_private(outputs[-1], pairs)
        self.verdict = _verdict(result, outputs[-1] if pictures else None)


def _read(document, files, how, source_files=None, **choice):
    """Read training and held-out images, and generated ones if there are any."""
    train_files, held_out, generated_files = files
    SourceInputs.of(
        document, source_files
    )  # says whether they are what the model needs
    refuse_unnamed(source_files, train_files, held_out)
    both = choice | how | {"source_files": source_files}
    train = read_for(document, train_files, "train_files", split="train", **both)
    held_out_images = read_for(document, held_out, "held_out", **both)
    refuse_same_subjects(train, held_out_images)
    generated = generated_files and read_for(
        document, generated_files, "generated_files", generated=True, **how
    )
    return train, held_out_images, generated


def _verdict(result, pairs):
    """Say what to do if there are copies; nothing if there are none."""
    if not result.spaces_with_copies:
        return ""
    where = ", ".join(result.spaces_with_copies)
    return (
        f"there are copies of training images beyond chance (in {where}); look at "
        f"{pairs or 'the pairs (--pictures)'}, and publish neither these samples nor "
        "the model."
    )


def _facts(images, reference):
    """Say what a model was audited with, without names: they may be those of people."""
    names = "TrainImages", "HeldOutImages", "GeneratedImages"
    facts: dict = {n: len(x.images) for n, x in zip(names, images, strict=True) if x}
    if reference is None:
        return facts
    other = _serialization.find(reference)
    return facts | {"Reference": other.name, "ReferenceFingerprint": fingerprint(other)}


def _names(files):
    """Say what files a model was audited with."""
    names = "TrainFiles", "HeldOutFiles", "GeneratedFiles"
    return {n: list(map(str, x)) for n, x in zip(names, files, strict=True) if x}
