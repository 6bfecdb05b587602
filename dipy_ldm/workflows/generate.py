"""The workflow behind ``dipy_generate_ldm``."""

import json
import logging
from typing import Any

from dipy.workflows.workflow import Workflow
import numpy as np
from tqdm import tqdm

from dipy_ldm import _serialization
from dipy_ldm._conditions import from_saved
from dipy_ldm._utils.checks import InputError, at_least, choose
from dipy_ldm._utils.files import replacing
from dipy_ldm._utils.values import parse_conditions
from dipy_ldm.data._nifti import DTYPES
from dipy_ldm.workflows import _workers as workers
from dipy_ldm.workflows._condition_table import read_requested_table
from dipy_ldm.workflows._conditions import RequestedConditions, count_of
from dipy_ldm.workflows._outputs import interrupted, output_paths, refuse_overwriting
from dipy_ldm.workflows._provenance import affine_of, provenance, write_with_sidecar
from dipy_ldm.workflows._quiet_start import quiet_start
from dipy_ldm.workflows._restoring import number_noise
from dipy_ldm.workflows._samples import Samples
from dipy_ldm.workflows._sources import SourceInputs, pieces

logger = logging.getLogger(__name__)

# What a sample depends on, beside the model and its number.
_SAMPLING = {
    "sampler": "Sampler",
    "steps": "Steps",
    "eta": "Eta",
    "guidance": "Guidance",
    "seed": "Seed",
    "same_noise": "SameNoise",
}


