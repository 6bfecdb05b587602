"""Measure models of few scans, trained from scratch or from packaged models.

One command does everything, in a folder: it draws brains of label maps on which no
packaged model was trained, trains on a few of them, and compares samples with other
brains of these maps::

    python benchmarks/few_scans.py few --maps heads --only 05 10 15 20

It prints a line of JSON for each number of scans and each kind of training, with its
seconds. Existing files are kept.
"""

from pathlib import Path
import time

from common import TRAIN, Parser, call, draw_brains, load_model, log, print_scores
import numpy as np
from volumes import (
    halve_all,
    measure_novelty,
    score_diversity,
    score_structure,
    score_vqvae,
)

from dipy_ldm.data.volumes import load_volumes
from dipy_ldm.metrics import nearest_distance

# The packaged model to start from, and the share of `steps` to train the diffusion
# model for.
WAYS = {
    "scratch": (None, None),
    "autoencoder": ("volumes", 1.0),
    "both": ("brains", 1.0),
    "both, a tenth": ("brains", 0.1),
}
# Copies are nearer to training brains than all but this share of held-out brains.
COPIES = 0.05
SCORES = (
    *("nearest_median", "nearest_median_real", "copies", "ms_ssim_excess", "octaves"),
    *("vqvae_octaves", "vqvae_psnr", "vqvae_detail_correlation"),
)


def make_parser():
    """Describe the command line."""
    parser = Parser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="of all files")
    parser.add_argument("--maps", required=True, help="folder of label maps")
    parser.add_argument("--only", nargs="+", required=True, help="maps to take")
    parser.add_argument("--n", type=int, nargs="+", default=[6, 12, 25, 50])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--n_samples", type=int, default=40, help="and held-out brains")
    parser.add_argument("--voxel_size", type=float, default=2.0, help="in mm")
    parser.add_argument("--widths_ldm", type=int, nargs="+", default=[48, 80, 104])
    parser.add_argument("--steps_vqvae", type=int, default=1500, help="from scratch")
    parser.add_argument("--steps_ldm", type=int, default=1500, help="from scratch")
    parser.add_argument(
        "--steps", type=int, default=2400, help="with a packaged autoencoder"
    )
    parser.set_defaults(measure=compare)
    return parser


def compare(options):
    """Train each kind of model on each number of scans, and score samples."""
    lab = draw(options, "lab", max(options.n), 0)
    held_out = draw(options, "held_out", options.n_samples, 5000)
    for n in options.n:
        for way in options.ways:
            log(f"{n} scans, {way}")
            model, seconds = train(options, lab[:n], way)
            scores = score(model, lab[:n], held_out)
            yield {"n": n, "way": way, "seconds": round(seconds)} | scores


def draw(options, name, n, first):
    """Draw missing brains, and return the files of all."""
    folder = options.folder / name
    largest = options.voxel_size
    how = ["--voxel_size", 0.75 * largest, largest, "--maps", options.maps]
    draw_brains(folder, "*.nii.gz", n, first, *how, "--only", *options.only)
    return sorted(folder.glob("*.nii.gz"))[:n]


def train(options, files, way):
    """Train a model; return its file and the seconds of training."""
    init, share = WAYS[way]
    folder = options.folder / f"{len(files)}-{way.replace(', a ', '-')}"
    seconds = folder / "seconds.txt"
    if not seconds.exists():
        how = ["--voxel_size", options.voxel_size, "--out_dir", folder, "--force"]
        if init is None:
            how += ["--steps_vqvae", options.steps_vqvae]
            how += ["--steps_ldm", options.steps_ldm]
        else:
            how += ["--init", init, "--steps_ldm", round(share * options.steps)]
        if init != "brains":
            how += ["--widths_ldm", *options.widths_ldm]
        start = time.perf_counter()
        call("-c", TRAIN, *files, *how)
        seconds.write_text(f"{time.perf_counter() - start:.0f}")
    return folder / "ldm.safetensors", float(seconds.read_text())


def score(path, learnt_from, held_out):
    """Score as many samples as there are held-out brains."""
    model, grid = load_model(path)
    train, real = (
        np.array(load_volumes(files, grid=grid).images)
        for files in (learnt_from, held_out)
    )
    generated = model.predict(len(real), seed=0)
    reconstructed = model.vqvae.predict(real)
    small, small_train = halve_all(generated), halve_all(train)
    distances = measure_novelty(halve_all(real), small_train)
    near = nearest_distance(small, small_train)
    scores = {
        "nearest_median": float(np.median(near)),
        "nearest_median_real": float(np.median(distances)),
        "copies": float(np.mean(near < np.quantile(distances, COPIES))),
        **score_diversity(generated, real),
        **score_structure(generated, real, reconstructed),
        **score_vqvae(model.vqvae, real, reconstructed),
    }
    return {name: scores[name] for name in SCORES}


if __name__ == "__main__":
    print_scores(make_parser())
