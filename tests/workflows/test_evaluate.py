"""``dipy_evaluate_ldm`` and ``dipy_audit_ldm``: pages, figures, exit statuses."""

from functools import partial
import json
import re
from types import SimpleNamespace
from unittest.mock import create_autospec

from PIL import Image
import numpy as np
import numpy.testing as npt
from processes import answer, skipped_training
import pytest
from scans import save, soft_balls, write_volumes

from dipy_ldm import VQVAE, LatentDiffusion
from dipy_ldm._utils.checks import InputError
from dipy_ldm._utils.subjects import refuse_same_subjects
from dipy_ldm.data import load_mnist
from dipy_ldm.data._sidecars import sidecar
from dipy_ldm.workflows import _reports as judgement
from dipy_ldm.workflows._evaluation_images import (
    EvaluationImages,
    one_of_each_subject,
    read_for,
    refuse_samples,
    refuse_samples_beside_real,
    refuse_train_subjects,
    take_in_turn,
)

pytestmark = pytest.mark.usefixtures("no_real_cache")
AFFINE = np.diag([2.0, 2, 2, 1])
AUDIT = "audit V/ldm.safetensors --train V/train --held_out V/real --generated V/copies"


write = partial(write_volumes, affine=AFFINE)


def train(images, conditions=None, epochs=1, batch_size=4):
    """Train a tiny model, its autoencoder for some epochs."""
    options = {"batch_size": batch_size, "verbose": False}
    vqvae = VQVAE(widths=(4, 4), blocks=1, n_codes=8, code_dim=2)
    vqvae.fit(images, affine=AFFINE, epochs=epochs, **options)
    model = LatentDiffusion(vqvae, widths=(4,), blocks=1, guide=False)
    return model.fit(images, conditions, epochs=1, **options)


@pytest.fixture(scope="module")
def volumes(tmp_path_factory):
    """Return a folder of training, held-out and generated volumes, and models."""
    folder = tmp_path_factory.mktemp("judged")
    images = soft_balls(40, 2)
    conditions = {"age": list(np.linspace(20, 80, 40)), "sex": ["F", "M"] * 20}
    train(images, conditions, 3, 8).save(folder / "ldm.safetensors")
    # Of other volumes, and as if they were coarser.
    with skipped_training("latent_diffusion"):
        other = train(soft_balls(12, 8, (12, 12, 11)))
    other.save(folder / "other.safetensors")
    other.vqvae_.affine_ = np.diag([4.0, 4, 4, 1])
    other.save(folder / "coarse.safetensors")
    write(folder / "train", images)
    write(folder / "real", soft_balls(44, 1))
    write(folder / "copies", np.concatenate([images[:12], soft_balls(12, 5)]))
    for name in ("empty", "bad", "pictures"):
        (folder / name).mkdir()
    save(folder / "bad" / "a.nii", np.ones((8, 8, 8)))
    (folder / "bad" / "b.nii").touch()
    for size in (8, 9):
        Image.new("L", (size, size)).save(folder / "pictures" / f"{size}.png")
    (sample,) = write(folder / "samples", soft_balls(1, 3)).iterdir()
    sidecar(sample).write_text('{"Synthetic": true}')
    return folder


@pytest.fixture
def evaluate(command, volumes):
    """Return what evaluates the model of volumes."""
    return partial(command, "evaluate", volumes / "ldm.safetensors", "--real")


@pytest.fixture
def audit(command, volumes):
    """Return what audits the model of volumes, by held-out ones."""
    arguments = (volumes / "ldm.safetensors", "--train", volumes / "train")
    return partial(command, "audit", *arguments, "--held_out")


@pytest.fixture
def image_model(diffusion, tmp_path):
    path = tmp_path / "images.safetensors"
    diffusion.save(path)
    return path


