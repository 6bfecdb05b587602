"""Record what the package computes, and compare it after a refactoring.

    python benchmarks/golden.py record ../golden     # on the commit to compare with
    python benchmarks/golden.py compare ../golden    # on the refactored code

It covers weights after eight steps of each stage, results of fitted models, model files
and checkpoints of the earlier code that the later code reads, and the files that
commands write. On one machine the same code gives the same bits; if only the order of
sums differs, values agree to about 1e-5. Differences of bits are listed; differences of
values are errors.
"""

import argparse
import hashlib
import json
import os
from pathlib import Path
import shutil
import subprocess
import sys
import tempfile
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import nibabel as nib
import numpy as np

from dipy_ldm import VQVAE, LatentDiffusion
from dipy_ldm.diffusion.samplers import SAMPLERS

TINY_VQVAE: dict[str, Any] = {"widths": (8, 8), "blocks": 1, "n_codes": 16}
TINY_VQVAE |= {"code_dim": 2}
TINY_LDM: dict[str, Any] = {"widths": (8, 16), "blocks": 1}
FIT: dict[str, Any] = {"steps": 8, "batch_size": 8, "verbose": False}
FIT |= {"precision": "float32"}
TOLERANCE = 1e-3
# Entries that differ between runs or machines.
VOLATILE = ("seconds", "time", "date", "memory", "version", "path", "host", "processor")


def images(rank, n=24, side=16):
    """Return smooth blobs ``(n, *space, 1)``, their sizes, and another contrast."""
    rng = np.random.default_rng(rank)
    grid = np.moveaxis(np.mgrid[(slice(0, side),) * rank], 0, -1)
    centre = rng.uniform(side / 3, side * 2 / 3, (n, *(1,) * rank, rank))
    size = rng.uniform(side / 8, side / 4, n)
    distance = ((grid - centre) ** 2).sum(-1)
    blobs = np.exp(-distance / size.reshape(-1, *(1,) * rank) ** 2)
    blobs += rng.normal(0, 0.02, blobs.shape)
    blobs = np.clip(blobs, 0, 1).astype("float32")[..., None]
    return blobs, size.round(2), (1 - blobs**2).astype("float32")


def weights_of(model):
    """Return all tensors of a fitted model."""
    return {f"weights/{name}": value for name, value in model.to_tensors().items()}


def check_autoencoder(rank, folder):
    """Train autoencoders, and apply one."""
    blobs = images(rank)[0]
    variants: dict[str, tuple[dict, dict]] = {
        "plain": ({}, {}),
        "codebooks": ({"n_codebooks": 2}, {}),
        "accumulate": ({}, {"accumulate": 2}),
        "remat": ({}, {"remat": True}),
        "patch": ({}, {"patch": 8}),
    }
    for name, (parameters, options) in variants.items():
        keras.utils.clear_session()
        model = VQVAE(**TINY_VQVAE | parameters)
        model.fit(blobs, validation_data=blobs[:8], **FIT | options)
        yield from prefixed(name, weights_of(model))
        figures = [model.history_[key] for key in sorted(model.history_)]
        yield f"{name}/history", np.concatenate(figures).astype(float)
    latents = model.encode(blobs)
    yield "encode", latents
    yield "decode", model.decode(latents)
    yield "predict", model.predict(blobs)


def check_diffusion(rank, folder):
    """Train denoisers, and apply them."""
    blobs, size, contrast = images(rank)
    autoencoder = VQVAE(**TINY_VQVAE).fit(blobs, **FIT)
    group = np.where(size > np.median(size), "large", "small")
    tables: dict[str, dict[str, Any]] = {
        "plain": {},
        "conditions": {"conditions": {"size": size, "group": group}},
        "source": {"source": contrast},
        "accumulate": {"accumulate": 2, "steps": 30},
        "remat": {"remat": True},
    }
    for name, options in tables.items():
        keras.utils.clear_session()
        model = LatentDiffusion(autoencoder, **TINY_LDM)
        checkpoint = folder / f"{name}.checkpoint"
        model.fit(blobs, **FIT | options, checkpoint=checkpoint)
        model.save(folder / f"{name}.safetensors")
        yield from prefixed(name, weights_of(model))
        yield from prefixed(name, apply(model, blobs, contrast))


