"""Compare the memory that is announced with what is taken.

Each case runs in a process of its own. Its peak of resident memory is measured above
what it had when the libraries were there, and the images.
"""

from collections.abc import Callable
import contextlib
import json
import os
from pathlib import Path
import re
import subprocess
import sys
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from common import Parser, tell
import numpy as np
from peers import describe_processor
from peers_common import status_gib

STEPS = 3
PRECISIONS = ("float32", "bfloat16")
# Those to which the estimates were adapted have a star, others try them out.
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


def train_cases():
    """Name all trainings.

    Returns
    -------
    dict of str to list
        Words that :func:`measure` is given, by what is printed of them.
    """
    cases = {}
    for precision in PRECISIONS:
        for what, sizes in (("autoencoder", AUTOENCODERS), ("denoiser", DENOISERS)):
            for space, batch, star in sizes:
                name = f"train {what}, {space}, batches of {batch}, {precision}{star}"
                cases[name] = ["train", what, space, batch, precision]
    for remat, what, space, batch in (
        ("*", "autoencoder", "64 64 64", 2),
        ("", "denoiser", "28 32 28", 4),
    ):
        name = f"train {what}, {space}, batches of {batch}, float32, remat{remat}"
        cases[name] = ["train", what, space, batch, "float32", "remat"]
    for codes in (4096, 16384):
        name = f"train autoencoder, 28 28, batches of 64, float32, {codes} codes"
        cases[name] = ["train", "autoencoder", "28 28", 64, "float32", codes]
    return cases


def code_cases():
    """Name what is done with trained networks, as :func:`train_cases`."""
    cases = {}
    for how in ("encode", "decode"):
        for space, n, tile, star in CODED:
            name = f"{how} {n} of {space}{f', tiles of {tile}' if tile else ''}{star}"
            cases[name] = ["code", how, space, n, tile]
    for space, n in (("28 28", 300), ("96 96 96", 2), ("144 176 144", 1)):
        cases[f"dipy_generate_ldm, {n} of {space}"] = ["generate", space, n]
    return cases


def main(arguments=None):
    """Measure the cases that the command line asks for, and print a table."""
    if arguments is None and sys.argv[1:2] == ["--case"]:
        print(json.dumps(measure(*json.loads(sys.argv[2]))))
        return
    parser = Parser(description=__doc__)
    parser.add_argument("--only", default="", help="a pattern that cases must have")
    options = parser.parse_args(arguments)
    cases = train_cases() | code_cases()
    cases = {name: cases[name] for name in cases if re.search(options.only, name)}
    print(processor())
    print("| case | announced, MiB | taken | ratio |\n|---|---|---|---|")
    for name, case in cases.items():
        tell(name)
        announced, taken = apart(case)
        ratio = announced / taken
        odd = "" if 2 / 3 <= ratio <= 4 / 3 else " (!)"
        print(f"| {name} | {announced:.0f} | {taken:.0f} | {ratio:.2f}{odd} |")
        sys.stdout.flush()


def processor():
    """Name the processor, and which of its instructions may be used."""
    found = describe_processor()
    flags = ", ".join(found["flags"])
    limits = [f"{name}={value}" for name, value in found["limits"].items()]
    return f"{found['processor']} ({flags}); {' '.join(limits) or 'not limited'}\n"


def apart(case):
    """Measure a case in a process of its own."""
    command = [sys.executable, __file__, "--case", json.dumps(case)]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(output.stdout.splitlines()[-1])


def measure(what, *case):
    """Measure a case in this process.

    Parameters
    ----------
    what : {"train", "code", "generate"}
        What is done.
    *case
        As of :func:`train_cases`.

    Returns
    -------
    announced, taken : float
        Mebibytes.
    """
    with tempfile.TemporaryDirectory() as folder:
        ways: dict[str, Callable] = {"train": train, "code": code, "generate": generate}
        prepare = ways[what]
        announced, work = prepare(Path(folder), *case)
        with contextlib.redirect_stdout(sys.stderr):
            before = status_gib("VmRSS")
            # The highest so far is forgotten.
            Path("/proc/self/clear_refs").write_text("5")
            work()
            return announced / 2**20, 2**10 * (status_gib("VmHWM") - before)