def test_evaluate_volumes(evaluate, volumes, tmp_path):
    further = write(tmp_path / "further", soft_balls(1, 7), affine=np.eye(4))
    evaluate(volumes / "real", further, "--steps", 2)
    evaluation = json.loads((tmp_path / "evaluation.json").read_text())
    figures = evaluation["Figures"]
    assert figures["n"] == 22
    assert set(figures["features"]) == {"random network", "voxels", "encoder"}
    assert set(figures["anatomy"]["generated"]) >= {"foreground", "symmetry"}
    assert figures["anatomy"]["unit"].startswith("standard deviations")
    assert (evaluation["Steps"], evaluation["Seed"], evaluation["Synthetic"]) == (
        2,
        0,
        True,
    )
    assert "1 of 45 volumes of --real_files were resampled to" in evaluation["Notes"][0]
    assert "conditions of the real images are unknown" in evaluation["Notes"][1]
    page = (tmp_path / "evaluation.html").read_text()
    assert evaluation["Conclusions"][0] in page
    assert "Anatomy" in page and "ldm.safetensors" in page
    assert "<td>foreground</td>" in page
    # Names of files may be of people.
    assert evaluation["RealImages"] == 45
    assert str(volumes) not in page + json.dumps(evaluation)


def test_evaluate_compares_requested_values_with_measurements(
    evaluate, volumes, tmp_path
):
    rng = np.random.default_rng(0)
    ages = rng.uniform(20, 80, 20).round(1)
    generated = write(tmp_path / "made", soft_balls(20, 6))
    lines = ["path\tage\tsex"]
    for i, age in enumerate(ages):
        file = generated / f"made-{i:03d}.nii.gz"
        sidecar = {"Conditions": {"age": age}}
        (generated / f"made-{i:03d}.json").write_text(json.dumps(sidecar))
        lines.append(f"{file}\t{age + rng.normal():.2f}\tF")
    (tmp_path / "measured.tsv").write_text("\n".join(lines) + "\n")
    tables = ("--generated", generated, "--measurements", "measured.tsv")
    output = evaluate(volumes / "real", *tables)
    assert "measurements of classes are not compared: sex." in output
    evaluation = json.loads((tmp_path / "evaluation.json").read_text())
    age = evaluation["Figures"]["followed"]["age"]
    assert age["r"]["value"] > 0.99
    assert age["slope"]["low"] < 1 < age["slope"]["high"]
    document = {"conditions": {"age": {"kind": "continuous"}}}
    same, other = (
        judgement.read_measurements(document, "measured.tsv", seed)["age"][-1]["r"]
        for seed in (0, 1)
    )
    assert same._asdict() == age["r"]
    assert other.value == same.value and other.low != same.low
    assert "Steps" not in evaluation
    assert "Requested and measured" in (tmp_path / "evaluation.html").read_text()


def test_evaluate_predicts_requested_values_by_a_probe(evaluate, volumes, tmp_path):
    sizes = soft_balls(44, 1).sum((1, 2, 3, 4)) / 10
    lines = ["path\tage\tsex"]
    for i, size in enumerate(sizes):
        file = volumes / "real" / f"real-{i:03d}.nii.gz"
        lines.append(f"{file}\t{size:.3f}\t{'F' if size > np.median(sizes) else 'M'}")
    (tmp_path / "real.tsv").write_text("\n".join(lines) + "\n")
    evaluate("real.tsv", "--steps", 2)
    evaluation = json.loads((tmp_path / "evaluation.json").read_text())
    age, sex = (evaluation["Figures"]["probes"][name] for name in ("age", "sex"))
    assert age["figures"]["real"]["r"]["value"] > 0.8
    assert sex["figures"]["real"]["right"]["value"] > 0.7
    # A model of one epoch does not listen.
    assert age["figures"]["generated"]["r"]["low"] < 0.5
    assert any(sentence.startswith("age: ") for sentence in evaluation["Conclusions"])
    assert "predicted by the probe" in (tmp_path / "evaluation.html").read_text()
    # Samples that were not asked for anything are not asked about it.
    options = ("--generated", volumes / "copies", "--out_evaluation", "others")
    evaluate("real.tsv", *options)
    evaluation = json.loads((tmp_path / "others.json").read_text())
    assert "probes" not in evaluation["Figures"]


def test_evaluate_images(command, image_model, folder, tmp_path):
    arguments = "evaluate", image_model, "--real", folder / "blobs.npy", "--steps", 1
    command(*arguments, "--out_dir", "out")
    assert json.loads((tmp_path / "out/evaluation.json").read_text())["Figures"]["n"]
    output = command(*arguments, "--out_dir", "out", status=2)
    assert "exist already; add --force to overwrite" in answer(output)