def apply(model, blobs, contrast):
    """Return images of a fitted model by all of its methods."""
    results = {}
    options: dict = {"source": contrast[:2]} if model.source_ else {}
    for sampler in SAMPLERS:
        results[sampler] = model.predict(2, sampler=sampler, steps=4, seed=3, **options)
    if model.conditions_:
        requested = {"size": [2.0, 4.0], "group": ["small", "large"]}
        results["conditioned"] = model.predict(conditions=requested, steps=4, seed=3)
    mask = np.zeros(blobs.shape[1:-1])
    mask[tuple([slice(4, 10)] * mask.ndim)] = 1
    results["denoise"] = model.denoise(blobs[:2], strength=0.3, **options)
    results["inpaint"] = model.inpaint(blobs[:2], mask, seed=1, **options)
    return results


def check_detector(rank, folder):
    """Train an anomaly detector, and apply it."""
    blobs = images(rank)[0]
    autoencoder = VQVAE(**TINY_VQVAE).fit(blobs, **FIT)
    keras.utils.clear_session()
    model = LatentDiffusion(autoencoder, **TINY_LDM).fit(blobs, **FIT)
    model.fit_detector(blobs, **FIT)
    model.save(folder / "detector.safetensors")
    yield from weights_of(model).items()
    yield "detect", model.detect(blobs[:2])


def check_saved(rank, folder, earlier):
    """Apply model files of the earlier code, and resume from its checkpoints."""
    blobs, _, contrast = images(rank)
    for path in sorted(earlier.glob("*.safetensors")):
        model = LatentDiffusion.load(path)
        yield from prefixed(f"saved/{path.stem}", apply(model, blobs, contrast))
    checkpoint = shutil.copy(earlier / "plain.checkpoint", folder / "resumed")
    model = LatentDiffusion(VQVAE(**TINY_VQVAE).fit(blobs, **FIT), **TINY_LDM)
    model.fit(blobs, **FIT, checkpoint=checkpoint)
    yield from prefixed("resumed", weights_of(model))


def prefixed(prefix, results):
    """Put a prefix before the names of results."""
    for name, value in results.items():
        yield f"{prefix}/{name}", value


def check_commands(rank, folder):
    """Run every command on small inputs; yield the contents of the files they write."""
    blobs, size, contrast = images(3, n=44)
    affine = np.diag([2, 2, 2, 1])
    for kind, volumes in (("T1w", blobs), ("T2w", contrast)):
        for i, volume in enumerate((1000 * volumes[..., 0]).astype("int16")):
            place = folder / "bids" / f"sub-{i:02d}" / "anat"
            place.mkdir(parents=True, exist_ok=True)
            path = place / f"sub-{i:02d}_{kind}.nii.gz"
            nib.save(nib.Nifti1Image(volume, affine), path)
    rows = [f"sub-{i:02d}\t{value}" for i, value in enumerate(size)]
    table = "\n".join(["participant_id\tage", *rows]) + "\n"
    (folder / "bids" / "participants.tsv").write_text(table)
    mask = np.zeros(blobs.shape[1:-1], "uint8")
    mask[4:8, 4:8, 4:8] = 1
    mask_file = "sub-00_mask.nii.gz"
    nib.save(nib.Nifti1Image(mask, affine), folder / mask_file)
    scans = [f"bids/sub-{i:02d}/anat/sub-{i:02d}_T1w.nii.gz" for i in range(44)]
    train, others = " ".join(scans[:24]), " ".join(scans[24:])
    tiny = "--widths_vqvae 8 8 --widths_ldm 8 16 --n_codes 16 --code_dim 2"
    tiny += " --steps_vqvae 8 --steps_ldm 8 --precision float32 --cache_dir cache"
    model, made = "out/ldm.safetensors", "--generated made"
    for line in (
        f"train {train} {tiny} --conditions age --steps_detector 8 --out_dir out",
        f"check {train} {tiny} --out_dir check",
        f"generate {model} --n_samples 44 --out_dir made",
        f"generate {model} --conditions age=3 --bids --out_dir dataset",
        f"denoise {model} {scans[0]} {scans[1]} --difference --out_dir denoised",
        f"denoise {model} {scans[0]} --lesions --out_dir lesions",
        f"inpaint {model} {scans[0]} --mask_files {mask_file} --out_dir inpainted",
        f"evaluate {model} --real {others} {made} --out_dir evaluated",
        f"audit {model} --train {train} --held_out {others} {made} --out_dir audited",
    ):
        name, *arguments = line.split()
        program = f"{Path(sys.executable).parent}/dipy_{name}_ldm"
        command = [program, *arguments]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        yield f"status/{name}", np.array(done.returncode)
        if done.returncode:
            print(name, done.stderr[-600:], file=sys.stderr)
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_file() and name.split("/")[0] not in ("bids", "cache"):
            yield f"files/{name}", contents(path)


