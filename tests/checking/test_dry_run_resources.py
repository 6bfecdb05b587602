"""What a training would be: held out, memory and pieces."""

from types import SimpleNamespace

import numpy as np
from processes import CHOSEN
import pytest

from dipy_ldm import _presets
from dipy_ldm.checking import _dry_run as plans
from dipy_ldm.data._cohort import Cohort
from dipy_ldm.data.channels import as_channels
from dipy_ldm.training import resolve
from dipy_ldm.workflows import _training as training

IMAGES = np.zeros((20, 16, 16, 1), "float32")


@pytest.fixture(scope="module")
def recipe():
    settings = _presets.resolve(Cohort(IMAGES), batch_size=4, widths_ldm=(8, 8))
    return training.prepare(
        settings, None, SimpleNamespace(**CHOSEN, learning_rate=None)
    )


def test_held_out_subjects_are_reported():
    cohort = Cohort(IMAGES, subjects=[i // 2 for i in range(20)])
    finding = plans.check_split(cohort, 0.05, 0, 4)
    assert finding.state == "amber"
    assert "18 training images" in finding.message
    assert "1 of 10 subjects" in finding.message
    assert "none held out" in plans.check_split(cohort, 0, 0, 4).message


@pytest.mark.parametrize(("n", "state"), [(9, "amber"), (10, "green")])
def test_few_that_are_held_out_decide_nothing(n, state):
    subjects = [f"sub-{i}" for i in range(4 * n)]
    cohort = Cohort(np.zeros((4 * n, 2, 2, 1)), subjects=subjects)
    finding = plans.check_split(cohort, 0.25, 0, 4)
    assert finding.state == state
    assert f"({n} of {4 * n} subjects)" in finding.message


def test_few_subjects_are_reported():
    for n, state in ((7, "red"), (20, "red"), (21, "amber"), (200, "green")):
        pairs = Cohort(np.zeros((2 * n, 1)), subjects=[i // 2 for i in range(2 * n)])
        of_two = plans.check_subjects(pairs)
        of_one = plans.check_subjects(Cohort(pairs.images[:n]))
        assert of_two.state == of_one.state == state
        assert f"{2 * n} images of {n} subjects" in of_two.message


def test_few_volumes_may_begin_from_the_packaged_autoencoder():
    few = Cohort(np.zeros((12, 2, 2, 2, 1)), affine=np.eye(4))
    two_channels = few._replace(images=np.zeros((12, 2, 2, 2, 2)))
    cures = [
        plans.check_subjects(few).cure,
        plans.check_subjects(few, "volumes").cure,
        plans.check_subjects(two_channels).cure,
        plans.check_subjects(few._replace(affine=None)).cure,
        plans.check_subjects(few, series=True).cure,
        plans.check_subjects(few._replace(channels=as_channels(["FA"]))).cure,
        plans.check_subjects(few._replace(images=np.zeros((50, 2, 2, 2, 1)))).cure,
    ]
    assert ["--init volumes" in cure for cure in cures] == [True, *[False] * 6]


def test_too_few_images_are_red():
    finding = plans.check_split(Cohort(IMAGES), 0.05, 0, 64)
    assert finding.state == "red"
    assert finding.message.startswith("Of 20 images, 19 remain")
    assert "batch_size" in finding.cure


def test_devices_and_precision_are_reported_with_reasons(recipe):
    second = resolve("ldm", 2, recipe.of_model)
    chosen = {"autoencoder": resolve("vqvae", 2, recipe.of_vqvae), "diffusion": second}
    message = plans.check_device(second).message
    assert message.startswith("Training runs on ")
    assert message.endswith(", in float32: as requested.")
    finding = plans.check_memory(recipe, chosen, IMAGES.shape)
    assert finding.state == "green"
    assert [row[0] for row in finding.table[1:]] == ["autoencoder", "diffusion"]
    alone = plans.check_memory(recipe, {"diffusion": second}, IMAGES.shape)
    assert "more than the other stage" not in alone.message
    assert [row[0] for row in alone.table[1:]] == ["diffusion"]


def test_needed_memory_is_compared_with_free_memory():
    needed = {"autoencoder": 3 * 2**30, "diffusion": 2**30}
    for free, state in ((10.0, "green"), (3.5, "amber"), (2.5, "red")):
        finding = plans.memory_finding(needed, free * 2**30)
        assert finding.state == state
        assert finding.message.startswith("The autoencoder needs 3 GiB")
        # A GPU has so much in all, whatever others hold of it.
        assert finding.message.endswith(f"and {free:g} GiB are available.")
        assert ("--patch" in finding.cure) == (state == "red")
