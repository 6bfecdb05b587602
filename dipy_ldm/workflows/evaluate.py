"""The workflow behind ``dipy_evaluate_ldm``."""

import time

from dipy_ldm import _serialization
from dipy_ldm._utils.checks import InputError
from dipy_ldm.workflows import _launch as launch
from dipy_ldm.workflows._config import write_config
from dipy_ldm.workflows._evaluation_images import (
    describe_evaluated,
    read_for,
    read_series,
    reading_options,
    refuse_samples,
)
from dipy_ldm.workflows._option_table import EvaluateOptions
from dipy_ldm.workflows._options import takes_options
from dipy_ldm.workflows._outputs import LDMFlow, json_and_page
from dipy_ldm.workflows._sources import SourceInputs, is_of_series


class EvaluateLDMFlow(LDMFlow):
    """Compare the samples of a latent diffusion model with real images."""

    example = "ldm.safetensors --real_files others/ --out_dir quality"

    @takes_options
    def run(self, options: EvaluateOptions) -> None:
        """Compare the samples of a latent diffusion model with real images.

        Writes all metrics (.json) and a self-contained page (.html) that explains them
        with pictures. Each metric is also computed for real images and for
        reconstructions. For models of diffusion series, FA and principal directions of
        tensors are compared with those of measured series.
        """
        start = time.monotonic()
        name = {"out_evaluation": options.out_evaluation}
        outputs = json_and_page(self, options.model_file, options.out_dir, **name)
        path = _serialization.find(options.model_file)
        document = _serialization.read_document(path, "latent_diffusion")
        of_series = is_of_series(document)
        read = _read_series if of_series else _read_images
        real, generated = read(document, options)
        with launch.quiet_start():
            from dipy_ldm._backend import distributed
            from dipy_ldm.evaluation._diffusion_tensors import compare_series
            from dipy_ldm.workflows import _reports as reports

        measured, seed = options.measurements, options.seed
        agreements = reports.read_measurements(document, measured, seed)
        model, device = launch.load(path, options.devices, None)
        sampling = launch.choose_sampling(model, options)
        with distributed(device):
            if of_series:
                series = compare_series(model, real, generated, seed, sampling)
            else:
                result = reports.evaluate_images(
                    model, real, generated, options, sampling
                )
        metadata = describe_evaluated(
            path, seed, sampling, RealImages=real, GeneratedImages=generated
        )
        metadata["Seconds"] = round(time.monotonic() - start, 1)
        if of_series:
            reports.write_series(outputs, *series, metadata)
        else:
            reports.write_evaluation(outputs, result, metadata, agreements)
        self.outputs = outputs
        write_config(self, outputs[0], options, **sampling)


def _read_images(document, options):
    """Read real images, and generated ones if there are any."""
    reading, choice = reading_options(options)
    if not options.generated_files:
        choice["source_files"] = options.source_files
        SourceInputs.of(document, options.source_files)  # refuses unneeded ones
    real = read_for(document, options.real_files, "real_files", **choice, **reading)
    refuse_samples(real.files, "real_files")
    generated = options.generated_files and read_for(
        document, options.generated_files, "generated_files", generated=True, **reading
    )
    return real, generated


def _read_series(document, options):
    """Read measured diffusion series, and generated ones if there are any."""
    for name in ("measurements", "n_samples", "classifier", "channels"):
        if getattr(options, name):
            raise InputError(
                f"`{name}` is not for models of diffusion series, which are compared "
                "by their tensors",
                "leave it out",
            )
    _, choice = reading_options(options)
    real = read_series(document, options.real_files, options, choice)
    files = options.generated_files
    return real, files and read_series(document, files, options, {"generated": True})