def test_audit_finds_copies_and_exits_with_status_1(audit, volumes, tmp_path):
    options = ("--generated", volumes / "copies", "--pictures")
    sentence = answer(audit(volumes / "real", *options, status=1))
    assert "more copies of training images than expected by chance (in" in sentence
    assert "audit-private.html, and publish neither" in sentence
    result = json.loads((tmp_path / "audit.json").read_text())
    figures = result["Figures"]
    assert figures["n"] == 24
    assert "voxels" in figures["copies_beyond_chance"]
    assert figures["copies"]["voxels"]["copies"]["value"] >= 0.4
    assert result["TrainImages"] == 40
    public = [(tmp_path / f"audit.{end}").read_text() for end in ("html", "json")]
    assert "A pass proves nothing" in public[0]
    for text in public:
        # Neither names nor pictures of training images.
        assert not re.search(r"train-\d|/train|real-\d|/real|<img", text)
    private = tmp_path / "audit-private.html"
    caption = r"copies-0(\d+).nii.gz and train-0\1.nii.gz: nearest-neighbour ratio"
    assert re.search(rf"{caption} [^,]*, distance", private.read_text())
    assert private.stat().st_mode & 0o077 == 0


def test_audit_with_a_reference_and_by_class(audit, command, volumes, tmp_path):
    # The first twelve are copies, and were asked to be F.
    images = np.concatenate([soft_balls(40, 2)[:12], soft_balls(12, 5)])
    generated = write(tmp_path / "made", images)
    for i in range(24):
        requested = {"sex": "F" if i < 12 else "M", "age": 30}
        (generated / f"made-{i:03d}.json").write_text(
            json.dumps({"Conditions": requested})
        )
    reference = ("--reference", volumes / "other.safetensors")
    audit(volumes / "real", "--generated", generated, *reference, status=1)
    result = json.loads((tmp_path / "audit.json").read_text())
    assert any("inferred without conditions" in note for note in result["Notes"])
    members = result["Figures"]["membership"]
    assert set(members) == {"denoiser", "reference", "autoencoder"}
    assert result["Reference"].endswith("other.safetensors")
    assert len(result["ReferenceFingerprint"]) == 64
    sexes = result["Figures"]["classes"]["sex"]
    assert list(result["Figures"]["classes"]) == ["sex"]
    assert [sexes[sex]["n"] for sex in "FM"] == [12, 12]
    assert sexes["F"]["copies"]["voxels"]["value"] > 0.8
    assert sexes["M"]["copies"]["voxels"]["value"] == 0
    page = (tmp_path / "audit.html").read_text()
    assert "Copies by sex" in page
    assert "denoising loss of the reference model" in page
    assert "--reference" not in page


@pytest.fixture
def audit_images(command, image_model, blobs, tmp_path):
    """Return what audits the model of images, by some that it learnt from."""
    for name, images in {"train": blobs[:40], "held": blobs[40:]}.items():
        np.save(tmp_path / f"{name}.npy", images)
    files = ("--train", "train.npy", "--held_out", "held.npy")
    return partial(command, "audit", image_model, *files)


def test_audit_of_images(audit_images, tmp_path):
    audit_images("--steps", 1)
    assert json.loads((tmp_path / "audit.json").read_text())["Steps"] == 1
    page = (tmp_path / "audit.html").read_text()
    assert "A reference model that was not trained on these images" in page


@pytest.mark.parametrize(
    ("subjects", "named"),
    [(["sub-1", "slices.npy", "sub-1"], ["sub-1", None, "sub-1"]), (None, None)],
)
def test_evaluate_images_by_subject(monkeypatch, subjects, named):
    evaluate = create_autospec(judgement.evaluate)
    monkeypatch.setattr(judgement, "evaluate", evaluate)
    real = EvaluationImages(np.zeros((3, 8, 8, 1)), [], None, None, [], subjects)
    options = SimpleNamespace(n_samples=None, classifier=False, seed=0)
    evaluate.return_value.notes = []
    judgement.evaluate_images(None, real, real, options, {})
    names = "subjects", "subjects_generated"
    assert [evaluate.call_args.kwargs[name] for name in names] == [named, named]


