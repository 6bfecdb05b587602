from pathlib import Path
import subprocess
import sys

import pytest

import dipy_ldm

ROOT = Path(__file__).parents[1]
ESTIMATORS = {
    "VQVAE": "dipy_ldm.vqvae",
    "LatentDiffusion": "dipy_ldm.latent_diffusion",
}


def test_import_leaves_keras_and_tensorflow_alone():
    code = "import sys, dipy_ldm; print({'keras', 'tensorflow'} & set(sys.modules))"
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "set()"


@pytest.mark.parametrize("name", ESTIMATORS)
def test_estimators_are_one_import_away(name):
    assert getattr(dipy_ldm, name).__module__ == ESTIMATORS[name]


def test_dir_shows_the_public_names():
    assert set(dipy_ldm.__all__) == {*ESTIMATORS, "__version__"}
    assert set(dipy_ldm.__all__) <= set(dir(dipy_ldm))


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'GAN'"):
        dipy_ldm.GAN  # noqa: B018


def test_the_changelog_knows_this_version():
    assert f"## [{dipy_ldm.__version__}]" in (ROOT / "CHANGELOG.md").read_text("utf-8")
