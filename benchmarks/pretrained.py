"""Build the packaged autoencoder of volumes: cut patches, train on them, measure.

It is trained in stages. Each starts from the weights of the previous one, on the same
patches or new ones, and its learning rate warms up and decays to zero again, so that
the file of each stage is a complete model. To resume an interrupted stage from its
checkpoint, run the same command again. ``doc/examples/label_cohort.py`` draws training
volumes.
"""

import json
from pathlib import Path
import sys

from common import log, make_parser, png_path, print_scores
import numpy as np
from tqdm import tqdm

from dipy_ldm import VQVAE, _serialization
from dipy_ldm.data._batches import Augmentation, read_padded, read_patches
from dipy_ldm.data._paths import find_volumes
from dipy_ldm.data.channels import Unnamed
from dipy_ldm.data.volumes import plan_volumes
from dipy_ldm.metrics import (
    detail_correlation,
    detail_energy,
    octave_correlations,
    octave_energies,
    psnr,
)
from dipy_ldm.plots import planes, save_montage

# Voxels along a side of a piece, and of the patch that is drawn from it in each epoch.
SIDE, PATCH = 64, 48
# Number of pieces of a volume, relative to its size in pieces, and maximum number.
TIMES, MOST = 1.5, 16
# Share of the volumes that are resampled to larger voxels, maximum factor, and maximum
# voxel size in mm.
RESAMPLED, LARGER, LARGEST = 0.5, 2.0, 4.0
# Pieces with less than this share of voxels above DARK are kept with a probability of
# SELDOM.
SHOWN, DARK, SELDOM = 0.1, 0.05, 0.1
# Voxels above this share of the range are inside the head.
INSIDE = 0.05
# Voxels along a side of what a latent represents; pieces that components are fitted to.
FACTOR = 4
LINEAR_PIECES = 100


def add_cut_options(parser):
    """Add the options of :func:`cut`."""
    parser.add_argument("volumes", nargs="+", help="NIfTI files, folders, wildcards")
    parser.add_argument("--out", required=True, help=".npy file of pieces")
    parser.add_argument("--seed", type=int, default=0)


def cut(options):
    """Cut volumes into pieces, some resampled to larger voxels."""
    raw = Path(f"{options.out}.partial")
    n = 0
    with open(raw, "wb") as stream:
        for i, file in enumerate(tqdm(find_volumes(options.volumes), "volumes")):
            rng = np.random.default_rng((options.seed, i))
            pieces = draw_pieces(rng, read_volume(rng, file))
            stream.write(pieces.astype("float16").tobytes())
            n += len(pieces)
    shape = (n, SIDE, SIDE, SIDE, 1)
    np.save(options.out, np.memmap(raw, "float16", "r", shape=shape))
    raw.unlink()
    return {"pieces": n}


def read_volume(rng, file):
    """Read a volume as dipy_ldm does, at its voxel size or at a larger one.

    Shapes: result ``(x, y, z, 1)``.
    """
    grid = plan_volumes([file]).grid
    if rng.random() < RESAMPLED:
        size = float(np.cbrt(abs(np.linalg.det(grid.affine[:3, :3]))))
        larger = min(size * LARGER ** rng.random(), LARGEST)
        grid = plan_volumes([file], voxel_size=max(size, larger)).grid
    return Unnamed().read(file, grid)[0]


def draw_pieces(rng, volume):
    """Cut random pieces of a volume, few of them dark.

    Shapes: volume ``(x, y, z, 1)``, result ``(n, SIDE, SIDE, SIDE, 1)``.
    """
    n = int(np.clip(np.ceil(TIMES * volume.size / SIDE**3), 1, MOST))
    slack = np.maximum(np.subtract(volume.shape[:3], SIDE), 0)
    pieces: list[np.ndarray] = []
    while len(pieces) < n:
        corner = rng.integers(0, slack + 1)[None]
        piece = read_patches(volume[None], [0], corner, (SIDE,) * 3)[0]
        if rng.random() < SELDOM or (piece > DARK).mean() > SHOWN:
            pieces.append(piece)
    return np.stack(pieces)