def test_shared_subjects_are_refused(tmp_path):
    affine = np.diag([6.0, 6, 6, 1])
    document = {"shape": [4, 4, 4, 1], "affine": affine.tolist(), "conditions": {}}
    document["intensity"] = [0.0, 1.0]
    for name, subjects in (("train", "abcd"), ("held", "cdef")):
        (tmp_path / name).mkdir()
        for subject, volume in zip(subjects, soft_balls(4, 1, (4, 4, 4)), strict=True):
            file = tmp_path / name / f"sub-{subject}_ses-{name}_T1w.nii.gz"
            save(file, volume[..., 0], affine)
    train, held_out = (
        read_for(document, [tmp_path / name], name) for name in ("train", "held")
    )
    sentence = r"share subjects \(sub-c, sub-d\), which hides"
    with pytest.raises(InputError, match=sentence):
        refuse_same_subjects(train.subjects, held_out.subjects)
    # Others are no reason, and nor are images whose subjects nobody knows.
    refuse_same_subjects(train.subjects, ["sub-e"])
    refuse_same_subjects(train.subjects, None)
    # As samples of source images they would be near to training images by design.
    with pytest.raises(InputError, match=r"training subjects \(sub-c, sub-d\): sa"):
        refuse_train_subjects(train, held_out)
    refuse_train_subjects(train, held_out._replace(subjects=["sub-e", "a.nii.gz"] * 2))
    refuse_train_subjects(train._replace(subjects=None), held_out)


def test_held_out_images_are_counted_by_subject():
    subjects = ["sub-2", "a.npy", "sub-1", "sub-2", "a.npy", "sub-1"]
    images = np.arange(6.0).reshape(6, 1, 1, 1)
    details = list("abcdef"), list("ABCDEF"), {"age": list(range(6))}, ["Note."]
    of_each = one_of_each_subject(EvaluationImages(images, *details, subjects, images))
    rows = [0, 1, 4, 5]  # of what has no name each is its own
    npt.assert_array_equal(of_each.images.ravel(), rows)
    npt.assert_array_equal(of_each.sources.ravel(), rows)
    assert (of_each.names, of_each.files) == (list("abef"), list("ABEF"))
    assert of_each.conditions == {"age": rows}
    assert of_each.subjects == [subjects[i] for i in rows]
    assert of_each.notes[1].startswith(
        "Of 6 held-out images, one per subject is compared (4 "
    )
    assert one_of_each_subject(of_each) is of_each
    unknown = EvaluationImages(images, *details)
    assert one_of_each_subject(unknown) is unknown


def test_volumes_of_few_series_are_spread_over_them():
    names = [f"sub-{i // 6}" for i in range(18)]
    images = np.arange(18.0).reshape(18, 1, 1, 1)
    series = EvaluationImages(images, names, names, None, [], names)
    assert one_of_each_subject(series).images.ravel().tolist() == [0, 8, 16]
    of_all = take_in_turn(series, None).images.ravel().tolist()
    assert of_all[:6] == [0, 8, 16, 1, 9, 17]
    assert sorted(of_all) == list(range(18))
    assert take_in_turn(series, 4).names == ["sub-0", "sub-1", "sub-2", "sub-0"]


def test_samples_as_real_images_are_refused(tmp_path, caplog):
    document = {"shape": [8, 8, 1], "intensity": [0, 1], "conditions": {}}
    images = np.random.default_rng(0).random((3, 8, 8, 1))

    def read(**facts):
        text = json.dumps(facts)
        np.savez(tmp_path / f"{len(facts)}.npz", images=images, description=text)
        return read_for(document, [tmp_path / f"{len(facts)}.npz"], "held_out")

    real, sample = read(), read(Synthetic=True)
    of_source = read(Synthetic=True, Sample=0, Sources=["scan.nii"])
    # Of a scan, such as one whose lesions were filled.
    result = read(Synthetic=True, Sample=0, Sources=["scan.nii"], Resamplings=5)
    for samples in (sample, of_source):
        with pytest.raises(InputError, match="npz was generated .* as `real_files`"):
            refuse_samples(samples.files, "real_files")
        with pytest.raises(InputError, match="give real images as `held_out`"):
            refuse_samples_beside_real(real, samples)
    refuse_samples_beside_real(result, real)
    assert not caplog.text
    refuse_samples_beside_real(of_source, sample)
    assert "only valid for a model that was trained on them" in caplog.text


