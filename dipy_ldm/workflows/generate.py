"""The workflow behind ``dipy_generate_ldm``."""

from functools import lru_cache, partial
import json
import logging
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dipy_ldm import _serialization
from dipy_ldm._conditions import BVAL, from_saved
from dipy_ldm._utils.checks import InputError, at_least, check_each
from dipy_ldm._utils.files import replacing
from dipy_ldm._utils.progress import tqdm, without_repeats
from dipy_ldm.data._bvals_bvecs import DIRECTION, Gradients
from dipy_ldm.data._scans import require_affine
from dipy_ldm.data._sidecars import provenance
from dipy_ldm.data.channels import Unnamed, channel_slices
from dipy_ldm.workflows import _launch as launch
from dipy_ldm.workflows._conditions import (
    RequestedConditions,
    count_requested,
    parse_conditions,
    read_requested_table,
)
from dipy_ldm.workflows._config import write_config
from dipy_ldm.workflows._option_table import GenerateOptions
from dipy_ldm.workflows._options import takes_options
from dipy_ldm.workflows._outputs import (
    LDMFlow,
    claimed_output,
    number_noise,
    output_paths,
    refuse_overwriting,
    write_channel,
    write_tables,
)
from dipy_ldm.workflows._samples import Samples
from dipy_ldm.workflows._sources import Series, SourceInputs, read_gradients

if TYPE_CHECKING:  # they take seconds to import
    from dipy_ldm.latent_diffusion import LatentDiffusion

logger = logging.getLogger(__name__)

# Source images that are cached in memory; each may take 100 MB.
_N_CACHED = 16


class _Job(NamedTuple):
    """Samples to generate and write: inputs, options and model."""

    request: dict | str
    gradients: Gradients | None
    sources: SourceInputs | None
    numbers: range
    requested: RequestedConditions
    samples: Samples
    model: "LatentDiffusion"
    sampling: dict
    facts: dict


