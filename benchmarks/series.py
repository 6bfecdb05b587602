"""Generate diffusion series from b = 0 images, and measure the tensors fitted to them.

Brains are simulated, so that the truth is known: label maps, one tensor for each voxel,
isotropic outside white matter, and Rician noise. In white matter, fibre directions are
a smooth function of position that all subjects share, rotated by a smooth field of each
subject, which is invisible at b = 0::

    python benchmarks/series.py brains --maps heads

With ``--denoise``, held-out series are denoised instead, by the model and by DIPY.

Existing files are kept.
"""

from pathlib import Path

from common import (
    Parser,
    call,
    draw_brains,
    load_model,
    log,
    print_scores,
    train_once,
)
from dipy.core.sphere import HemiSphere, disperse_charges
from dipy.denoise.localpca import mppca
from dipy.denoise.patch2self import patch2self
from dipy.io.gradients import read_bvals_bvecs
from dipy.reconst.shm import real_sh_descoteaux_from_index
from dipy.sims.voxel import add_noise
import nibabel as nib
import numpy as np
from scipy.ndimage import gaussian_filter, map_coordinates

from dipy_ldm.data._bvals_bvecs import Gradients
from dipy_ldm.data._grid import Grid, conform
from dipy_ldm.evaluation._diffusion_tensors import fit_tensors

# For python -c, like TRAIN.
GENERATE = "from dipy_ldm.workflows import cli; cli.generate()"
DENOISE = "from dipy_ldm.workflows import cli; cli.denoise()"
# Labels of FreeSurfer.
WHITE = (2, 7, 16, 28, 41, 46, 60, 77, 85, 192, *range(251, 256))
FLUID = (4, 5, 14, 15, 24, 43, 44, 72)
# Signal of each tissue without diffusion weighting, and diffusivities in mm^2/s.
SIGNAL = {"white": 400.0, "grey": 500.0, "fluid": 1000.0}
GREY, FREE, PARALLEL = 0.8e-3, 3e-3, 1.6e-3
# Number of directions for each b-value of a training series; a b-value between them.
SHELLS = {1000: 20, 2500: 10}
BETWEEN = 1600
# Signal-to-noise ratio of white matter at b = 0.
SNR = 25
# Standard deviation of each subject's rotation of fibres about each axis, in degrees.
OWN_TURN = 12.0
# Axes of FSL: those of the world, with the first one flipped.
LEFT = np.diag([-1.0, 1, 1, 1])


def make_parser():
    """Describe the command line."""
    parser = Parser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="of all files")
    parser.add_argument("--maps", type=Path, required=True, help="folder of label maps")
    parser.add_argument("--n", type=int, default=12, help="brains to train on")
    parser.add_argument("--n_held_out", type=int, default=3)
    parser.add_argument("--n_directions", type=int, default=30, help="to generate")
    parser.add_argument("--voxel_size", type=float, default=4.0, help="in mm")
    parser.add_argument("--steps_vqvae", type=int, default=300, help="after init")
    parser.add_argument("--steps_ldm", type=int, default=600, help="0: no model")
    parser.add_argument("--widths_ldm", type=int, nargs="+", default=[32, 64])
    parser.add_argument("--patch", type=int, default=16)
    parser.add_argument("--batch_size", type=int, default=4)
    strengths = "denoise with these strengths"
    parser.add_argument("--denoise", type=float, nargs="+", help=strengths)
    parser.add_argument("--snr", type=float, default=SNR, help="of noisy series")
    parser.set_defaults(measure=compare)
    return parser


