"""Compare estimated with used memory, and decode in tiles.

Each case of ``announced`` runs in a separate process. Its peak resident memory is
measured above that after importing libraries and creating images.
"""

from collections.abc import Callable
import contextlib
import json
from pathlib import Path
import re
import subprocess
import sys
import tempfile
import time

from common import log, make_parser, print_scores
import numpy as np
from peers import describe_processor
from peers_common import peak_gib, status_gib

from dipy_ldm import VQVAE, LatentDiffusion, _presets
from dipy_ldm._utils.checks import InputError
from dipy_ldm.data._cohort import Cohort

STEPS = 3
PRECISIONS = ("float32", "bfloat16")
# The estimates were fitted to the cases with a star; the others test them.
AUTOENCODERS = (
    ("28 28", 64, "*"),
    ("28 28", 512, ""),
    ("160 160", 32, "*"),
    ("16 16 16", 4, ""),
    ("32 32 32", 4, "*"),
    ("64 64 64", 2, "*"),
    ("80 96 72", 2, ""),
)
DENOISERS = (
    ("7 7", 64, "*"),
    ("32 32", 64, "*"),
    ("20 20", 128, ""),
    ("8 8 8", 4, ""),
    ("16 16 16", 4, "*"),
    ("28 32 28", 4, ""),
)
CODED = (
    ("28 28", 2000, None, "*"),
    ("700 900", 3, None, ""),
    ("1024 1024", 4, None, "*"),
    ("64 64 64", 1, None, ""),
    ("160 160 160", 1, None, "*"),
    ("128 128 128", 1, 64, "*"),
    ("224 224 224", 1, None, ""),
    ("200 160 200", 1, 96, ""),
)


def add_announced_options(parser):
    """Add the options of :func:`compare_announced`."""
    parser.add_argument("--only", default="", help="pattern of the cases to run")


def compare_announced(options):
    """Compare estimated and used memory of training, coding and generating."""
    cases = train_cases() | code_cases()
    cases = {name: cases[name] for name in cases if re.search(options.only, name)}
    yield describe_processor()
    for name, case in cases.items():
        log(name)
        command = [sys.executable, __file__, "--case", json.dumps(case)]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        announced, taken = json.loads(output.stdout.splitlines()[-1])
        ratio = announced / taken
        yield {
            "case": name,
            "announced_mib": round(announced),
            "taken_mib": round(taken),
            "ratio": round(ratio, 2),
            "within_a_third": 2 / 3 <= ratio <= 4 / 3,
        }


def train_cases():
    """Return the arguments of :func:`measure_case` for all trainings, by name."""
    cases = {}
    for precision in PRECISIONS:
        for network, sizes in (("autoencoder", AUTOENCODERS), ("denoiser", DENOISERS)):
            for space, batch, star in sizes:
                name = (
                    f"train {network}, {space}, batches of {batch}, {precision}{star}"
                )
                cases[name] = ["train", network, space, batch, precision]
    for remat, network, space, batch in (
        ("*", "autoencoder", "64 64 64", 2),
        ("", "denoiser", "28 32 28", 4),
    ):
        name = f"train {network}, {space}, batches of {batch}, float32, remat{remat}"
        cases[name] = ["train", network, space, batch, "float32", "remat"]
    for codes in (4096, 16384):
        name = f"train autoencoder, 28 28, batches of 64, float32, {codes} codes"
        cases[name] = ["train", "autoencoder", "28 28", 64, "float32", codes]
    return cases


def code_cases():
    """Return those for encoding, decoding and generating, by name."""
    cases = {}
    for direction in ("encode", "decode"):
        for space, n, tile, star in CODED:
            tiles = f", tiles of {tile}" if tile else ""
            name = f"{direction} {n} of {space}{tiles}{star}"
            cases[name] = ["code", direction, space, n, tile]
    for space, n in (("28 28", 300), ("96 96 96", 2), ("144 176 144", 1)):
        cases[f"dipy_generate_ldm, {n} of {space}"] = ["generate", space, n]
    return cases


def measure_case(kind, *case):
    """Return estimated and used memory of a case in this process, in MiB."""
    with tempfile.TemporaryDirectory() as folder:
        prepare_by_kind: dict[str, Callable] = {
            "train": train,
            "code": code,
            "generate": generate,
        }
        prepare = prepare_by_kind[kind]
        announced, work = prepare(Path(folder), *case)
        with contextlib.redirect_stdout(sys.stderr):
            before = status_gib("VmRSS")
            # Reset the peak.
            Path("/proc/self/clear_refs").write_text("5")
            work()
            return announced / 2**20, 2**10 * (status_gib("VmHWM") - before)