def add_train_options(parser):
    """Add the options of :func:`train`."""
    parser.add_argument("pieces", help=".npy file, written by cut")
    parser.add_argument("--held_out", help="another .npy file, for validation")
    parser.add_argument("--out", required=True, help="model file of the stage")
    parser.add_argument("--init", help="model file of the previous stage")
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--learning_rate", type=float, help="default: that of volumes")
    parser.add_argument("--noise", type=float, default=0.05, help="to be removed")
    parser.add_argument("--widths", nargs="+", type=int, default=[32, 64])
    parser.add_argument("--code_dim", type=int, default=8)
    parser.add_argument("--n_codebooks", type=int, default=8)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--seed", type=int, default=0, help="another for each stage")


def train(options):
    """Train or resume a stage."""
    out = Path(options.out)
    names = ("widths", "code_dim", "n_codebooks", "seed")
    vqvae = VQVAE(**{name: getattr(options, name) for name in names})
    vqvae.fit(
        np.load(options.pieces, mmap_mode="r"),
        init=options.init,
        validation_data=options.held_out and np.load(options.held_out, mmap_mode="r"),
        # A nominal affine, since voxel sizes vary.
        affine=np.diag([2.0, 2, 2, 1]),
        steps=options.steps,
        patch=PATCH,
        augment=Augmentation(True, 2, 0.05, options.noise),
        learning_rate=options.learning_rate,
        precision=options.precision,
        checkpoint=f"{out}.checkpoint",
        checkpoint_steps=100,
        verbose=sys.stderr.isatty(),
        callbacks=[lambda vqvae: report(vqvae, out)],
    )
    save(vqvae, out)
    return last_figures(vqvae)


def report(vqvae, path):
    """Save the model and its history after a round."""
    save(vqvae, path.with_suffix(".latest.safetensors"))
    path.with_suffix(".history.json").write_text(json.dumps(vqvae.history_))
    log(json.dumps(last_figures(vqvae)))


def last_figures(vqvae):
    """Return the metrics of the last round."""
    return {name: round(values[-1], 5) for name, values in vqvae.history_.items()}


def save(vqvae, path):
    """Write an autoencoder with weights of 16 bits."""
    tensors = _serialization.halved(vqvae.to_tensors())
    _serialization.save(path, "vqvae", tensors, vqvae.to_document())


def add_measure_options(parser):
    """Add the options of :func:`measure`."""
    parser.add_argument("model", help="file, or name of a packaged model")
    parser.add_argument(
        "volumes", nargs="+", help="NIfTI files, folders, wildcards: a line for each"
    )
    parser.add_argument("--voxel_size", type=float, help="in mm; default: the volumes'")
    parser.add_argument("--n", type=int, help="maximum number of volumes of each")
    parser.add_argument("--gain", type=float, help="sharpening; default: the model's")
    parser.add_argument(
        "--continuous", action="store_true", help="decode latents as they were encoded"
    )
    parser.add_argument(
        "--montage",
        metavar="FILE",
        type=png_path,
        help="pictures FILE-0.png etc. of the first volume and its reconstruction",
    )


def measure(options):
    """Measure reconstructions of held-out volumes."""
    vqvae = VQVAE._read_init(options.model)
    if options.gain is not None:
        vqvae.sharpening_ = options.gain
    if options.continuous:
        vqvae.quantizer_.quantise = lambda latents: latents
    for number, name in enumerate(options.volumes):
        files = find_volumes([name])[: options.n]
        scores, shown = measure_all(vqvae, files, options.voxel_size)
        if options.montage:
            path = options.montage.replace(".png", f"-{number}.png")
            save_montage(path, shown, columns=1, scale=3)
        yield {"volumes": name, "n": len(files), **scores}