class GenerateLDMFlow(Workflow):
    """Generate images with a latent diffusion model."""

    written = 0  # volumes
    guard: Any = None  # what knows copies
    spare = 0  # the next number of a sample in place of a copy
    whole: range | None = None  # all samples in whose place there may be others

    @classmethod
    def get_short_name(cls):
        """Return the prefix of the workflow's options in combined workflows."""
        return "generate_ldm"

    def when_interrupted(self) -> str:
        """Say what Ctrl-C left behind.

        Returns
        -------
        str
            One sentence.
        """
        return interrupted(self.written)

    def run(
        self,
        model_file,
        n_samples=None,
        conditions=None,
        source_files=None,
        table=None,
        same_noise=False,
        strict=False,
        no_copies=None,
        sampler="dpm++",
        steps=None,
        eta=0.0,
        guidance=None,
        seed=0,
        first_sample=0,
        batch_size=None,
        tile=None,
        strategy="auto",
        devices=None,
        dtype="float32",
        bids=False,
        suffix=None,
        skull_stripped=False,
        out_dir="",
        out_samples="samples",
    ):
        """Generate images or volumes with a latent diffusion model.

        Images become an array (.npz), which tells how it was made, and a picture
        (.png). Volumes become a NIfTI file each, at the place and with the voxel size
        of those that the model learnt from, with a JSON file that tells how it was
        made, and a picture of three planes of each. A sample depends on the seed and on
        its number alone; one of a source on the name of its source, too.

        Parameters
        ----------
        model_file : string or Path
            A model file that dipy_train_ldm wrote, or the word mnist for the
            packaged model of handwritten digits.
        n_samples : int, optional
            Number of samples, of each source if there are any. None is for as many as
            conditions have values or, where each has one, for 64 images or 4 volumes,
            or 1 of each source.
        conditions : variable string, optional
            What is asked for, as name=value: age=70 sex=F. Several values with commas
            between them are one for each sample: age=50,60,70. What is left out is
            drawn from the distribution of the training images, and written down;
            age=none, or none for all, leaves it unspecified.
        source_files : variable string or Path, optional
            Volumes that the samples are made of, of any grid, where the model has
            learnt from such: NIfTI files, folders of them, wildcards, or lists. Samples
            lie on the grid of the model and are named after them.
        table : string or Path, optional
            The same as a table (.tsv or .csv) under the names of the conditions, one
            sample a row. What is missing is drawn; other columns make no difference.
        same_noise : bool, optional
            Make all samples, those of each source, from the noise of the first: what
            differs between them is due to their conditions.
        strict : bool, optional
            Refuse numbers outside of those that the model has learnt from, which are
            otherwise taken for the nearest of them with a warning.
        no_copies : string or Path, optional
            Fingerprints of the training images, which dipy_audit_ldm --fingerprints
            wrote. Samples that are as near to a training image as hardly any held-out
            one are made anew, with numbers after those of the others, and counted.
        sampler : string, optional
            How to walk back from noise: ddpm, ddim or dpm++.
        steps : int, optional
            Calls of the network for each sample. None is for 10 of dpm++, and 50 of
            the others.
        eta : float, optional
            Share of fresh noise in each step of ddim, from 0 to 1.
        guidance : float, optional
            How far to follow the network away from its smaller guide: 1 is without
            the guide, and faster; the higher, the clearer the samples and the less
            they vary. None is for 2, or 1 for volumes.
        seed : int, optional
            Seed of the noise.
        first_sample : int, optional
            Number of the first sample; with n_samples 1, that sample alone.
        batch_size : int, optional
            Images that are generated at once. None is for as many as memory surely
            allows. Volumes are generated one by one.
        tile : int, optional
            Voxels along a side of the tiles in which large volumes are decoded.
            None is for as large as memory surely allows.
        strategy : string, optional
            How the samples are spread over devices: auto (all machines that Slurm
            or TF_CONFIG names, and all their GPUs), multi_worker (several machines),
            mirrored (all devices of this machine that are named) or none. The
            samples are the same. Each of several machines makes its part of them,
            and the names of its array and picture end in the number of the first.
        devices : variable string, optional
            Devices of this machine to use, such as GPU:0 or 0. None is for all GPUs
            or, where there are none, for the processor.
        dtype : string, optional
            Type of the voxels of volumes: float32, float64, or an integer type such
            as int16 or uint8.
        bids : bool, optional
            Write volumes into a dataset as BIDS has derivatives, named by it and by
            their numbers, with a participants.tsv of what was asked for and without a
            picture. If it is there, they are added to it.
        suffix : string, optional
            The last part of BIDS' names. None is for that of the volumes that the model
            learnt from, such as T1w, if they had one.
        skull_stripped : bool, optional
            Say in the dataset that there is nothing but brains, as BIDS asks for.
        out_dir : string or Path, optional
            Output directory.
        out_samples : string, optional
            Stem of the names of the files.
        """
        (stem,) = output_paths(self, model_file, out_dir, out_samples=out_samples)
        # Wrong paths are answered before the seconds that Keras takes.
        path = _serialization.find(model_file)
        document = _serialization.read_document(path, "latent_diffusion")
        is_volume = len(document["shape"]) == 4
        request = _read_request(conditions, table, document)
        sources = _look(document, source_files, bids)
        n_samples = _count(n_samples, request, is_volume, sources)
        numbers = range(first_sample, first_sample + n_samples)
        requested = RequestedConditions.of(
            path, request, numbers, strict, seed, same_noise
        )
        cluster = workers.find(strategy)
        numbers, sources = _part_of(cluster, numbers, sources)
        if not numbers:
            return  # there are more workers than samples
        samples = (
            Samples.inside(self, stem.parent, numbers, suffix, document)
            if bids
            else _beside(stem, numbers, sources, is_volume, cluster is not None)
        )
        refuse_overwriting(self, samples.paths, samples.cure)
        choose("type of voxels", dtype, DTYPES)
        model, strategy = _load(path, "auto" if cluster else strategy, devices)
        options = {
            "sampler": sampler,
            "steps": model.default_steps(sampler) if steps is None else steps,
            "eta": eta,
            "guidance": model.default_guidance if guidance is None else guidance,
            "seed": seed,
            "batch_size": batch_size,
            "tile": tile,
        }
        model.check_sampling(n_samples, first=first_sample, **options)
        model.check_memory(1 if is_volume else batch_size, tile, strategy)
        workers.keep_log(cluster, samples.log)
        options |= {
            "same_noise": same_noise,
            "strategy": strategy,
            "verbose": workers.is_first(cluster),
        }
        facts = provenance(path, **{_SAMPLING[o]: options[o] for o in _SAMPLING})
        facts |= {"SkullStripped": skull_stripped} if bids else {}
        self._know_copies(
            no_copies, facts, numbers, alone=not (same_noise or cluster or sources)
        )
        with samples.being_written():
            if is_volume:
                self._write(
                    model, samples, numbers, sources, requested, options, dtype, facts
                )
            else:
                self._write_images(model, samples, numbers, requested, options, facts)

    def _write(
        self, model, samples, numbers, sources, requested, options, dtype, facts
    ):
        """Generate and write volume after volume, and draw planes of the first."""
        from dipy_ldm import _backend, plots

        affine = affine_of(model)
        pictures = []
        # One at a time on each device.
        quiet = not options["verbose"]
        options = options | {"batch_size": 1, "verbose": False}
        at_once = _backend.count_replicas(options["strategy"])
        work = [*pieces(sources, samples.names, numbers, at_once)]
        noise = number_noise(sources.files) if sources else {}
        for file, names, batch in tqdm(work, "generate", disable=quiet):
            source = {"source": sources.read(file)} if sources else {}
            before = self.spare
            volumes, used = self._generate(
                model, batch, requested, options | source, noise.get(file, 0)
            )
            refused = {"Refused": self.spare - before} if self.guard else {}
            for number, sample, name, volume in zip(batch, used, names, volumes):
                own = {"Sample": sample} | requested.facts(range(number, number + 1))
                own |= {"Noise": noise[file], "Sources": [str(file)]} if sources else {}
                # Of all that are made together, beside the first.
                own |= refused if name == names[0] else {}
                write_with_sidecar(name, volume, affine, dtype, facts | own)
                self.written += 1
                if self.written <= 20:
                    pictures.append(plots.planes(volume[None], affine)[0])
        samples.draw(np.stack(pictures), columns=2)
        self._tell_refused(numbers)

    def _write_images(self, model, samples, numbers, requested, options, facts):
        """Generate, write and draw all images."""
        images, used = self._generate(model, numbers, requested, options)
        arrays = {"images": images, "sample": used, "seed": options["seed"]}
        facts |= requested.facts(numbers)
        if self.guard:
            facts["Refused"] = self._tell_refused(numbers)
        _save(samples.names[0], facts, **arrays, **requested.arrays(numbers))
        samples.draw(images)

    def _generate(self, model, numbers, requested, options, noise=0):
        """Generate some of the samples; return their numbers as well."""
        if self.guard is None:
            return _generate(model, numbers, requested, options, noise), [*numbers]
        from dipy_ldm.evaluation._copy_filter import generate_new

        conditions = requested.subset(numbers)

        def generate(places, first):
            subset = conditions
            if isinstance(conditions, dict):
                subset = {
                    name: [v[i] for i in places] for name, v in conditions.items()
                }
            return model.predict(len(places), conditions=subset, first=first, **options)

        def find(images):
            return self.guard.copies(images, model.vqvae_)

        spare = self.spare
        images, used, self.spare = generate_new(
            generate, find, numbers, spare, self.whole
        )
        return images, used

    def _tell_refused(self, numbers):
        """Say how many samples were copies, if any were looked for."""
        refused = self.spare - numbers.stop
        if self.guard:
            text = "%d samples were copies, and were made anew with other numbers."
            logger.info(text, refused)
        return refused

    def _know_copies(self, path, facts, numbers, alone):
        """Read what knows copies, if there shall be none."""
        if path is None:
            return
        if not alone:
            raise InputError(
                "`no_copies` makes samples anew from other noise, one after the other; "
                "leave out `same_noise` and sources, and generate on one machine."
            )
        self.guard = _guard(path, facts["ModelFingerprint"])
        self.whole, self.spare = numbers, numbers.stop