def spread(n, seed):
    """Return unit vectors that are spread over a half sphere, ``(n, 3)``."""
    vectors = np.random.default_rng(seed).normal(size=(n, 3))
    start = HemiSphere(xyz=vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
    return disperse_charges(start, 500)[0].vertices


class Subject:
    """A simulated brain from a label map: tensors at any points in the world."""

    def __init__(self, file):
        image = nib.load(file)
        self.number = int(file.name[4:8])
        self.labels = np.asarray(image.dataobj).astype(int)
        self.affine = image.affine
        rng = np.random.default_rng([self.number, 1])
        self.gain = rng.uniform(0.5, 2)
        # Rotations about each axis, in radians, every 8 mm, smooth over 16 mm.
        turns = [gaussian_filter(n, 2.0) for n in rng.normal(size=(3, 40, 40, 40))]
        self.turns = [np.deg2rad(OWN_TURN) * turn / turn.std() for turn in turns]

    def on(self, shape, affine):
        """Return the shares of white matter, fluid and brain on a grid."""
        grid = Grid(shape, affine)
        white, fluid, brain = (
            conform(mask[..., None].astype("float32"), self.affine, grid)[..., 0]
            for mask in (
                np.isin(self.labels, WHITE),
                np.isin(self.labels, FLUID),
                self.labels > 0,
            )
        )
        return white, fluid, brain

    def tensors(self, shape, affine):
        """Return shared and own directions, ``(..., 3)``, and radial diffusivity."""
        indices = np.moveaxis(np.indices(shape), 0, -1)
        places = indices @ affine[:3, :3].T + affine[:3, 3]
        common, across = fibres(places)
        at = np.moveaxis(places / 8 + 20, -1, 0)
        turn = np.stack([map_coordinates(t, at, order=1) for t in self.turns], -1)
        own = common + np.cross(turn, common)
        return common, own / np.linalg.norm(own, axis=-1, keepdims=True), across

    def series(self, shape, affine, bvals, directions, snr=SNR, seed=0):
        """Simulate a series on a grid, ``(*shape, n)``."""
        white, fluid, brain = self.on(shape, affine)
        _, fibre, across = self.tensors(shape, affine)
        grey = np.clip(brain - white - fluid, 0, 1)
        along = np.square(fibre @ directions.T) * (bvals > 0)
        diffusivity = across[..., None] + (PARALLEL - across[..., None]) * along
        signal = SIGNAL["white"] * white[..., None] * np.exp(-bvals * diffusivity)
        signal += SIGNAL["grey"] * grey[..., None] * np.exp(-bvals * GREY)
        signal += SIGNAL["fluid"] * fluid[..., None] * np.exp(-bvals * FREE)
        if snr:
            rng = np.random.default_rng([self.number, 2, seed])
            how = {"noise_type": "rician", "rng": rng}
            signal = add_noise(signal, snr, SIGNAL["white"], **how)
        return (self.gain * signal * (brain > 0)[..., None]).astype("float32")


def fibres(places):
    """Return the directions that all subjects share, and radial diffusivity."""
    x, y, z = np.moveaxis(places, -1, 0) / 25
    parts = [np.sin(y) + 0.5 * z, np.cos(x) + 0.3 * np.sin(z), np.sin(x + y) + 0.4]
    field = np.stack(parts, -1)
    across = 0.45e-3 + 0.15e-3 * np.sin(x - z)
    return field / np.linalg.norm(field, axis=-1, keepdims=True), across


def prepare(options):
    """Simulate missing series."""
    counts = {"train": (options.n, 0), "held_out": (options.n_held_out, 5000)}
    for name, (n, first) in counts.items():
        folder = options.folder / name
        if len(list(folder.glob("*_dwi.nii.gz"))) >= n:
            continue
        labels, size = options.folder / "labels", options.voxel_size
        how = ["--maps", options.maps, "--dseg", "--contrasts", "T2w"]
        how += ["--voxel_size", size, size]
        folder.mkdir(parents=True, exist_ok=True)
        for i in range(first, first + n):
            file = f"sub-{i:04d}_T2w_dseg.nii.gz"
            draw_brains(labels, file, 1, i, *how)
            write(Subject(labels / file), folder / f"sub-{i:04d}_dwi.nii.gz")


def write(subject, path, snr=SNR, grid=None):
    """Write a training series with its gradient tables."""
    shape, affine = grid or (subject.labels.shape, subject.affine)
    bvals = np.concatenate([[0, 0], *([b] * n for b, n in SHELLS.items())])
    vectors = [spread(n, [subject.number, b]) for b, n in SHELLS.items()]
    directions = np.concatenate([np.zeros((2, 3)), *vectors])
    data = subject.series(shape, affine, bvals, directions, snr)
    nib.save(nib.Nifti1Image(data, affine), path)
    b0 = nib.Nifti1Image(data[..., :2].mean(-1), affine)
    (path.parent / "b0").mkdir(exist_ok=True)
    nib.save(b0, path.parent / "b0" / path.name.replace("dwi", "b0"))
    table = Gradients(bvals, directions @ LEFT[:3, :3]).rotated(LEFT, affine)
    for end, text in table.texts().items():
        path.with_name(path.name.replace(".nii.gz", end)).write_text(text)


def train(options):
    """Train the model if it does not exist."""
    names = ("voxel_size", "steps_vqvae", "steps_ldm", "patch", "batch_size")
    files = sorted((options.folder / "train").glob("*_dwi.nii.gz"))
    how = "--dwi", "--validation", 0.1, "--init", "volumes"
    return train_once(options, names, *files, *how)


def make(options, model, name, bvals, directions):
    """Generate series of all held-out brains, along directions of the world."""
    folder = options.folder / name
    for file in sorted((options.folder / "held_out" / "b0").glob("*_b0.nii.gz")):
        if list(folder.glob(file.name.replace(".nii.gz", "*.nii.gz"))):
            continue
        folder.mkdir(exist_ok=True)
        own = Gradients(bvals, directions @ LEFT[:3, :3])
        tables = own.rotated(LEFT, nib.load(file).affine).texts()
        paths = {end: folder / f"{file.name[:8]}_table{end}" for end in tables}
        for end, text in tables.items():
            paths[end].write_text(text)
        call(
            *("-c", GENERATE, model, "--source_files", file),
            *("--bvals", paths[".bval"], "--bvecs", paths[".bvec"]),
            *("--out_dir", folder, "--force"),
        )


def fit(data, bvals, directions, mask):
    """Fit tensors; return FA and principal directions in the mask."""
    tensors = fit_tensors(data, bvals, directions, mask)
    return tensors.fa[mask], tensors.directions[mask]


def angles(a, b):
    """Return angles between directions, in degrees."""
    return np.rad2deg(np.arccos(np.clip(np.abs((a * b).sum(-1)), 0, 1)))


def from_six(measured, directions, targets):
    """Interpolate six measured volumes by spherical harmonics of degree 2.

    Shapes: measured ``(voxels, 7)``, b = 0 first, result ``(voxels, n)``.
    """
    m, degree = np.array([0, -2, -1, 0, 1, 2]), np.array([0, 2, 2, 2, 2, 2])

    def basis(vectors):
        polar = np.arccos(np.clip(vectors[:, 2], -1, 1))
        azimuth = np.arctan2(vectors[:, 1], vectors[:, 0])
        grid = m, degree, polar[:, None], azimuth[:, None]
        return real_sh_descoteaux_from_index(*grid, legacy=False)

    weights = basis(targets) @ np.linalg.pinv(basis(directions))
    return measured[:, 1:] @ weights.T


def compare(options):
    """Simulate, train, generate and measure; yield the scores."""
    prepare(options)
    ways = denoised(options) if options.denoise else generated(options)
    for name, scores in ways.items():
        means = {k: float(np.mean([own[k] for own in scores])) for k in scores[0]}
        yield {"by": name} | {k: round(mean, 3) for k, mean in means.items()}


def generated(options):
    """Generate series; return scores by method."""
    n = options.n_directions
    directions = np.concatenate([np.zeros((1, 3)), spread(n, 99)])
    bvals = np.array([0.0] + [1000.0] * n)
    between = np.where(bvals > 0, BETWEEN, 0.0)
    if options.steps_ldm:
        path = train(options)
        model, grid = load_model(path)
        make(options, path, "made", bvals, directions)
        make(options, path, "between", between, directions)
    ways: dict[str, list] = {}
    for file in sorted((options.folder / "held_out").glob("*_dwi.nii.gz")):
        log(f"measuring {file.name}")
        labels = options.folder / "labels" / file.name.replace("dwi", "T2w_dseg")
        subject = Subject(labels)
        if not options.steps_ldm:
            grid = Grid(subject.labels.shape, subject.affine)
        each = score_measured(options.n_directions, grid, subject, bvals, directions)
        if options.steps_ldm:
            each |= score_generated(options, model, grid, subject, bvals, directions)
            each["between"] = score_between(options, grid, subject, between)
        for name, own in each.items():
            ways.setdefault(name, []).append(own)
    return ways


def denoised(options):
    """Denoise held-out series on the model's grid; return scores by method."""
    ways: dict[str, list[dict]] = {}
    path = train(options)
    _, grid = load_model(path)
    noisy = options.folder / f"snr-{options.snr:g}"
    names = {f"{noisy.name}-strength-{s:g}": s for s in options.denoise}
    noisy.mkdir(exist_ok=True)
    subjects = {}
    for file in sorted((options.folder / "held_out").glob("*_dwi.nii.gz")):
        labels = options.folder / "labels" / file.name.replace("dwi", "T2w_dseg")
        subjects[noisy / file.name] = Subject(labels)
        if not (noisy / file.name).exists():
            write(subjects[noisy / file.name], noisy / file.name, options.snr, grid)
    for name, strength in names.items():
        how = "--strength", strength, "--out_dir", options.folder / name, "--resume"
        call("-c", DENOISE, path, *subjects, *how)
    for subject in subjects.values():
        data, directions = read(options, noisy.name, subject)
        bvals = np.repeat([0, *SHELLS], [2, *SHELLS.values()])
        series = {
            "nothing": data,
            "mppca": mppca(data, mask=(data != 0).any(-1)),
            "patch2self": patch2self(data, bvals, verbose=False),
        }
        series |= {name: read(options, name, subject)[0] for name in names}
        # Tensors are fitted to the lowest shell, as usual.
        low, mask = bvals <= 1000, white_matter(subject, grid)
        for name, own in series.items():
            tensors = fit(own[..., low], bvals[low], directions[low], mask)
            ways.setdefault(name, []).append(score(subject, grid, *tensors))
    return ways


def read(options, folder, subject):
    """Read a generated series, and its directions in the world."""
    (file,) = (options.folder / folder).glob(f"sub-{subject.number:04d}*.nii.gz")
    stem = str(file).removesuffix(".nii.gz")
    bvals, bvecs = read_bvals_bvecs(f"{stem}.bval", f"{stem}.bvec")
    image = nib.load(file)
    own = Gradients(bvals, bvecs).rotated(image.affine, LEFT)
    return image.get_fdata(dtype="float32"), own.bvecs @ LEFT[:3, :3]


def white_matter(subject, grid):
    """Return the mask of pure white matter."""
    return subject.on(grid.shape, grid.affine)[0] > 0.95


def score_measured(n, grid, subject, bvals, directions):
    """Score measured series, and the shared directions, in white matter."""
    mask = white_matter(subject, grid)
    place = grid.shape, grid.affine
    common, _, across = (x[mask] for x in subject.tensors(*place))
    series = subject.series(*place, bvals, directions)
    six = np.concatenate([np.zeros((1, 3)), spread(6, 7)])
    few = subject.series(*place, bvals[:7], six, seed=1)[mask]
    filled = from_six(few, six[1:], directions[1:])
    filled = np.concatenate([few[:, :1], filled], 1)
    everywhere = np.ones(mask.sum(), bool)
    return {
        f"{n} measured": score(subject, grid, *fit(series, bvals, directions, mask)),
        "six measured, interpolated": score(
            subject, grid, *fit(filled, bvals, directions, everywhere)
        ),
        "what all share": score(subject, grid, true_fa(across), common),
    }


def score_generated(options, model, grid, subject, bvals, directions):
    """Score series generated from b = 0, and the autoencoder's reconstructions."""
    mask = white_matter(subject, grid)
    data, own = read(options, "made", subject)
    truth = subject.series(grid.shape, grid.affine, bvals, directions)
    scale = np.percentile(truth[..., 0][truth[..., 0] != 0], 99.5)
    volumes = np.clip(np.moveaxis(truth[..., 1:], -1, 0)[..., None] / scale, 0, 1)
    decoded = model.vqvae.predict(volumes.astype("float32"), batch_size=4)
    truth[..., 1:] = scale * np.moveaxis(decoded[..., 0], 0, -1)
    return {
        "made of b = 0": score(subject, grid, *fit(data, bvals, own, mask)),
        "autoencoder of the truth": score(
            subject, grid, *fit(truth, bvals, directions, mask)
        ),
    }


def true_fa(across):
    """Return the fractional anisotropy of tensors by their radial diffusivity."""
    return (PARALLEL - across) / np.sqrt(PARALLEL**2 + 2 * across**2)


def score(subject, grid, fa, main):
    """Compare FA and principal directions in white matter with the truth."""
    mask = white_matter(subject, grid)
    _, fibre, across = (x[mask] for x in subject.tensors(grid.shape, grid.affine))
    true, off = true_fa(across), angles(main, fibre)
    return {
        "fa_error": np.abs(fa - true).mean(),
        "fa_bias": (fa - true).mean(),
        "angle_median": np.median(off),
        "angle_mean": off.mean(),
    }


def score_between(options, grid, subject, bvals):
    """Score volumes at a b-value between shells: errors as shares of b = 0."""
    mask = white_matter(subject, grid)
    data, own = read(options, "between", subject)
    truth, lower = (
        subject.series(grid.shape, grid.affine, b, own, snr=None)[mask]
        for b in (bvals, np.minimum(bvals, 1000))
    )
    b0, weighted = truth[:, 0].mean(), truth[:, 1:]
    return {
        "error": np.abs(data[mask][:, 1:] - weighted).mean() / b0,
        "error_of_b_1000": np.abs(lower[:, 1:] - weighted).mean() / b0,
        "spread": weighted.std(1).mean() / b0,
    }


if __name__ == "__main__":
    print_scores(make_parser())