def start():
    """Let the back-end make what it makes once."""
    import keras

    keras.ops.convert_to_numpy(keras.ops.zeros(1))


def train(folder, what, space, batch_size, precision, extra=None):
    """Train for some steps."""
    from dipy_ldm import VQVAE, LatentDiffusion, presets
    from dipy_ldm.autoencoder import _training as autoencoder
    from dipy_ldm.denoiser import _training as diffusion
    from dipy_ldm.training import Training

    start()
    space = tuple(map(int, space.split()))
    options = {"steps": STEPS, "batch_size": batch_size, "precision": precision}
    options |= {"remat": extra == "remat", "strategy": "none", "verbose": False}
    chosen = Training(epochs=1, **options)
    settled = chosen.settled(len(space), rates=(1e-4, 1e-4))
    if what == "autoencoder":
        images = noise((batch_size, *space, 1))
        n_codes = extra if isinstance(extra, int) else 1024
        usual = presets.of_rank(len(space))
        sizes = {"code_dim": usual.code_dim, "n_codebooks": usual.n_codebooks}
        vqvae = VQVAE(n_codes=n_codes, **sizes)
        needed = autoencoder.needed_memory(vqvae, images.shape, None, settled)
        return needed, lambda: vqvae.fit(images, patch=space, **options)
    images = noise((batch_size, *(2 * n for n in space), 1))
    vqvae = VQVAE(widths=(2,), n_codes=4)
    vqvae.fit(images, steps=1, batch_size=1, patch=8, verbose=False)
    widths = (64, 128, 256) if len(space) == 3 else (128, 128)
    model = LatentDiffusion(vqvae, widths=widths)
    latent_shape = vqvae.latent_shape(images.shape[1:])
    needed = diffusion.needed_memory(model, latent_shape, settled)
    return needed, lambda: model.fit(images, **options)


def code(folder, how, space, n, tile):
    """Encode or decode with the autoencoder of the defaults, learnt from noise."""
    from dipy_ldm import VQVAE
    from dipy_ldm._utils import tiling as tiles

    space = tuple(map(int, space.split()))
    file = folder / "vqvae.safetensors"
    in_another_process("make_autoencoder", file, space)
    start()
    vqvae = VQVAE.load(file)
    shape = (*space, 1) if how == "encode" else vqvae.latent_shape((*space, 1))
    images = noise((n, *shape))
    options = {"batch_size": min(n, tiles.safe_batch(space)), "tile": tile}
    needed = vqvae.needed_memory(space, **options)[how == "decode"]
    if how == "encode":
        return needed, lambda: vqvae.encode(images, **options)
    return needed, lambda: vqvae.decode(images, space=space, **options)


def generate(folder, space, n):
    """Run ``dipy_generate_ldm``."""
    from dipy_ldm import LatentDiffusion, plots  # noqa: F401
    from dipy_ldm.workflows import cli

    space = tuple(map(int, space.split()))
    file = folder / "ldm.safetensors"
    in_another_process("make_model", file, space)
    needed = float(file.with_suffix(".needed").read_text())
    start()
    options = ["--n_samples", n, "--steps", 3, "--out_dir", folder]
    sys.argv = ["dipy_generate_ldm", *map(str, [file, *options])]
    return needed, cli.generate


def in_another_process(function, file, space):
    """Let another process make a file, so that this one has nothing of it."""
    line = f"import memory; memory.{function}({str(file)!r}, {space})"
    folder = Path(__file__).parent
    subprocess.run([sys.executable, "-c", line], check=True, cwd=folder)


def make_autoencoder(file, space):
    """Write an autoencoder of the defaults for images of a size."""
    shaped(space).save(file)


def make_model(file, space):
    """Write a diffusion model of the defaults for images of a size."""
    from dipy_ldm import LatentDiffusion

    vqvae = shaped(space)
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


def shaped(space):
    """Make an autoencoder of the defaults that has learnt from noise of no size."""
    from dipy_ldm import VQVAE

    tiny = noise((2, *(min(n, 16) for n in space), 1))
    vqvae = VQVAE().fit(tiny, steps=1, batch_size=2, verbose=False)
    vqvae.shape_ = (*space, 1)
    return vqvae


def noise(shape):
    """Draw images."""
    return np.random.default_rng(0).random(shape, "float32")


if __name__ == "__main__":
    main()