def contents(path):
    """Return the contents of a file that are reproducible."""
    if path.suffix == ".gz" or path.suffix == ".nii":
        image = nib.load(path)
        return np.concatenate([image.affine.ravel(), image.get_fdata().ravel()])
    if path.suffix == ".json":
        return json.dumps(stable(json.loads(path.read_text())), sort_keys=True)
    return "there"


def stable(entry):
    """Remove entries from a JSON document that differ between runs."""
    if isinstance(entry, dict):
        return {
            key: stable(value)
            for key, value in entry.items()
            if not any(word in key.lower() for word in VOLATILE)
        }
    if isinstance(entry, list):
        return [stable(value) for value in entry]
    return round(entry, 3) if isinstance(entry, float) else entry


CHECKS = {
    "autoencoder": check_autoencoder,
    "diffusion": check_diffusion,
    "detector": check_detector,
}


def collect(kinds, folder, earlier=None):
    """Run all checks; return results by name."""
    results: dict = {}
    for name, check in CHECKS.items():
        for rank in (2, 3):
            if name in kinds:
                place = folder / f"{name}-{rank}"
                place.mkdir(parents=True)
                results |= gathered(f"{name}-{rank}", check(rank, place))
    if "saved" in kinds and earlier:
        for rank in (2, 3):
            place = folder / f"saved-{rank}"
            place.mkdir(parents=True)
            pairs = check_saved(rank, place, earlier / f"diffusion-{rank}")
            results |= gathered(f"diffusion-{rank}", pairs)
    if "commands" in kinds:
        place = folder / "commands"
        place.mkdir(parents=True)
        results |= gathered("commands", check_commands(3, place))
    return results


def gathered(prefix, pairs):
    """Collect pairs of names and results, and log progress."""
    results = dict(prefixed(prefix, dict(pairs)))
    print(f"{prefix}: {len(results)} results", flush=True)
    return results


def digest(value):
    """Return the hash of a result."""
    raw = value.encode() if isinstance(value, str) else np.asarray(value).tobytes()
    return hashlib.sha256(raw).hexdigest()


def differ(before, after):
    """Return the largest difference, relative to the largest value before."""
    if isinstance(before, str) or isinstance(after, str):
        return float(str(before) != str(after))
    if before.shape != after.shape:
        return np.inf
    scale = np.abs(before).max(initial=0) or 1
    return float(np.abs(before - after).max(initial=0) / scale)


def main():
    """Record results, or compare them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("action", choices=("record", "compare"))
    parser.add_argument("folder", type=Path)
    kinds = [*CHECKS, "saved", "commands"]
    parser.add_argument("--only", nargs="+", choices=kinds, default=kinds)
    options = parser.parse_args()
    if options.action == "record":
        if options.folder.exists() and not (options.folder / "results.npz").exists():
            sys.exit(f"{options.folder} holds no golden results; name another folder")
        shutil.rmtree(options.folder, ignore_errors=True)
        options.folder.mkdir(parents=True)
        results = collect(options.only, options.folder / "files")
        np.savez(options.folder / "results.npz", **results)
        return
    with np.load(options.folder / "results.npz") as stored:
        before = {name: stored[name] for name in stored}
    before = {k: str(v) if v.dtype.kind == "U" else v for k, v in before.items()}
    with tempfile.TemporaryDirectory() as folder:
        after = collect(options.only, Path(folder), options.folder / "files")
    sys.exit(report(before, after))


def report(before, after):
    """Print the differences; return the exit status."""
    # Results of earlier model files are compared with those of the earlier code.
    after = {name.replace("/saved/", "/"): after[name] for name in after}
    shared = [name for name in after if name in before]
    errors = {
        name: differ(before[name], after[name])
        for name in shared
        if digest(before[name]) != digest(after[name])
    }
    wrong = [name for name, error in errors.items() if error > TOLERANCE]
    new = [name for name in after if name not in before and "/resumed/" not in name]
    prefixes = {name.split("/")[0] for name in after}
    missing = [
        name for name in before if name not in after and name.split("/")[0] in prefixes
    ]
    print(f"{len(shared)} results, {len(errors)} differ, the most:")
    for name in sorted(errors, key=lambda name: -errors[name])[:20]:
        print(f"  {name}: {errors[name]:.2g}")
    for name in wrong:
        print(f"WRONG {name}\n  before {before[name]}\n  after  {after[name]}"[:2000])
    print(*(f"NEW {name}" for name in new), sep="\n")
    print(*(f"MISSING {name}" for name in missing), sep="\n")
    return int(bool(wrong or new or missing))


if __name__ == "__main__":
    main()