class GenerateLDMFlow(LDMFlow):
    """Generate images with a latent diffusion model."""

    example = "brains --n_samples 8 --conditions ventricles=40 --out_dir made"

    @takes_options
    def run(self, options: GenerateOptions) -> None:
        """Generate images or volumes with a latent diffusion model.

        Images are written as one array (.npz) with a description of how it was made,
        and a picture (.png). Volumes are written as a NIfTI file each, on the grid of
        the training volumes, with a JSON file of how it was made, and one picture with
        three planes of each. A sample depends only on the seed, its number and, if any,
        the name of its source image.
        """
        name, folder = options.out_samples, options.out_dir
        (stem,) = output_paths(self, options.model_file, folder, out_samples=name)
        # Wrong paths are reported before Keras, which takes seconds to import.
        path = _serialization.find(options.model_file)
        document = _serialization.read_document(path, "latent_diffusion")
        is_volume = len(document["shape"]) == 4
        _check_options(options, is_volume)
        request = _read_request(options.conditions, options.table, document)
        sources = SourceInputs.of(document, options.source_files)
        gradients = read_gradients(document, options.bvals, options.bvecs, request)
        options.n_samples = _count_samples(
            options.n_samples, request, is_volume, sources
        )
        numbers = range(options.first_sample, options.first_sample + options.n_samples)
        requested = RequestedConditions.of(
            document, request, numbers, options.seed, options.same_noise
        )
        cluster = launch.find_workers(options.strategy)
        numbers, sources = _share_of_worker(cluster, numbers, sources)
        if not numbers:
            return  # there are more workers than samples
        samples = (
            Samples.in_dataset(stem.parent, numbers, options.suffix, document, sources)
            if options.bids
            else Samples.in_folder(stem, numbers, document, cluster, sources)
        )
        refuse_overwriting(self, samples.paths, samples.cure)
        model, sampling = _load(path, options, cluster, is_volume)
        launch.log_to_file(cluster, samples.log)
        metadata = _common_facts(path, options, sampling)
        inputs = request, gradients, sources, numbers, requested, samples
        job = _Job(*inputs, model, sampling, metadata)
        pictures = self._write(job, options.dtype)
        is_chief, log = launch.is_chief(cluster), samples.log
        used = {name: sampling[name] for name in ("steps", "guidance")}
        config = write_config(self, log, options, **used) if is_chief else None
        drawn = samples.draw(config, *pictures)
        self.outputs = list(dict.fromkeys([*samples.paths, *drawn]))

    def _write(self, job, dtype):
        """Generate and write all samples; return pictures, captions and columns."""
        read = _source_reader(job)
        paths = job.samples.paths
        once = without_repeats("dipy_ldm.latent_diffusion")
        with job.samples.being_written(), claimed_output(paths[0]), once:
            # Again: another run may have just ended.
            refuse_overwriting(self, paths, job.samples.cure)
            if len(job.samples.document["shape"]) == 4:
                generate = _generate_series if job.gradients else _generate_volumes
                return self._write_volumes(job, dtype, generate(job, read))
            return self._write_images(job)

    def _write_volumes(self, job, dtype, volumes):
        """Write volume after volume; return planes of the first, and captions."""
        from dipy_ldm import plots

        pictures: list[np.ndarray] = []
        channels = job.model.channels_
        for files, volume, affine, entries, preview in volumes:
            named = channels or [Unnamed(n=volume.shape[-1])]  # series have several
            for file, (channel, columns) in zip(files, channel_slices(named)):
                values = channel.to_values(volume[..., columns])
                write_channel(file, channel, values, affine, dtype, entries)
            self.written += 1
            if len(pictures) < 20:
                pictures += [*plots.planes(preview, affine, channels)]
        captions = job.requested.captions(job.numbers)
        if job.gradients:
            bvals = job.gradients.bvals[job.gradients.weighted[:3]]
            captions = [f"b = {b:g}" for b in (0, *bvals)] * len(job.numbers)
        captions *= len(job.sources.assigned) if job.sources else 1
        return np.stack(pictures), captions, 2

    def _write_images(self, job):
        """Generate and write all images; return them, and captions."""
        images = _generate(job, job.numbers)
        arrays = {"images": images, "sample": [*job.numbers]}
        arrays |= {"seed": job.sampling["seed"]}
        arrays |= job.requested.arrays(job.numbers)
        metadata = job.facts | job.requested.facts(job.numbers)
        arrays |= {"synthetic": True, "description": json.dumps(metadata)}
        path = job.samples.names[0][0]
        with replacing(path) as partial_path, open(partial_path, "wb") as file:
            np.savez_compressed(file, **arrays)
        self.written += len(images)
        return images, job.requested.captions(job.numbers)


def _check_options(options, is_volume):
    """Refuse invalid options, and options without effect; log what is assumed."""
    if options.dtype != "float32" and not is_volume:
        raise InputError("`dtype` is for volumes", "leave it out for images")
    if options.bids and not options.skull_stripped:
        logger.info("samples are recorded with a skull; if not, add --skull_stripped.")


def _source_reader(job):
    """Refuse all invalid source images at once; return a cached reader of each."""
    if not job.sources:
        return None
    read = job.sources.read
    if job.gradients:
        read = partial(Series.of, gradients=job.gradients, grid=job.sources.grid)
    read = lru_cache(_N_CACHED)(read)
    quiet = not job.sampling["verbose"]
    check_each(read, tqdm(job.sources.assigned, "read", disable=quiet))
    return read


def _generate_volumes(job, read):
    """Yield files, values, affine, facts and picture of each volume."""
    from dipy_ldm import _backend

    affine = require_affine(job.model.vqvae.affine_)
    noise = number_noise(job.sources.files) if job.sources else {None: 0}
    # One at a time on each device.
    batches = [*_batches(job, _backend.count_replicas(job.sampling["strategy"]))]
    for file, names, batch in tqdm(
        batches, "generate", disable=not job.sampling["verbose"]
    ):
        sampling = job.sampling | {"batch_size": 1, "verbose": False}
        entries = dict(job.facts)
        if job.sources:
            sampling["source"] = read(file)
            entries |= {"Noise": noise[file], "Sources": job.sources.paths(file)}
        volumes = _generate(job._replace(sampling=sampling), batch, noise[file])
        for number, files, volume in zip(batch, names, volumes):
            entry = {"Sample": number} | job.requested.facts(range(number, number + 1))
            yield files, volume, affine, entries | entry, volume[None]


