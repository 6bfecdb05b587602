"""Options of the commands: shared descriptions, parsing and checks."""

from collections.abc import Callable, Container, Iterable
import inspect
import re
from types import SimpleNamespace
from typing import Any

from dipy_ldm import _serialization
from dipy_ldm._presets import Preset
from dipy_ldm._utils.checks import (
    InputError,
    check_rate,
    check_seed,
    check_shares,
    check_sizes,
)
from dipy_ldm.data._tables import as_number

_TITLE = "Parameters\n----------\n"
# Copies of the keys of tables that take seconds to import; a test compares them.
STRATEGIES = "auto", "none", "mirrored", "multi_worker"
PRECISIONS = "auto", "float32", "bfloat16", "float16"
SAMPLERS = "ddpm", "ddim", "dpm++"
# Options only for the training of an autoencoder, and their defaults.
SIZES_VQVAE = ("widths_vqvae", "n_codes", "n_codebooks", "code_dim")
VQVAE_DEFAULTS: dict[str, object] = dict.fromkeys((*SIZES_VQVAE, "patch", "mask_files"))
VQVAE_DEFAULTS |= {"no_augment": False, "background": 1}
# Options with other names in Python.
_OPTION_NAMES = {"n": "n_samples", "first": "first_sample"}
# Descriptions of options in all commands whose `run` has none of its own.
_SHARED = """\
model_file : string or Path
    Model file written by dipy_train_ldm, or a packaged model: brains (synthetic,
    T1-like, without skull, 2 mm; conditions ventricles and brain, in ml, and anatomy),
    or mnist (digits). pretrained/README.md in the package has licence and limits.
input_files : variable string or Path
    NIfTI volumes, folders of them, wildcards, or lists of them in text, CSV or TSV
    files.
suffix : variable string, optional
    Volumes: suffixes (ends of names) of the scans to use, such as T1w. Required if the
    inputs have several. Scans in folders named derivatives or sourcedata are used only
    if these folders are given.
filter : variable string, optional
    Volumes: entities that BIDS names must have, such as task=rest ses=01,02. run=
    selects names without run, and run=1, (with a comma at the end) selects both.
conditions : variable string, optional
    Conditions of the volumes, as name=value: group=control. Others stay unspecified.
source_files : variable string or Path, optional
    Source images of the volumes, for models conditioned on source images. They are
    paired with the volumes by sub- and ses-, by names that contain those of the volumes
    (scan1, scan1_T2), or by order.
channels : bool, optional
    Volumes: the fourth axis of the files holds channels.
cache_dir : string or Path, optional
    Volumes: folder in which preprocessed volumes are cached. Default: the user's cache.
steps : int, optional
    Network evaluations per sample. Default: 10.
guidance : float, optional
    Guidance scale of the autoguidance model. 1 is without guidance, and faster; larger
    values give clearer and less varied samples. Default: 2 for images, 1 for
    volumes, 3 for diffusion series.
seed : int, optional
    Random seed.
tile : int, optional
    Side of the tiles, in voxels, in which large volumes are encoded and decoded.
    Default: as large as memory safely allows.
strategy : string, optional
    How the volumes are distributed: auto (over all workers that Slurm or TF_CONFIG
    names) or none.
devices : variable string, optional
    Device of this machine, such as GPU:1 or CPU:0. Default: the first GPU or, without
    GPUs, the processor.
resume : bool, optional
    Continue an interrupted run: complete outputs are kept.
dtype : string, optional
    Data type of written volumes: float32, float64, or an integer type such as int16 or
    uint8.
bids : bool, optional
    Write a BIDS derivatives dataset, with a folder for each subject.
skull_stripped : bool, optional
    With --bids: record that images have no skull (SkullStripped), as BIDS requires.
out_dir : string or Path, optional
    Output directory.
"""


def _entries(text):
    """Return the parameter entries of a docstring by name."""
    entries = re.split(r"^(?=\w+ : )", text, flags=re.MULTILINE)
    return {entry.split(" ", 1)[0]: entry.rstrip() for entry in entries if entry}


def share_descriptions(run: Callable) -> Callable:
    """Add the shared parameters to the docstring of a workflow's ``run``.

    DIPY builds the command line from this docstring, in the order of the signature.
    """
    summary, _, parameters = inspect.cleandoc(run.__doc__ or "").partition(_TITLE)
    entries = _entries(_SHARED) | _entries(parameters)
    names = [name for name in inspect.signature(run).parameters if name != "self"]
    run.__doc__ = summary + _TITLE + "\n".join(entries[name] for name in names)
    return run


def gather(arguments: dict[str, Any]) -> SimpleNamespace:
    """Gather the arguments of a workflow's ``run`` in one record."""
    return SimpleNamespace(**{n: v for n, v in arguments.items() if n != "self"})