def add_linear_options(parser):
    """Add the options of :func:`measure_linear`."""
    parser.add_argument("pieces", help=".npy file, written by cut, to fit to")
    parser.add_argument("volumes", nargs="+", help="NIfTI files, folders, wildcards")
    parser.add_argument("--voxel_size", type=float, help="in mm; default: the volumes'")
    parser.add_argument("--code_dim", nargs="+", type=int, default=[8, 12, 16, 24])


def measure_linear(options):
    """Measure principal components of blocks: what a linear autoencoder reaches."""
    pieces = np.load(options.pieces, mmap_mode="r")
    voxels = blocks(np.array(pieces[:: 1 + len(pieces) // LINEAR_PIECES], "float32"))
    components = np.linalg.eigh(voxels.T @ voxels)[1][:, ::-1]
    for file in find_volumes(options.volumes):
        grid = plan_volumes([file], voxel_size=options.voxel_size).grid
        volume = Unnamed().read(file, grid)[0][None]
        for count in options.code_dim:
            basis = components[:, :count] @ components[:, :count].T
            scores = score(volume, transformed(volume, basis))
            rounded = {
                name: np.round(each, 3).tolist() for name, each in scores.items()
            }
            yield {"volumes": str(file), "code_dim": count, **rounded}


def blocks(volumes):
    """Return the voxels of each latent, ``(latents, FACTOR**3)``."""
    n, *space, _ = volumes.shape
    sides = [part for size in space for part in (size // FACTOR, FACTOR)]
    parts = volumes.reshape(n, *sides).transpose(0, 1, 3, 5, 2, 4, 6)
    return parts.reshape(-1, FACTOR**3)


def transformed(volume, basis):
    """Multiply the blocks of a volume by a matrix, within [0, 1].

    Shapes: volume, result ``(1, x, y, z, 1)``.
    """
    size = [length + -length % FACTOR for length in volume.shape[1:4]]
    images = read_padded(volume, tuple(size))
    results = blocks(images) @ basis.astype("float32")
    counts = [length // FACTOR for length in size]
    parts = results.reshape(1, *counts, *(FACTOR,) * 3).transpose(0, 1, 4, 2, 5, 3, 6)
    crop = (slice(None), *map(slice, volume.shape[1:4]))
    return parts.reshape(images.shape)[crop].clip(0, 1)


def measure_all(vqvae, files, voxel_size):
    """Measure reconstructions; return also planes of the first volume and its own."""
    scores, shown = [], None
    for file in files:
        grid = plan_volumes([file], voxel_size=voxel_size).grid
        volume = Unnamed().read(file, grid)[0][None]
        reconstructed = vqvae.predict(volume)
        scores.append(score(volume, reconstructed))
        if shown is None:
            shown = planes(np.concatenate([volume, reconstructed]), grid.affine)
    octaves = min(len(each["octaves"]) for each in scores)
    means = {
        name: np.mean([np.atleast_1d(s[name])[:octaves] for s in scores], 0, float)
        for name in scores[0]
    }
    return {name: values.round(3).tolist() for name, values in means.items()}, shown


def score(volume, reconstructed):
    """Compare a reconstruction with its volume, inside the head and by octaves.

    Shapes: volume, reconstructed ``(1, x, y, z, channels)``.
    """
    inside = (volume > volume.min() + INSIDE * np.ptp(volume)).any(-1)
    pair = reconstructed, volume, inside
    return {
        "db": psnr(*pair)[0],
        "energy": detail_energy(*pair)[0],
        "true": detail_correlation(*pair)[0],
        "octaves": (octave_energies(reconstructed) / octave_energies(volume))[0],
        "true_octaves": octave_correlations(reconstructed, volume)[0],
    }


MEASURES = {
    "cut": (add_cut_options, cut),
    "train": (add_train_options, train),
    "measure": (add_measure_options, measure),
    "linear": (add_linear_options, measure_linear),
}


def main(arguments=None):
    """Run the measure of a command line."""
    print_scores(make_parser(__doc__, MEASURES), arguments)


if __name__ == "__main__":
    main()