def _read_request(words, table, document):
    """Read what is asked for, in words and in a table."""
    request = parse_conditions(words or [])
    if table is None:
        return request
    if isinstance(request, str):
        raise InputError(
            "`conditions` none is for all of them; leave it or the `table` out."
        )
    rows = read_requested_table(table, from_saved(document["conditions"]))
    if twice := [name for name in rows if name in request]:
        raise InputError(
            f"{twice[0]} is in `conditions` and in the `table`; leave one of them out."
        )
    return request | rows


def _count(n_samples, request, is_volume, sources):
    """Count the samples that are wanted, of each source if there are any."""
    if n_samples is None:
        usual = 4 if is_volume else 64
        return count_of(request) or (1 if sources else usual)
    return at_least("n_samples", n_samples, 1)


def _look(document, source_files, bids):
    """Find the sources that samples are made of; None if there are none."""
    sources = SourceInputs.of(document, source_files)
    if sources and bids:
        raise InputError(
            "`bids` is not for samples of sources, which are named after these."
        )
    return sources


def _part_of(cluster, numbers, sources):
    """Choose what this of several workers generates: some samples, or sources."""
    if sources is None:
        return workers.part_of(cluster, numbers), None
    sources = sources.part_of(cluster)
    return (numbers if sources.own else range(0)), sources


def _beside(stem, numbers, sources, is_volume, one_of_several):
    """Name the files of the samples, after their sources if there are any."""
    if sources is None:
        return Samples.beside(stem, numbers, is_volume, one_of_several)
    return Samples.named_after(sources, stem, numbers, one_of_several)


def _generate(model, numbers, requested, options, noise):
    """Generate some of the samples, of noise that is numbered from ``noise`` on."""
    first = requested.numbers.start if options["same_noise"] else numbers.start
    first += noise
    conditions = requested.subset(numbers)
    return model.predict(len(numbers), conditions=conditions, first=first, **options)


def _guard(path, model_fingerprint):
    """Read the fingerprints of the training images."""
    with quiet_start():
        from dipy_ldm.evaluation._copy_filter import CopyFilter

        return CopyFilter.load(path, model_fingerprint)


def _load(path, strategy, devices):
    """Load the model; return the devices as well, as a strategy or None."""
    with quiet_start():
        from dipy_ldm import LatentDiffusion, _backend

        # Each worker uses its own devices: they don't meet.
        strategy = _backend.make_strategy(strategy, devices, alone=True)
        return LatentDiffusion.load(path), strategy


def _save(path, facts, **arrays):
    """Write arrays, and in the same file what volumes have beside them."""
    arrays |= {"synthetic": True, "description": json.dumps(facts)}
    with replacing(path) as partial, open(partial, "wb") as file:
        np.savez_compressed(file, **arrays)
