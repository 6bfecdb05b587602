"""The workflow behind ``dipy_evaluate_ldm``."""

from collections.abc import Sequence
from pathlib import Path
import time
from typing import Any

from dipy.workflows.workflow import Workflow

from dipy_ldm import _serialization
from dipy_ldm._utils.checks import InputError
from dipy_ldm.workflows import _restoring as restoring
from dipy_ldm.workflows._evaluation_images import read_for
from dipy_ldm.workflows._options import values_of
from dipy_ldm.workflows._outputs import json_and_page, write_page
from dipy_ldm.workflows._provenance import provenance
from dipy_ldm.workflows._quiet_start import quiet_start
from dipy_ldm.workflows._sources import SourceInputs


class EvaluateLDMFlow(Workflow):
    """Judge what a latent diffusion model generates beside real images."""

    @classmethod
    def get_short_name(cls):
        """Return the prefix of the workflow's options in combined workflows."""
        return "evaluate_ldm"

    def run(
        self,
        model_file,
        real_files=None,
        suffix=None,
        filter=None,
        generated_files=None,
        source_files=None,
        measurements=None,
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
        out_dir="",
        out_evaluation="evaluation",
    ):
        """Judge what a latent diffusion model generates beside real images.

        Writes all figures (.json) and a page with pictures that explains them (.html),
        one file that needs no network. Each figure stands beside that of real images
        and that of reconstructions.

        Parameters
        ----------
        model_file : string or Path
            A model file that dipy_train_ldm wrote, or the word mnist for the
            packaged model of handwritten digits.
        real_files : variable string or Path, optional
            Images that the model was not trained on, 40 at least: NIfTI volumes,
            folders, wildcards or lists of them, or arrays (.npy, .npz) and PNG files
            for a model of images, or the word mnist for the test digits. They are
            brought to the grid of the model. Half of them is what all others are
            compared with.
        suffix : variable string, optional
            Volumes: kinds of scans to take, by the ends of their names, such as T1w.
            Needed where they have several. What is in folders derivatives or sourcedata
            is taken only if these are named.
        filter : variable string, optional
            Volumes: values that names of files must have, such as task=rest ses=01,02
            for any entity of BIDS.
        generated_files : variable string or Path, optional
            What the model generated. None is for generating now, half as many as there
            are real images; a model with conditions is asked for those that tables
            around the real files tell.
        source_files : variable string or Path, optional
            What the real volumes are made of, paired with them as in the training,
            where the model makes volumes of others: samples are generated of the same.
            Not needed with generated files.
        measurements : string or Path, optional
            A list (.tsv or .csv) of generated volumes with a column for each condition
            that was measured on them, by tools of yours. What was asked for is in the
            JSON files beside the volumes.
        n_samples : int, optional
            Images of each kind that are compared. None is for as many as there are, up
            to 5000.
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
        out_dir : string or Path, optional
            Output directory.
        out_evaluation : string, optional
            Stem of the names of the files.
        """
        start = time.monotonic()
        names = {"out_evaluation": out_evaluation}
        outputs = json_and_page(self, model_file, out_dir, **names)
        path = _serialization.find(model_file)
        document = _serialization.read_document(path, "latent_diffusion")
        if measurements is not None and not generated_files:
            raise InputError(
                "`measurements` are of generated volumes; give these, too, as "
                "`generated_files`."
            )
        sources = None if generated_files else source_files
        if not generated_files:
            SourceInputs.of(
                document, sources
            )  # says whether they are what the model needs
        how = {
            "channels": channels,
            "caching": {"cache_dir": cache_dir, "cache_limit": cache_limit},
        }
        choice = {"suffix": suffix, "filter": values_of(filter)}
        real = read_for(
            document, real_files, "real_files", source_files=sources, **choice, **how
        )
        generated = generated_files and read_for(
            document, generated_files, "generated_files", generated=True, **how
        )
        with quiet_start():
            from dipy_ldm.workflows import _reports as judgement

        followed = judgement.read_measurements(document, measurements)
        model, place = restoring.load(path, devices, None)
        options = {"sampler": sampler, "steps": steps, "eta": eta, "guidance": guidance}
        files = {"RealFiles": real_files, "GeneratedFiles": generated_files}
        named = {name: list(map(str, paths)) for name, paths in files.items() if paths}
        facts = provenance(path, Seed=seed, **named)
        options, sampling_facts = settled(
            model, generated_files, options, seed=seed, batch_size=batch_size
        )
        facts |= sampling_facts
        evaluation = judgement.evaluate_on(
            place, model, real, generated, options, n=n_samples, seed=seed
        )
        facts["Seconds"] = round(time.monotonic() - start, 1)
        figures, html = judgement.evaluation_outputs(evaluation, facts, followed)
        write_page(outputs, facts | {"Notes": evaluation.notes} | figures, html)


def settled(
    model: Any,
    generated_files: Sequence[str | Path] | None,
    options: dict,
    *,
    seed: int,
    batch_size: int | None,
) -> tuple[dict, dict]:
    """Choose the usual steps and guidance where none are given, and check all.

    Parameters
    ----------
    model : LatentDiffusion
        Fitted model.
    generated_files : sequence of str or Path, optional
        Where samples are read from; None are generated.
    options : dict
        ``sampler``, ``steps``, ``eta`` and ``guidance``.
    seed, batch_size : int
        As of :meth:`dipy_ldm.LatentDiffusion.check_sampling`.

    Returns
    -------
    options : dict
        The same without None, and the size of batches.
    facts : dict
        What is to be said of the samples.

    Raises
    ------
    InputError
        If nothing could be generated with them.
    """
    if generated_files:
        return options, {}
    options = dict(options)
    if options["steps"] is None:
        options["steps"] = model.default_steps(options["sampler"])
    if options["guidance"] is None:
        options["guidance"] = model.default_guidance
    model.check_sampling(**options, seed=seed, batch_size=batch_size)
    facts = {name.capitalize(): value for name, value in options.items()}
    return options | {"batch_size": batch_size}, facts