def option_writer(options: Container[str]) -> Callable[[str], str]:
    """Return a function that writes names of parameters as options of a command."""

    def write(name):
        if _OPTION_NAMES.get(name) in options:
            name = _OPTION_NAMES[name]
        return f"--{name}" if name in options else name

    return write


def parse_names(words: str | Iterable[str] | None) -> list[str]:
    """Parse names separated by spaces or commas."""
    return list(dict.fromkeys(_parts(words)))


def parse_channels(words: bool | list[str] | None) -> bool | list[str]:
    """Parse names of channels; True if these are along a fourth axis instead."""
    if words is None or isinstance(words, bool):
        return bool(words)
    return _parts(words) or True


def parse_steps(words: str | Iterable[str] | None) -> dict[str, float]:
    """Parse the steps that conditions are rounded to."""
    steps = {}
    for part in _parts(words):
        name, _, number = part.partition("=")
        step = as_number(number.strip())
        if step is None or step <= 0 or not name.strip():
            raise InputError(
                f"must be a name and a step above 0, such as age=5, not {part!r}",
                option="coarsen",
            )
        steps[name.strip()] = step
    return steps


def _parts(words):
    """Split words at commas; a text is one word."""
    words = [words] if isinstance(words, str) else words or ()
    return list(filter(None, map(str.strip, ",".join(words).split(","))))


def parse_filter(words: Iterable[str] | None) -> dict[str, list[str]]:
    """Parse the values that entities of file names must have."""
    values: dict[str, list[str]] = {}
    for word in words or ():
        key, equals, texts = word.partition("=")
        if not (key and equals):
            raise InputError(
                f"must be entity=value, such as task=rest, not {word!r}",
                option="filter",
            )
        values.setdefault(key, []).extend(texts.split(","))
    return values


def sizes_of(options: SimpleNamespace) -> dict[str, Any]:
    """Return sizes, also those of ``init``, for :func:`dipy_ldm._presets.resolve`."""
    sizes = {n: v for n, v in vars(options).items() if n in Preset._fields}
    sizes["patch"] = one_or_more(options.patch)
    if options.init is None:
        return sizes
    document = _serialization.read_document(_serialization.find(options.init))
    autoencoder = document.get("vqvae", {})
    denoiser = document.get("latent_diffusion", {})
    of_init = {name: autoencoder.get(name) for name in SIZES_VQVAE}
    of_init["widths_vqvae"] = autoencoder.get("widths")
    of_init["widths_ldm"] = denoiser.get("widths")
    return sizes | of_init | {n: v for n, v in sizes.items() if v is not None}


def sizes_used(preset: Preset, options: SimpleNamespace) -> dict[str, Any]:
    """Return the options with which a training has the same sizes again."""
    used = {n: v for n, v in preset._asdict().items() if hasattr(options, n)}
    for stage in ("vqvae", "ldm"):
        if used[f"steps_{stage}"] is not None:
            used[f"epochs_{stage}"] = None
    if _keeps_autoencoder(options):
        names = "epochs_vqvae", "steps_vqvae", *VQVAE_DEFAULTS
        used |= dict.fromkeys(set(names) & used.keys())
    return used


def _keeps_autoencoder(options):
    """Return whether the autoencoder of ``init`` is used without training."""
    return bool(options.init and not (options.epochs_vqvae or options.steps_vqvae))


def check_training(options: SimpleNamespace) -> None:
    """Refuse options of a training that are invalid for any input."""
    useless = [n for n, usual in VQVAE_DEFAULTS.items() if getattr(options, n) != usual]
    if useless and _keeps_autoencoder(options):
        raise InputError(
            f"`{useless[0]}` has no effect without training the autoencoder",
            "leave it out, or fine-tune the autoencoder with `steps_vqvae`",
        )
    if options.dwi and options.steps_detector:
        raise InputError(
            "diffusion series have no anomaly detector",
            "leave out `steps_detector`, or train a model of scans or maps",
        )
    if options.seconds != 60 and not options.check:
        raise InputError("`seconds` is for `check`", "add `check`, or remove `seconds`")
    names = "accumulate", "checkpoint_steps"
    check_sizes(**sizes_of(options), **{n: getattr(options, n) for n in names})
    if options.mask_files and options.background == 1:
        raise InputError(
            "--mask_files have no effect with --background 1",
            "give the weight of what lies outside the masks, such as --background 0.1",
        )
    check_shares(background=options.background)
    if not 0 <= options.validation < 1:
        raise InputError(
            f"must be at least 0 and below 1, not {options.validation}",
            option="validation",
        )
    if options.learning_rate is not None:
        check_rate(options.learning_rate)
    check_seed(options.seed)


def one_or_more(numbers: list | None) -> Any:
    """Return the number in a list of one, and other lists unchanged."""
    return numbers[0] if numbers and len(numbers) == 1 else numbers