def warm_up():
    """Let the back-end allocate what it allocates once."""
    import keras

    keras.ops.convert_to_numpy(keras.ops.zeros(1))


def train(folder, network, space, batch_size, precision, extra=None):
    """Return the estimated memory of a training, and a function that trains."""
    from dipy_ldm.autoencoder import _training as autoencoder
    from dipy_ldm.denoiser import _training as diffusion
    from dipy_ldm.training import resolve

    warm_up()
    space = tuple(map(int, space.split()))
    options = {"steps": STEPS, "batch_size": batch_size, "precision": precision}
    options |= {"remat": extra == "remat", "strategy": "none", "verbose": False}
    resolved = resolve("ldm", len(space), options)
    if network == "autoencoder":
        images = noise((batch_size, *space, 1))
        n_codes = extra if isinstance(extra, int) else 1024
        usual = _presets.of_rank(len(space))
        vqvae = VQVAE(
            n_codes=n_codes, code_dim=usual.code_dim, n_codebooks=usual.n_codebooks
        )
        parameters = vqvae._parameters(len(space))
        needed = autoencoder.needed_memory(parameters, images.shape, None, resolved)
        return needed, lambda: vqvae.fit(images, patch=space, **options)
    images = noise((batch_size, *(2 * n for n in space), 1))
    vqvae = VQVAE(widths=(2,), n_codes=4)
    vqvae.fit(images, steps=1, batch_size=1, patch=8, verbose=False)
    widths = (64, 128, 256) if len(space) == 3 else (128, 128)
    model = LatentDiffusion(vqvae, widths=widths)
    architecture = model._architecture(images.shape)
    needed = diffusion.needed_memory(architecture, resolved)
    return needed, lambda: model.fit(images, **options)


def code(folder, direction, space, n, tile):
    """Return the estimated memory of coding, and a function that codes."""
    from dipy_ldm._utils import tiling as tiles

    space = tuple(map(int, space.split()))
    file = folder / "vqvae.safetensors"
    in_another_process("make_autoencoder", file, space)
    warm_up()
    vqvae = VQVAE.load(file)
    shape = (*space, 1) if direction == "encode" else vqvae.latent_shape((*space, 1))
    images = noise((n, *shape))
    options = {"batch_size": min(n, tiles.safe_batch(space)), "tile": tile}
    needed = vqvae.needed_memory(space, **options)[direction == "decode"]
    if direction == "encode":
        return needed, lambda: vqvae.encode(images, **options)
    return needed, lambda: vqvae.decode(images, space=space, **options)


def generate(folder, space, n):
    """Return the estimated memory of generating, and the command that generates."""
    # Imported before the baseline is measured.
    from dipy_ldm import plots  # noqa: F401
    from dipy_ldm.workflows import cli

    space = tuple(map(int, space.split()))
    file = folder / "ldm.safetensors"
    in_another_process("make_model", file, space)
    needed = float(file.with_suffix(".needed").read_text())
    warm_up()
    options = ["--n_samples", n, "--steps", 3, "--out_dir", folder]
    sys.argv = ["dipy_generate_ldm", *map(str, [file, *options])]
    return needed, cli.generate


def in_another_process(function, file, space):
    """Create a file in another process, so that this one does not use its memory."""
    line = f"import memory; memory.{function}({str(file)!r}, {space})"
    folder = Path(__file__).parent
    subprocess.run([sys.executable, "-c", line], check=True, cwd=folder)


def make_autoencoder(file, space):
    """Write an autoencoder with default parameters for images of a size."""
    tiny_autoencoder(space).save(file)


def make_model(file, space):
    """Write a diffusion model with default parameters for images of a size."""
    vqvae = tiny_autoencoder(space)
    latents = vqvae.latent_shape((*space, 1))
    widths = (64, 128, 256) if len(space) == 3 else (128, 128)
    model = LatentDiffusion(vqvae, widths=widths)
    # All but the learning.
    tiny = noise((2, *(min(n, 16) for n in space), 1))
    vqvae.shape_ = tiny.shape[1:]
    model.fit(tiny, steps=1, batch_size=2, verbose=False)
    document, tensors = model.to_document(), model.to_tensors()
    document |= {"shape": [*space, 1], "latent_shape": list(latents)}
    if len(space) == 3:
        document["affine"] = np.eye(4).tolist()
    model = LatentDiffusion.from_saved(tensors, document)
    model.save(file)
    Path(file).with_suffix(".needed").write_text(
        str(model.needed_memory(1 if len(space) == 3 else None))
    )