def _generate_series(job, read):
    """Yield files, values, affine, facts and picture of each diffusion series.

    All volumes of a series have the same noise: they differ only by their directions.
    """
    document, seed = job.samples.document, job.sampling["seed"]
    sampling = job.sampling | {"batch_size": 1, "same_noise": True}
    noise = number_noise(job.sources.files)
    names = {*job.requested.table} - {BVAL, DIRECTION}
    for file, (files,), (number,) in _batches(job, 1):
        series = read(file)
        first = job.numbers.start if job.sampling["same_noise"] else number
        conditions = series.conditions(job.request, names, number - job.numbers.start)
        rows = range(first, first + len(job.gradients.weighted))
        requested = RequestedConditions.of(document, conditions, rows, seed, True)
        images = job.model.predict(
            len(rows),
            conditions=requested.subset(rows),
            source=series.source[None],
            first=first + noise[file],
            **sampling,
        )
        entry = {"Sample": number, "Noise": noise[file], "SameNoise": True}
        entry["Sources"] = job.sources.paths(file)
        entries = job.facts | requested.facts(rows) | entry
        write_tables(files[0], series.gradients.texts())
        preview = np.array([series.source, *images[:3]])
        yield files, series.fill(images), series.affine, entries, preview


def _batches(job, batch_size):
    """Yield the source, names and numbers of each batch of samples, in order."""
    n = len(job.numbers)
    for i, file in enumerate(job.sources.assigned if job.sources else [None]):
        names = job.samples.names[i * n :]
        for start in range(0, n, batch_size):
            batch = job.numbers[start : start + batch_size]
            yield file, names[start : start + len(batch)], batch


def _generate(job, numbers, noise=0):
    """Generate some of the samples, whose noise is numbered from ``noise`` on."""
    same = job.sampling["same_noise"]
    first = (job.requested.numbers if same else numbers).start + noise
    conditions = job.requested.subset(numbers)
    return job.model.predict(
        len(numbers), conditions=conditions, first=first, **job.sampling
    )


def _load(path, options, cluster, is_volume):
    """Load the model; return it with its sampling options."""
    strategy = "auto" if cluster else options.strategy
    model, devices = launch.load_on(path, strategy, options.devices)
    sizes = {"batch_size": options.batch_size, "tile": options.tile}
    sampling = launch.choose_sampling(
        model, options, options.n_samples, first=options.first_sample, **sizes
    )
    model.check_memory(1 if is_volume else options.batch_size, options.tile, devices)
    return model, sampling | sizes | {
        "seed": options.seed,
        "same_noise": options.same_noise,
        "strategy": devices,
        "verbose": launch.is_chief(cluster),
    }


def _common_facts(path, options, sampling):
    """Return the entries that all sidecars share."""
    # All that a sample depends on besides the model and its number.
    names = "sampler", "steps", "guidance", "seed", "same_noise"
    metadata = provenance(
        path, **{n.title().replace("_", ""): sampling[n] for n in names}
    )
    return metadata | (
        {"SkullStripped": options.skull_stripped} if options.bids else {}
    )


def _read_request(words, table, document):
    """Read the requested conditions from options and a table."""
    request = parse_conditions(words, document)
    if table is None:
        return request
    if isinstance(request, str):
        raise InputError(
            "`conditions` none leaves all unspecified", "remove it, or the `table`"
        )
    rows = read_requested_table(table, from_saved(document["conditions"]))
    if both := [name for name in rows if name in request]:
        raise InputError(
            f"{both[0]} is in `conditions` and in the `table`", "leave one of them out"
        )
    return request | rows


def _count_samples(n_samples, request, is_volume, sources):
    """Return the number of samples, per source image if there are any."""
    if n_samples is None:
        usual = 4 if is_volume else 64
        return count_requested(request) or (1 if sources else usual)
    return at_least("n_samples", n_samples, 1)


def _share_of_worker(cluster, numbers, sources):
    """Return the samples, or the source images, that this worker generates."""
    if sources is None:
        return launch.share_of_worker(cluster, numbers), None
    sources = sources._replace(assigned=launch.share_of_worker(cluster, sources.files))
    return (numbers if sources.assigned else range(0)), sources