def test_held_out_training_volumes_are_named(audit, tmp_path):
    images = np.concatenate([soft_balls(25, 1), soft_balls(40, 2)[[3]]])
    both = write(tmp_path / "both", images)
    sentence = answer(audit(both, status=2))
    assert "1 of the held-out images are training images, too" in sentence
    assert "both-025.nii.gz (train-003.nii.gz)" in sentence
    assert "remove them from --held_out" in sentence


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("evaluate mnist", "give images to compare with: --real_files"),
        ("evaluate no.file --real mnist", "there is no model file no.file"),
        ("evaluate mnist --real V/real", "is of two-dimensional images, and"),
        ("evaluate V/ldm.safetensors --real mnist", "there is no file mnist"),
        ("evaluate V/ldm.safetensors --real V/empty", "empty has no images (.npy"),
        ("evaluate V/ldm.safetensors --real V/bad", "b.nii is empty; copy or convert"),
        (
            "evaluate V/ldm.safetensors --real V/pictures",
            "is of volumes, and --real_files has two-dimensional images",
        ),
        (
            "evaluate mnist --real mnist --measurements x.tsv",
            "has no effect without --generated_files; give the volumes",
        ),
        (
            "evaluate mnist --real mnist --generated x.npy --steps 3",
            "--steps has no effect with --generated_files; leave",
        ),
        ("evaluate V/ldm.safetensors --real V/samples", "real images as --real_files"),
        (
            "audit V/ldm.safetensors --train V/train --held_out V/samples",
            "give real images as --held_out",
        ),
        (f"{AUDIT} --guidance 2", "--guidance has no effect with --gen"),
        ("evaluate mnist --real mnist --suffix T1w", "--suffix is for volumes"),
        (f"{AUDIT} --suffix T1w", "no file has the suffix T1w; there are none"),
        ("audit mnist --train mnist", "compare with: --held_out"),
        ("audit mnist --held_out mnist", "compare with: --train_files"),
        (f"{AUDIT} --reference V/ldm.safetensors", "is the audited model itself"),
        (f"{AUDIT} --reference nothing", "there is no model file nothing"),
        (
            f"{AUDIT} --reference mnist",
            "the reference of images of shape (28, 28, 1); give a --reference",
        ),
        (
            f"{AUDIT} --reference V/coarse.safetensors",
            "1 channels and voxels of 4 x 4 x 4 mm; give a --reference",
        ),
    ],
)
def test_invalid_inputs_get_one_sentence(command, volumes, arguments, message):
    output = command(*arguments.replace("V/", f"{volumes}/").split(), status=2)
    assert message in answer(output)
    assert "skip_bad" not in output  # which these commands don't have


def test_images_of_another_shape_are_refused(command, folder):
    output = command("evaluate", "mnist", "--real", folder / "blobs.npy", status=2)
    sentence = "images of shape (28, 28, 1), and those of --real_files have"
    assert sentence in answer(output)


@pytest.mark.parametrize("name", ["evaluate", "audit"])
def test_images_of_another_scale_are_refused(command, name, tmp_path):
    digits = load_mnist("test")[0][:100]
    np.save(tmp_path / "bytes.npy", (255 * digits).astype("uint8"))
    np.save(tmp_path / "digits.npy", digits)
    option, *further = {
        "evaluate": ("--real",),
        "audit": ("--train", "--held_out", "digits.npy"),
    }[name]
    output = command(name, "mnist", option, "bytes.npy", *further, status=2)
    sentence = answer(output)
    assert f"{option}_files image" in sentence
    assert "from 0 to 255" in sentence and "outside the 0 to 1" in sentence


def test_the_packaged_model_beside_the_test_digits(command, tmp_path):
    command(*("evaluate", "mnist", "--real", "mnist", "--n_samples", 40, "--steps", 4))
    figures = json.loads((tmp_path / "evaluation.json").read_text())["Figures"]
    assert figures["features"]["classifier"]["figures"]["generated"]["frechet"] is None
    assert figures["as_asked"]["real"]["value"] > 0.9
    assert figures["as_asked"]["generated"]["value"] > 0.7
