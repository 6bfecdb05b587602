"""A notebook from import to report, executed by nbclient."""

import pytest
from scans import blocky_volumes, grid_affine, save

# With ipykernel and jedi: of the group "test" of pyproject.toml.
nbclient = pytest.importorskip("nbclient")
nbformat = pytest.importorskip("nbformat")

# What each cell does; the last line of a cell is shown.
CELLS = """
import dipy_ldm
---
from pathlib import Path
import logging
import nibabel as nib
# Which says of trainings this short that nothing was learnt.
logging.getLogger("dipy_ldm").setLevel(logging.ERROR)
---
from dipy_ldm import VQVAE, LatentDiffusion
---
from dipy_ldm import plots
---
unfitted = VQVAE(widths=(4, 4), n_codes=64, code_dim=2, n_codebooks=1)
unfitted
---
scans = sorted(Path("cohort").glob("*.nii.gz"))
len(scans)
---
ages = {"age": [50.5, 51, 52, 53, 54, 55, 56, 57]}
---
fit = {"steps": 4, "batch_size": 4, "verbose": False}
---
vqvae = unfitted.fit(scans, **fit)
---
vqvae
---
plots.plot_history(vqvae)
---
latents = vqvae.encode(scans[:4])
latents.shape
---
plots.plot_latents(latents)
---
reconstructed = vqvae.predict(scans[:4])
---
plots.plot_reconstructions([nib.load(scan) for scan in scans[:4]], reconstructed)
---
model = LatentDiffusion(vqvae, widths=(4, 8))
---
rounds = []
model.fit("cohort", ages, callbacks=[lambda m: rounds.append(len(m.history_))], **fit)
---
print(model)
---
samples = model.predict(2, conditions={"age": 53}, steps=2, as_images=True)
---
plots.plot_samples(samples)
---
samples[0].to_filename("sample.nii.gz")
Path("sample.json").exists()
---
denoised = model.denoise(str(scans[0]), seed=1)
nib.save(denoised, "denoised.nii.gz")
---
denoised.shape == nib.load(scans[0]).shape
---
import jedi
def completions(text):
    return {c.name for c in jedi.Interpreter(text, [globals()]).complete()}
---
sorted({"denoise", "predict", "history_"} & completions("model."))
---
sorted({"learning_rate=", "epochs=", "patch="} & completions("vqvae.fit(scans, "))
---
mnist = LatentDiffusion.load("mnist")
digits, labels = dipy_ldm.data.load_mnist("test")
---
from dipy_ldm.evaluation.evaluate import evaluate
evaluation = evaluate(
    mnist, digits[:40], mnist.predict(20, steps=1, guidance=1.0),
)
---
evaluation
---
evaluation.save_as_html("evaluation.html")
model.save("model.safetensors")
sorted(path.name for path in Path().iterdir())
---
model.denoise("missing.nii.gz")
"""


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """Execute the notebook; return the outputs of its cells."""
    folder = tmp_path_factory.mktemp("notebook")
    (folder / "cohort").mkdir()
    for i, volume in enumerate(blocky_volumes()):
        path = folder / "cohort" / f"sub-{i:02d}_T1w.nii.gz"
        save(path, volume[..., 0], grid_affine())
    sources = CELLS.strip().split("\n---\n")
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    notebook = nbformat.v4.new_notebook(cells=cells)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("TF_CPP_MIN_LOG_LEVEL", raising=False)
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        how = {"timeout": 300, "allow_errors": True}
        how["resources"] = {"metadata": {"path": str(folder)}}
        nbclient.NotebookClient(notebook, **how).execute()
    return {s: cell.outputs for s, cell in zip(sources, notebook.cells, strict=True)}


def shown(outputs, source):
    """Return what a cell shows, by its kind."""
    (cell,) = (cells for text, cells in outputs.items() if text.endswith(source))
    return {kind: data for one in cell for kind, data in one.get("data", {}).items()}


def test_only_the_last_cell_fails(outputs):
    *cells, last = outputs.values()
    assert len(cells) == 30
    errors = [one for cell in cells for one in cell if one.output_type == "error"]
    assert not errors, errors[0].traceback
    stderr = [one.text for cell in cells for one in cell if one.get("name") == "stderr"]
    assert not stderr
    assert last[0].ename == "InputError"
    assert last[0].evalue == "there is no file missing.nii.gz; check the path."


def test_estimators_figures_and_reports_are_shown(outputs):
    assert "not fitted" in shown(outputs, "\nunfitted")["text/html"]
    assert "data:image/png;base64," in shown(outputs, "vqvae")["text/html"]
    for source in outputs:
        if source.startswith("plots.plot_"):
            assert "image/png" in shown(outputs, source), source
    assert "&lt;!doctype html&gt;" in shown(outputs, "evaluation")["text/html"]


def test_completion_knows_methods_and_options(outputs):
    methods = shown(outputs, 'completions("model."))')["text/plain"]
    assert methods == "['denoise', 'history_', 'predict']"
    options = shown(outputs, '"vqvae.fit(scans, "))')["text/plain"]
    assert options == "['epochs=', 'learning_rate=', 'patch=']"


def test_files_are_written(outputs):
    names = shown(outputs, "Path().iterdir())")["text/plain"]
    for name in ("denoised.json", "sample.json", "evaluation.html"):
        assert name in names
