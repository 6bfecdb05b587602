"""The workflow behind ``dipy_evaluate_ldm``."""

import time

from dipy_ldm import _serialization
from dipy_ldm._utils.checks import InputError, check_seed
from dipy_ldm.workflows import _launch as launch
from dipy_ldm.workflows._config import write_config
from dipy_ldm.workflows._evaluation_images import (
    describe_evaluated,
    read_for,
    read_series,
    reading_options,
    refuse_samples,
)
from dipy_ldm.workflows._options import gather, share_descriptions
from dipy_ldm.workflows._outputs import LDMFlow, json_and_page
from dipy_ldm.workflows._sources import SourceInputs, is_of_series


class EvaluateLDMFlow(LDMFlow):
    """Compare the samples of a latent diffusion model with real images."""

    example = "ldm.safetensors --real_files others/ --out_dir quality"

    @share_descriptions
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
        steps=None,
        guidance=None,
        classifier=False,
        seed=0,
        channels=False,
        cache_dir=None,
        devices=None,
        out_dir="",
        out_evaluation="evaluation",
    ):
        """Compare the samples of a latent diffusion model with real images.

        Writes all metrics (.json) and a self-contained page (.html) that explains them
        with pictures. Each metric is also computed for real images and for
        reconstructions. For models of diffusion series, FA and principal directions of
        tensors are compared with those of measured series.

        Parameters
        ----------
        real_files : variable string or Path, optional
            Images that the model was not trained on, at least 40: NIfTI volumes,
            folders, wildcards or lists of them; arrays (.npy, .npz) and PNG files for a
            model of images; or the word mnist for the test digits. They are resampled
            to the grid of the model. Half of them are the reference.
        generated_files : variable string or Path, optional
            Generated images. Those that are named after a source image (sub-) are not
            compared with their own subject. Default: generate half as many as there are
            real images, and with their conditions, if tables list them.
        source_files : variable string or Path, optional
            Source images of the real volumes, paired with them as in the training, for
            models conditioned on source images. Samples are generated from them. Not
            needed with --generated_files.
        measurements : string or Path, optional
            A list (.tsv or .csv) of generated volumes with a column for each numeric
            condition that you measured on them, to compare with the requested values in
            the JSON files beside the volumes.
        n_samples : int, optional
            Number of images of each kind. Default: all, up to 5,000.
        classifier : bool, optional
            Also train a network, and logistic regressions on the features, to
            distinguish each kind of images from real ones, and show which regions the
            network uses. Takes minutes, and needs 40 generated and 80 real images.
        seed : int, optional
            Random seed of the noise and of all choices.
        out_evaluation : string, optional
            Name of the output files, without extension.
        """
        options = gather(locals())
        start = time.monotonic()
        check_seed(seed)
        outputs = json_and_page(
            self, model_file, out_dir, out_evaluation=out_evaluation
        )
        path = _serialization.find(model_file)
        document = _serialization.read_document(path, "latent_diffusion")
        of_series = is_of_series(document)
        read = _read_series if of_series else _read_images
        real, generated = read(document, options)
        with launch.quiet_start():
            from dipy_ldm._backend import distributed
            from dipy_ldm.evaluation._diffusion_tensors import compare_series
            from dipy_ldm.workflows import _reports as reports

        agreements = reports.read_measurements(document, measurements, seed)
        model, device = launch.load(path, devices, None)
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
    if options.measurements is not None and not options.generated_files:
        raise InputError(
            "`measurements` are of generated volumes",
            "give these, too, as `generated_files`",
        )
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
