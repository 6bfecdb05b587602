"""Generate T2 volumes from T1 volumes, and measure their errors.

One command does everything, in a folder: it simulates heads in both contrasts, trains a
model (resuming from checkpoints), and prints the scores of held-out heads as lines of
JSON, with a copy of the input and the mean volume as baselines::

    python benchmarks/source.py heads --n 80 --voxel_size 6

Existing files are kept.
"""

from pathlib import Path

from common import (
    COHORT_SCRIPT,
    Parser,
    call,
    load_model,
    log,
    print_scores,
    train_once,
)
import numpy as np

from dipy_ldm.data.volumes import load_volumes
from dipy_ldm.metrics import multiscale_ssim, psnr

# Intensities above this share of the range are brain.
BRAIN = 0.1


def make_parser():
    """Describe the command line."""
    parser = Parser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="of all files")
    parser.add_argument("--n", type=int, default=80, help="heads to train on")
    parser.add_argument("--n_held_out", type=int, default=16)
    parser.add_argument("--voxel_size", type=float, default=6.0, help="in mm")
    parser.add_argument("--detailed", action="store_true", help="heads with detail")
    parser.add_argument("--steps_vqvae", type=int, default=800)
    parser.add_argument("--steps_ldm", type=int, default=3000)
    parser.add_argument("--widths_ldm", type=int, nargs="+", default=[32, 64])
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--n_samples", type=int, default=4, help="of each head")
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.set_defaults(measure=compare)
    return parser


def prepare(options):
    """Simulate missing heads."""
    for name, n, first in (
        ("train", options.n, 0),
        ("held_out", options.n_held_out, 5000),
    ):
        folder = options.folder / name
        if len(list(folder.glob("*.nii.gz"))) >= 2 * n:
            continue
        arguments = [folder, "--n", n, "--first", first, "--contrasts", "T1w", "T2w"]
        arguments += ["--detailed"] if options.detailed else []
        call(COHORT_SCRIPT, *arguments)


def train(options):
    """Train the model if it does not exist."""
    names = ("voxel_size", "steps_vqvae", "steps_ldm", "batch_size", "seed")
    images, sources = (files(options, "train", kind) for kind in ("T2w", "T1w"))
    return train_once(options, names, *images, "--source_files", *sources)


def files(options, name, contrast):
    """List the volumes of a contrast."""
    return sorted((options.folder / name).glob(f"*_{contrast}.nii.gz"))


def compare(options):
    """Simulate, train and measure; yield the scores."""
    prepare(options)
    model, grid = load_model(train(options))
    train_images = load_volumes(files(options, "train", "T2w"), grid=grid).images
    pairs = load_volumes(
        files(options, "held_out", "T2w"),
        source_files=files(options, "held_out", "T1w"),
        grid=grid,
    )
    truth, sources = (np.asarray(array) for array in (pairs.images, pairs.sources))
    log(f"generating {options.n_samples} samples of each of {len(sources)} heads")
    how = {"guidance": options.guidance, "verbose": True}
    samples = [
        model.predict(source=sources, seed=options.seed + i, **how)
        for i in range(options.n_samples)
    ]
    mean = np.mean(train_images, 0, dtype="float64").astype("float32")
    ways = {
        "copy of the input": sources,
        "mean volume": np.broadcast_to(mean, truth.shape),
        "one sample": samples[0],
        f"mean of {len(samples)} samples": np.mean(samples, 0),
        "of another head": np.roll(samples[0], 1, 0),
        "autoencoder of the truth": model.vqvae.predict(truth),
    }
    for name, images in ways.items():
        yield {"by": name} | score(images, truth)
    last = {name: values[-1] for name, values in model.history_.items()}
    yield {name: last[name] for name in ("val_gain_source", "val_loss")}


def score(images, truth):
    """Return similarities of images to the truth, with standard errors.

    Shapes: images, truth ``(n, x, y, z, 1)``.
    """
    each = {
        "psnr": psnr(images, truth),
        "psnr_brain": psnr(images, truth, truth[..., 0] > BRAIN),
        "ssim": multiscale_ssim(images, truth),
    }
    spread = {name: np.std(v, ddof=1) / len(v) ** 0.5 for name, v in each.items()}
    means = {name: round(float(np.mean(v)), 3) for name, v in each.items()}
    return means | {f"{name}_error": round(float(v), 3) for name, v in spread.items()}


if __name__ == "__main__":
    print_scores(make_parser())