def tiny_autoencoder(space):
    """Return an autoencoder with default parameters, trained for one step on noise."""
    tiny = noise((2, *(min(n, 16) for n in space), 1))
    vqvae = VQVAE().fit(tiny, steps=1, batch_size=2, verbose=False)
    vqvae.shape_ = (*space, 1)
    return vqvae


def noise(shape):
    """Draw images of uniform noise."""
    return np.random.default_rng(0).random(shape, "float32")


def add_decoding_options(parser):
    """Add the options of :func:`decode_volume`."""
    parser.add_argument(
        "--side", type=int, default=256, help="voxels along a side of the volume"
    )
    parser.add_argument(
        "--compare",
        type=int,
        default=208,
        help="voxels along a side of the volume that is decoded whole, too; 0 for "
        "none; up to 200 fit into one tile",
    )
    parser.add_argument(
        "--tile", type=int, help="voxels along a side of a tile; default: automatic"
    )


def decode_volume(options):
    """Decode a large volume tile by tile, and a smaller one in tiles and whole."""
    if options.side < 1 or options.compare < 0 or (options.tile or 1) < 1:
        raise InputError("--side and --tile must be at least 1, --compare 0")
    vqvae = build_autoencoder(options.side)
    scores = {"side": options.side, "start_gib": peak_gib()}
    # Before decoding whole volumes, since the peak is that of the process.
    _, scores["seconds"] = decode(vqvae, options.side, options.tile)
    scores["peak_gib"] = peak_gib()
    if options.compare:
        scores |= compare_tiled(vqvae, options.compare, options.tile)
    return scores


def build_autoencoder(side):
    """Build an autoencoder with default parameters and random weights."""
    shape = (side, side, side, 1)
    data = Cohort(np.broadcast_to(np.float32(0), (1, *shape)), affine=np.eye(4))
    chosen = _presets.resolve(data)
    sizes = {name: getattr(chosen, name) for name in ("code_dim", "n_codebooks")}
    patches = np.random.default_rng(0).random((2, 16, 16, 16, 1), "float32")
    vqvae = VQVAE(widths=chosen.widths_vqvae, **sizes)
    vqvae.fit(patches, epochs=1, batch_size=2, verbose=False)
    rng = np.random.default_rng(1)
    vqvae.decoder_.set_weights(
        [draw_weight(rng, w) for w in vqvae.decoder_.get_weights()]
    )
    # Keep results in the middle of the range of intensities, so that none are clipped.
    kernel, bias, waves = vqvae.decoder_.weights[-3:]
    kernel.assign(kernel / 4)
    waves.assign(waves / 16)
    bias.assign(np.full(bias.shape, 0.5))
    return vqvae


def draw_weight(rng, weight):
    """Draw a kernel that keeps the variance; leave scales and biases alone."""
    if weight.ndim == 1:
        return weight
    spread = np.sqrt(1 / np.prod(weight.shape[:-1]))
    return rng.normal(0, spread, weight.shape)


def decode(vqvae, side, tile):
    """Decode noise; return the volume and the seconds."""
    log(f"decoding {side} x {side} x {side} voxels")
    shape = vqvae.latent_shape((side, side, side, 1))
    latents = np.random.default_rng(2).normal(0, 1, (1, *shape)).astype("float32")
    start = time.perf_counter()
    volume = vqvae.decode(latents, space=(side, side, side), tile=tile)
    return volume, time.perf_counter() - start


def compare_tiled(vqvae, side, tile):
    """Return how much a volume decoded in tiles differs from one decoded whole."""
    tiled, seconds = decode(vqvae, side, tile)
    whole, seconds_whole = decode(vqvae, side, side)
    return {
        "compared_side": side,
        "compared_seconds": seconds,
        "compared_seconds_whole": seconds_whole,
        "difference": float(np.abs(tiled - whole).max() / np.ptp(whole)),
        "clipped": float(np.isin(whole, vqvae.intensity_).mean()),
    }


MEASURES = {
    "announced": (add_announced_options, compare_announced),
    "decoding": (add_decoding_options, decode_volume),
}


if __name__ == "__main__":
    if sys.argv[1:2] == ["--case"]:
        print(json.dumps(measure_case(*json.loads(sys.argv[2]))))
    else:
        print_scores(make_parser(__doc__, MEASURES))
