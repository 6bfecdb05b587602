"""All options of the commands: a class for each command, with a field for each option.

The docstring of a class has the sentences of the help, and a subclass may have others.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

from dipy_ldm import _serialization
from dipy_ldm._presets import Preset
from dipy_ldm._utils.checks import (
    InputError,
    at_least,
    check_counts,
    check_rate,
    check_seed,
    check_shares,
    check_sizes,
)
from dipy_ldm.data._nifti import DTYPES
from dipy_ldm.workflows._options import (
    CommandOptions,
    one_or_more,
    option,
)

# Copies of the keys of tables that take seconds to import; a test compares them.
STRATEGIES = "auto", "none", "mirrored", "multi_worker"
PRECISIONS = "auto", "float32", "bfloat16", "float16"
SAMPLERS = "ddpm", "ddim", "dpm++"


def _check_validation(validation: float) -> None:
    """Refuse a share of held-out images that leaves none to train on."""
    if not 0 <= validation < 1:
        raise InputError(
            f"must be at least 0 and below 1, not {validation}", option="validation"
        )


def _not_negative(**numbers: float) -> None:
    """Refuse negative numbers."""
    for name, number in numbers.items():
        at_least(name, number, 0)


_input = partial(option, None, "input")
_flag = partial(option, False)
_size = partial(option, None, "model", check=check_sizes)
_size_vqvae = partial(_size, of_autoencoder=True, replaced_by=("init",))
_strategy = partial(option, "auto", "machine", changes_result=False)
_of_samples = partial(
    option,
    None,
    expert=True,
    excludes={"generated_files": ""},
    replaced_by=("generated_files",),
)


def _length(*alternatives: str) -> Any:
    """Declare the length of a training, of which another option may be the unit."""
    excludes = {alternatives[0]: ""}
    return option(
        None, "training", check=check_sizes, excludes=excludes, replaced_by=alternatives
    )


@dataclass(kw_only=True)
class Options(CommandOptions):
    """Options of all commands.

    Parameters
    ----------
    seed
        Random seed.
    devices
        Device of this machine, such as GPU:1 or CPU:0. Default: the first GPU or,
        without GPUs, the processor.
    out_dir
        Output directory.
    """

    seed: int = option(0, check=check_seed)
    devices: list[str] | None = option(None, "machine", changes_result=False)
    out_dir: str = option("", "output", changes_result=False)


@dataclass(kw_only=True)
class TrainOptions(Options):
    """Options of ``dipy_train_ldm`` and ``dipy_check_ldm``.

    Parameters
    ----------
    input_files
        NIfTI volumes, folders of them, wildcards, or lists of them in text, CSV or TSV
        files; images as arrays (n, h, w) or (n, h, w, channels) in .npy or .npz files,
        PNG files, or folders of these; or the word mnist for the packaged digits.
    suffix
        Volumes: suffixes (ends of names) of the scans to use, such as T1w. Required if
        the inputs have several. Scans in folders named derivatives or sourcedata are
        used only if these folders are given.
    filter
        Volumes: entities that BIDS names must have, such as task=rest ses=01,02. run=
        selects names without run, and run=1, (with a comma at the end) selects both.
    conditions
        Names of the conditions of the diffusion model, such as age,sex. They are
        columns beside the paths in a list, or of scans.tsv, sessions.tsv and
        participants.tsv in the folders of the files, matched by sub- and ses-. The
        packaged digits have the condition label.
    coarsen
        Steps to which conditions are rounded, so that subjects are harder to
        re-identify: age=5 for steps of five years, if that is the unit.
    voxel_size
        Volumes: voxel size to resample to, in mm, one number or three. Default: the
        median of the files.
    shape
        Volumes: voxels along each axis, one number or three. Default: large enough for
        all volumes.
    channels
        Volumes: channels of each image, in files of their own, by BIDS suffixes (T1w
        T2w dseg) or entities (desc-FA). Files of one subject and session are combined
        on the grid of the first. dseg and mask are labels; FA, MD, AD and RD are maps;
        for others, give NAME=labels, NAME=intensity or NAME=LOW:HIGH:UNIT. Without
        names: the fourth axis of the files holds channels.
    mask_files
        Volumes: masks of the region of interest, paired with the inputs by sub- and
        ses-, by names that contain those of the inputs (scan1, scan1_mask), or by
        order.
    background
        Weight in the autoencoder's loss of voxels outside the masks or, without masks,
        of voxels that are 0 or the background of a map in all channels; 1 weights all
        voxels equally.
    source_files
        Volumes: source images that the diffusion model learns to translate, such as
        another contrast of the same head, given as the inputs are, on any grid. They
        are paired with the inputs as masks are. With --channels, the fourth axis of
        source images also holds channels, such as T1 and b = 0.
    source_labels
        The source images are segmentations.
    source_channels
        Volumes: channels of the source images, in files of their own, named like those
        of --channels. They are matched by subject and session, among --source_files or,
        without these, the inputs.
    dwi
        Volumes: the inputs are diffusion series, with .bval and .bvec beside each; of
        files with several suffixes, those with dwi. The model learns to generate
        diffusion-weighted volumes, for any b-value and direction, from the b = 0 of a
        subject.
    skip_bad
        Volumes: skip files that can't be read.
    init
        Model file to start from, or a packaged one: volumes (an autoencoder for volumes
        of one channel) or brains (a complete model of T1-like brains). The autoencoder
        is used as it is or, with --steps_vqvae, fine-tuned; the training of the
        diffusion model starts from that of the file, if it has one. Grid, voxel size
        and conditions may differ.
    n_codes
        Codes in each codebook of the autoencoder. Default: 1024.
    n_codebooks
        Codebooks of the residual quantizer. Default: 1 (images) or 4 (volumes).
    code_dim
        Channels of the latents. Default: 3 (images) or 8 (volumes).
    widths_vqvae
        Channels at each level of the autoencoder; each level halves the resolution.
        Default: 32 64.
    widths_ldm
        Channels at each level of the diffusion model; each but the first halves the
        resolution. Default: 128 128 (images) or 64 128 256 (volumes).
    steps_vqvae
        Training steps of the autoencoder, instead of epochs.
    steps_ldm
        Training steps of the diffusion model, instead of epochs.
    epochs_vqvae
        Epochs of the autoencoder. Default: 5 epochs (images) or 4,000 steps (volumes).
    epochs_ldm
        Epochs of the diffusion model. Default: 10 epochs (images) or 6,000 steps
        (volumes).
    steps_detector
        Training steps of an anomaly detector, which learns from synthetic lesions where
        an image deviates from the others, for --lesions of dipy_denoise_ldm. 10,000
        suit volumes. Default: no detector.
    batch_size
        Batch size. Default: 64 images or 4 volumes.
    accumulate
        Number of batches whose gradients are averaged for one weight update: the effect
        of a larger batch in the memory of one.
    learning_rate
        Peak learning rate, with warm-up and decay to zero. Default: 0.002, and 0.004
        for the autoencoder of images.
    validation
        Share of the images held out for validation, from 0 to below 1. All images of a
        subject, by sub- in the names or the column participant_id of a list, are on one
        side.
    patch
        Side of the patches that the autoencoder is trained on, in voxels, one number or
        one for each axis; at most the whole axis. Default: whole images, or 48 voxels
        of volumes.
    no_augment
        Volumes: no augmentation by motion, intensity and noise for the autoencoder.
    checkpoint_steps
        Number of batches between checkpoints within a validation round. Others are
        written after rounds, if they take at most a twentieth of the time, at the end,
        and on SIGTERM or SIGHUP, after which the exit status is 143 or 129.
    resume
        Continue an interrupted training with the same inputs and options, or start it
        if there is no checkpoint.
    check
        Check inputs, options and machine instead of training.
    seconds
        With --check: approximate time for each of two trials: some steps of both
        stages, and overfitting eight images. Compiling the networks takes extra time. 0
        skips the trials.
    tensorboard
        Folder for TensorBoard logs: the metrics of history.csv after each round, in a
        folder for each network. Needs the package tensorboard.
    precision
        Precision of the computations: auto (the fastest that this machine supports
        well, or that of the checkpoint), float32, bfloat16 or, on GPUs only, float16.
    remat
        Gradient checkpointing: less memory, more time.
    strategy
        How the training is distributed: auto (over all machines that Slurm or TF_CONFIG
        names, or all GPUs of this one), multi_worker (several machines), mirrored (a
        replica on each device of this machine) or none. The result is the same.
    devices
        Devices of this machine to use, such as GPU:0, or their numbers. Default: all.
    cache_dir
        Volumes: folder in which preprocessed volumes are cached. Default: the user's
        cache.
    cache_limit
        Volumes: maximum size of the cache of all trainings, in gigabytes. Beyond it,
        the least recently used volumes are removed, but none in use. Default: no limit.
    out_model
        Name of the model file.
    """

    input_files: list[str]
    suffix: list[str] | None = _input()
    filter: list[str] | None = _input()
    conditions: list[str] | None = _input()
    coarsen: list[str] | None = _input(requires={"conditions": ""})
    voxel_size: list[float] | None = _input()
    shape: list[int] | None = _input(expert=True)
    channels: list[str] | None = _input()
    mask_files: list[str] | None = _input(
        of_autoencoder=True,
        requires={
            "background": "give the weight of what lies outside the masks, such as "
            "`background` 0.1"
        },
    )
    background: float = option(
        1.0, "input", expert=True, of_autoencoder=True, check=check_shares
    )
    source_files: list[str] | None = _input()
    source_labels: bool = _flag("input", expert=True)
    source_channels: list[str] | None = _input()
    dwi: bool = _flag("input")
    skip_bad: bool = _flag("input")
    init: str | None = option(None, "model")
    n_codes: int | None = _size_vqvae(expert=True)
    n_codebooks: int | None = _size_vqvae(expert=True)
    code_dim: int | None = _size_vqvae(expert=True)
    widths_vqvae: list[int] | None = _size_vqvae()
    widths_ldm: list[int] | None = _size()
    steps_vqvae: int | None = _length("epochs_vqvae", "init")
    steps_ldm: int | None = _length("epochs_ldm")
    epochs_vqvae: int | None = _length("steps_vqvae", "init")
    epochs_ldm: int | None = _length("steps_ldm")
    steps_detector: int | None = option(
        None,
        "training",
        check=check_counts,
        excludes={"dwi": "diffusion series have no anomaly detector"},
    )
    batch_size: int | None = option(None, "training", check=check_sizes)
    accumulate: int = option(1, "training", expert=True, check=check_sizes)
    learning_rate: float | None = option(
        None, "training", check=lambda learning_rate: check_rate(learning_rate)
    )
    validation: float = option(0.05, "training", check=_check_validation)
    patch: list[int] | None = option(
        None, "training", expert=True, of_autoencoder=True, check=check_sizes
    )
    no_augment: bool = _flag("training", expert=True, of_autoencoder=True)
    checkpoint_steps: int = option(
        1000, "training", expert=True, changes_result=False, check=check_sizes
    )
    resume: bool = _flag(changes_result=False)
    check: bool = _flag(changes_result=False)
    seconds: float = option(
        60.0,
        expert=True,
        changes_result=False,
        check=_not_negative,
        requires={"check": ""},
    )
    tensorboard: str | None = option(
        None, "training", expert=True, changes_result=False
    )
    precision: str = option("auto", "machine", choices=PRECISIONS)
    remat: bool = _flag("machine", expert=True, changes_result=False)
    strategy: str = _strategy(choices=STRATEGIES)
    cache_dir: str | None = option(None, "machine", changes_result=False)
    cache_limit: float | None = option(
        None, "machine", expert=True, changes_result=False
    )
    out_model: str = option("ldm.safetensors", "output", changes_result=False)

    @property
    def keeps_autoencoder(self) -> bool:
        """Whether the autoencoder of ``init`` is used without training."""
        return bool(self.init and not (self.epochs_vqvae or self.steps_vqvae))

    def validate(self) -> None:
        """Refuse options that are invalid for any input, or without effect."""
        for name in self.changed if self.keeps_autoencoder else ():
            if self.declared()[name].of_autoencoder:
                raise InputError(
                    f"`{name}` has no effect without training the autoencoder",
                    "leave it out, or fine-tune the autoencoder with `steps_vqvae`",
                )
        super().validate()

    def sizes(self) -> dict[str, Any]:
        """Return sizes, also those of ``init``, for ``_presets.resolve``."""
        sizes = {n: v for n, v in vars(self).items() if n in Preset._fields}
        sizes["patch"] = one_or_more(self.patch)
        if self.init is None:
            return sizes
        document = _serialization.read_document(_serialization.find(self.init))
        autoencoder = document.get("vqvae", {})
        denoiser = document.get("latent_diffusion", {})
        names = "n_codes", "n_codebooks", "code_dim"
        of_init = {name: autoencoder.get(name) for name in names}
        of_init["widths_vqvae"] = autoencoder.get("widths")
        of_init["widths_ldm"] = denoiser.get("widths")
        return sizes | of_init | {n: v for n, v in sizes.items() if v is not None}

    def sizes_used(self, preset: Preset) -> dict[str, Any]:
        """Return the options with which a training has the same sizes again."""
        used = {n: v for n, v in preset._asdict().items() if n in vars(self)}
        for stage in ("vqvae", "ldm"):
            if used[f"steps_{stage}"] is not None:
                used[f"epochs_{stage}"] = None
        if self.keeps_autoencoder:
            names = [n for n, o in self.declared().items() if o.of_autoencoder]
            names += ["epochs_vqvae", "steps_vqvae"]
            used |= dict.fromkeys(set(names) & used.keys())
        return used


@dataclass(kw_only=True)
class ModelOptions(Options):
    """Options of commands that use a model.

    Parameters
    ----------
    model_file
        Model file written by dipy_train_ldm, or a packaged model: brains (synthetic,
        T1-like, without skull, 2 mm; conditions ventricles and brain, in ml, and
        anatomy), or mnist (digits). pretrained/README.md in the package has licence and
        limits.
    """

    model_file: str


@dataclass(kw_only=True)
class SamplingOptions(ModelOptions):
    """Options of commands that generate samples.

    Parameters
    ----------
    steps
        Network evaluations per sample. Default: 10.
    guidance
        Guidance scale of the autoguidance model. 1 is without guidance, and faster;
        larger values give clearer and less varied samples. Default: 2 for images, 1 for
        volumes, 3 for diffusion series.
    """

    source_files: list[str] | None = _input()
    n_samples: int | None = option(None)
    steps: int | None = option(None, check=check_counts)
    guidance: float | None = option(None)


@dataclass(kw_only=True)
class GenerateOptions(SamplingOptions):
    """Options of ``dipy_generate_ldm``.

    Parameters
    ----------
    conditions
        Conditions of the samples, as name=value: age=70 sex=F. A list has a value for
        each sample: age=50,60,70. Omitted conditions are drawn from the distribution of
        the training images, and recorded; age=none leaves age unspecified, and
        --conditions none leaves all unspecified.
    table
        Conditions as a table (.tsv or .csv), with a column for each condition and a row
        for each sample. Missing values are drawn; other columns are ignored.
    source_files
        Source images of the samples, on any grid, for models conditioned on source
        images: NIfTI files, folders of them, wildcards, or lists. Samples have the grid
        of the model and are named after their source images.
    bvals
        File of the b-values of a diffusion series, as FSL and DIPY write them, for
        models trained with --dwi. The series is generated from the b = 0 in
        --source_files, in its intensities; volumes with b up to 50 are copies of the b
        = 0.
    bvecs
        File of the directions of the series, along the voxel axes of the b = 0 as in
        FSL.
    n_samples
        Number of samples, per source image if there are any. Default: the number of
        values of the conditions or, if each has one value, 64 images, 4 volumes, or 1
        per source image.
    first_sample
        Number of the first sample. With --n_samples 1, only this one is generated.
    same_noise
        Generate all samples (of each source image) from the same noise, so that they
        differ only by their conditions.
    sampler
        Sampling algorithm.
    steps
        Network evaluations per sample. Default: 10 for dpm++, 50 for the others.
    batch_size
        Number of images generated at once. Default: as many as memory safely allows.
        Volumes are generated one by one.
    tile
        Side of the tiles, in voxels, in which large volumes are encoded and decoded.
        Default: as large as memory safely allows.
    strategy
        How the samples are distributed: auto (over all machines that Slurm or TF_CONFIG
        names, and all their GPUs), multi_worker (several machines), mirrored (all
        devices of this machine that are named) or none. The samples are the same. Each
        of several machines generates a part of the samples; the names of its array and
        picture end in the number of its first sample.
    devices
        Devices of this machine to use, such as GPU:0 or 0. Default: all GPUs or,
        without GPUs, the processor.
    dtype
        Data type of written volumes: float32, float64, or an integer type such as int16
        or uint8.
    bids
        Write volumes into a BIDS derivatives dataset, with their conditions in
        participants.tsv and the picture in its folder code. Samples are added to an
        existing dataset. Samples of source images have the entities (sub-, ses- and
        others) of these, and no participants.tsv.
    suffix
        BIDS suffix. Default: that of the training volumes, such as T1w, if they had
        one.
    skull_stripped
        With --bids: record that images have no skull (SkullStripped), as BIDS requires.
    out_samples
        Beginning of the names of the output files.
    """

    conditions: list[str] | None = _input()
    table: str | None = _input()
    bvals: str | None = _input()
    bvecs: str | None = _input()
    n_samples: int | None = option(
        None, replaced_by=("conditions", "table", "source_files")
    )
    first_sample: int = option(0)
    same_noise: bool = _flag(expert=True)
    sampler: str = option("dpm++", expert=True, choices=SAMPLERS)
    steps: int | None = option(None, replaced_by=("sampler",))
    batch_size: int | None = option(None, "machine", expert=True)
    tile: int | None = option(None, "machine", expert=True)
    strategy: str = _strategy(choices=STRATEGIES)
    devices: list[str] | None = option(None, "machine")
    dtype: str = option("float32", "output", expert=True, choices=DTYPES)
    bids: bool = _flag("output")
    suffix: str | None = _input(requires={"bids": ""})
    skull_stripped: bool = _flag("output", requires={"bids": ""})
    out_samples: str = option("samples", "output", excludes={"bids": ""})


@dataclass(kw_only=True)
class ScanOptions(ModelOptions):
    """Options of commands that process scans with a model.

    Parameters
    ----------
    model_file
        Model of volumes, written by dipy_train_ldm, or the packaged brains (T1-like,
        without skull, in the position of the MNI template).
    input_files
        NIfTI volumes, folders of them, wildcards, or lists of them in text, CSV or TSV
        files.
    suffix
        Volumes: suffixes (ends of names) of the scans to use, such as T1w. Required if
        the inputs have several. Scans in folders named derivatives or sourcedata are
        used only if these folders are given.
    filter
        Volumes: entities that BIDS names must have, such as task=rest ses=01,02. run=
        selects names without run, and run=1, (with a comma at the end) selects both.
    conditions
        Conditions of the volumes, as name=value: group=control. Others stay
        unspecified.
    source_files
        Source images of the volumes, for models conditioned on source images. They are
        paired with the volumes by sub- and ses-, by names that contain those of the
        volumes (scan1, scan1_T2), or by order.
    seed
        Random seed. The noise also depends on the name of each volume.
    resume
        Continue an interrupted run: complete outputs are kept.
    tile
        Side of the tiles, in voxels, in which large volumes are encoded and decoded.
        Default: as large as memory safely allows.
    strategy
        How the volumes are distributed: auto (over all workers that Slurm or TF_CONFIG
        names) or none.
    bids
        Write a BIDS derivatives dataset, with a folder for each subject.
    skull_stripped
        With --bids: record that images have no skull (SkullStripped), as BIDS requires.
    """

    input_files: list[str]
    suffix: list[str] | None = _input()
    filter: list[str] | None = _input()
    conditions: list[str] | None = _input()
    source_files: list[str] | None = _input()
    channels: list[str] | None = _input()
    resume: bool = _flag()
    tile: int | None = option(None, "machine", expert=True)
    strategy: str = _strategy(choices=("auto", "none"))
    bids: bool = _flag("output")
    skull_stripped: bool = _flag("output", requires={"bids": ""})


@dataclass(kw_only=True)
class DenoiseOptions(ScanOptions):
    """Options of ``dipy_denoise_ldm``.

    Parameters
    ----------
    channels
        For models of named channels, whose files are combined by sub- and ses-: the
        channels to write. Default: all. Without names: the fourth axis of the files
        holds channels.
    strength
        Noise level, from 0 to 1. At 0, the result is the reconstruction by the
        autoencoder; the higher the level, the more is generated.
    steps
        Network evaluations. Default: 1 at the default strength, up to 20 at strength 1;
        10 with --lesions.
    repeats
        Number of times that each volume is denoised, from different noise. The result
        is the mean; the standard deviation of two or more is also written.
    lesions
        Inpaint only the lesions that the model's anomaly detector finds, and a margin
        around them; all other voxels stay identical, to the bit. Also writes the mask
        of lesions. The model must have been trained with --steps_detector.
    threshold
        With --lesions: voxels of at least this probability are lesions.
    dilate
        With --lesions: margin around lesions that is also inpainted, in mm. Edges of
        lesions are soft, and the model would continue what remains of one.
    difference
        Also write a difference. Without conditions, it is the scan minus the result:
        noise and fine detail as well as anomalies; small lesions do not stand out in
        it. With conditions, it is their effect: the result without them, from the same
        noise, minus the result. With --lesions, it is the scan minus the result: 0
        outside lesions.
    dtype
        Data type of written volumes: float32, float64, or an integer type such as int16
        or uint8.
    out_denoised
        Text appended to the names of volumes or, for BIDS names, used as desc-.
    """

    strength: float = option(
        0.1, check=check_shares, excludes={"lesions": "lesions are inpainted entirely"}
    )
    steps: int | None = option(
        None, check=check_counts, replaced_by=("strength", "lesions")
    )
    repeats: int = option(1, check=check_counts)
    lesions: bool = _flag()
    threshold: float = option(
        0.5, expert=True, check=check_shares, requires={"lesions": ""}
    )
    dilate: float = option(
        2.0, expert=True, check=_not_negative, requires={"lesions": ""}
    )
    difference: bool = _flag("output")
    dtype: str = option("float32", "output", expert=True, choices=DTYPES)
    out_denoised: str = option("denoised", "output")


@dataclass(kw_only=True)
class InpaintOptions(ScanOptions):
    """Options of ``dipy_inpaint_ldm``.

    Parameters
    ----------
    mask_files
        Masks, given as the volumes are: one for all of them, or one for each, paired by
        sub- and ses-, by names that contain those of the volumes (scan1, scan1_mask),
        or by order. Voxels that are not 0 are inpainted. A mask must have the grid of
        its volume.
    channels
        For models of named channels, whose files are combined by sub- and ses-: the
        channels to fill and write. Default: all. Without names: the fourth axis of the
        files holds channels.
    dilate
        Margin around the mask that is also inpainted, in mm.
    n_samples
        Number of samples per volume.
    steps
        Number of noise levels.
    resamplings
        Number of times that each step is taken, with noise added again in between.
    out_inpainted
        Text appended to the names of volumes or, for BIDS names, used as desc-.
    """

    mask_files: list[str] | None = _input()
    dilate: float = option(0.0, check=_not_negative)
    n_samples: int = option(1, check=check_counts)
    steps: int = option(10, check=check_counts)
    resamplings: int = option(5, expert=True, check=check_counts)
    out_inpainted: str = option("inpainted", "output")


@dataclass(kw_only=True)
class RealImageOptions(SamplingOptions):
    """Options of commands that compare samples with real images.

    Parameters
    ----------
    suffix
        Volumes: suffixes (ends of names) of the scans to use, such as T1w. Required if
        the inputs have several. Scans in folders named derivatives or sourcedata are
        used only if these folders are given.
    filter
        Volumes: entities that BIDS names must have, such as task=rest ses=01,02. run=
        selects names without run, and run=1, (with a comma at the end) selects both.
    channels
        Volumes: the fourth axis of the files holds channels.
    seed
        Random seed of the noise and of all choices.
    cache_dir
        Volumes: folder in which preprocessed volumes are cached. Default: the user's
        cache.
    """

    suffix: list[str] | None = _input()
    filter: list[str] | None = _input()
    generated_files: list[str] | None = _input()
    channels: bool = _flag("input")
    steps: int | None = _of_samples()
    guidance: float | None = _of_samples()
    cache_dir: str | None = option(None, "machine", expert=True)


@dataclass(kw_only=True)
class EvaluateOptions(RealImageOptions):
    """Options of ``dipy_evaluate_ldm``.

    Parameters
    ----------
    real_files
        Images that the model was not trained on, at least 40: NIfTI volumes, folders,
        wildcards or lists of them; arrays (.npy, .npz) and PNG files for a model of
        images; or the word mnist for the test digits. They are resampled to the grid of
        the model. Half of them are the reference.
    generated_files
        Generated images. Those that are named after a source image (sub-) are not
        compared with their own subject. Default: generate half as many as there are
        real images, and with their conditions, if tables list them.
    source_files
        Source images of the real volumes, paired with them as in the training, for
        models conditioned on source images. Samples are generated from them. Not needed
        with --generated_files.
    measurements
        A list (.tsv or .csv) of generated volumes with a column for each numeric
        condition that you measured on them, to compare with the requested values in the
        JSON files beside the volumes.
    n_samples
        Number of images of each kind. Default: all, up to 5,000.
    classifier
        Also train a network, and logistic regressions on the features, to distinguish
        each kind of images from real ones, and show which regions the network uses.
        Takes minutes, and needs 40 generated and 80 real images.
    out_evaluation
        Name of the output files, without extension.
    """

    real_files: list[str] | None = _input()
    measurements: str | None = _input(
        requires={"generated_files": "give the volumes that were measured, too"}
    )
    classifier: bool = _flag()
    out_evaluation: str = option("evaluation", "output")


@dataclass(kw_only=True)
class AuditOptions(RealImageOptions):
    """Options of ``dipy_audit_ldm``.

    Parameters
    ----------
    train_files
        All images that the model was trained on: NIfTI volumes, folders, wildcards or
        lists of them; arrays (.npy, .npz) and PNG files for a model of images; or the
        word mnist for the training digits. Of diffusion series, all volumes are
        compared.
    held_out
        Images of other subjects, at least 20 and preferably hundreds, or the word mnist
        for the test digits. One image per subject is compared.
    generated_files
        Generated images, such as those to be published. They must not be generated from
        source images of training subjects. Volumes are taken in turn from each
        diffusion series. Default: generate as many as there are held-out images, with
        the conditions of the training images and the source images of the held-out
        ones, if the model has any.
    source_files
        Source images of the training and the held-out volumes, for models conditioned
        on source images, paired by sub- and ses-.
    reference
        Another model, of images of the same kind and size, trained on none of these.
        How well it separates training from held-out images is reported for comparison:
        that much is not memorisation.
    n_samples
        Maximum number of images of each kind. Default: all, up to 2,000.
    pictures
        Also write a private page of the most suspicious pairs (-private.html), which
        shows and names training images; protect it like the data.
    out_audit
        Name of the output files, without extension.
    """

    train_files: list[str] | None = _input()
    held_out: list[str] | None = _input()
    reference: str | None = _input()
    pictures: bool = _flag("output")
    out_audit: str = option("audit", "output")
