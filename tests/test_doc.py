"""The code blocks of README and user guide, run as they are printed.

The blocks of a page run in their order, in a folder that has what the repository has;
the Python blocks of a page share their names. A block after a comment that begins with
``not run:`` is left out, and the comment says why.

What would take long runs on less: ``SHORTER`` lists all that is changed.
"""

from contextlib import contextmanager
from importlib import import_module
import inspect
import os
import pkgutil
import re
import shutil
import subprocess
from typing import NamedTuple

from PIL import Image
import nibabel as nib
import numpy as np
from processes import SCRIPTS, with_all
import pytest
import scripts

from dipy_ldm import _serialization
from dipy_ldm.data import load_mnist

ROOT = scripts.ROOT
README = ROOT / "README.md"
GUIDE = sorted((ROOT / "doc/guide").rglob("*.rst"))
RECIPES = {p.stem for p in GUIDE if p.parent.name == "recipes"}

SHORTER = [
    # Comments, since options are appended to lines.
    (r" +# .*$", ""),
    # One epoch of each stage, of small networks.
    (
        r"^(dipy_train_ldm .*)$",
        r"\1 --epochs_vqvae 1 --epochs_ldm 1 --n_codes 32 --widths_ldm 8 16",
    ),
    # 640 digits in place of 60,000, whose labels no table knows.
    (r"^dipy_train_ldm mnist( --conditions label)?", "dipy_train_ldm few_digits.npy"),
    # Twelve virtual subjects, of large voxels.
    (r"(virtual_cohort.py \w+) --n \d{2,}", r"\1 --n 12"),
    # Of so few subjects it says so, with status 1.
    (r"^(dipy_check_ldm .*)$", r"\1 --seconds 1 --widths_ldm 8 16 || [ $? = 1 ]"),
    # As many as an evaluation needs.
    (r"(virtual_cohort.py heldout) --n 12", r"\1 --n 40"),
    (r"^(dipy_evaluate_ldm mnist.*)$", r"\1 --n_samples 20 --steps 2"),
    # Of samples that nothing was learnt for, it may say that they are copies.
    (r"^(dipy_audit_ldm brains.*)$", r"\1 || [ $? = 1 ]"),
    (r"(virtual_cohort.py others) --n 12", r"\1 --n 24"),
    (r"--steps_detector \d+", "--steps_detector 2"),
    (r"--voxel_size \d", "--voxel_size 8"),
    (r"voxel_size=\d", "voxel_size=8"),
    (r"--patch \d+", "--patch 16"),
    # Of thousands of samples, as few as can be measured.
    (r"--n_samples \d{4,}", "--n_samples 130"),
    # What `make` would do, without doing it.
    (r"^make ", "make --dry-run "),
]
# Pages that go on with the model that an earlier page trains.
GO_ON = {"denoising", "generating", "inpainting", "python", "quality", *RECIPES}
# Pages that take so long that they are left to `make test-pages`.
LONG = GO_ON | {"conditions", "ethics", "repeating", "sources", "tables", "volumes"}
# What pytest is told of pages: those that take long, and what asks TensorFlow itself.
# That digits are generated where it is installed is in tests/test_wheel.py.
MARKS = dict.fromkeys(LONG, pytest.mark.pages)
MARKS["installation"] = [pytest.mark.pages, pytest.mark.tensorflow]


class Block(NamedTuple):
    """A piece of code on a page."""

    page: str
    line: int
    language: str
    code: str
    why_not: str


def read_blocks(path):
    """Find the pieces of code on a page, Markdown or reStructuredText."""
    lines = path.read_text().split("\n")
    begin, end, mark = (
        (r"```(\w+)$", r"```$", r"<!-- not run: (.*) -->")
        if path.suffix == ".md"
        else (r" *\.\. code-block:: (\w+)", None, r" *\.\. not run: (.*)")
    )
    for number, line in enumerate(lines):
        if match := re.match(begin, line):
            before = next((b for b in reversed(lines[:number]) if b.strip()), "")
            why_not = re.match(mark, before)
            why_not = why_not[1] if why_not else ""
            rest = lines[number + 1 :]
            code = _fenced(rest, end) if end else _indented(lines, number)
            yield Block(path.name, number + 1, match[1], code, why_not)


def _fenced(lines, end):
    return "\n".join(lines[: next(i for i, x in enumerate(lines) if re.match(end, x))])


def _indented(lines, number):
    """Return what is indented more than the directive, without options."""
    depth = len(lines[number]) - len(lines[number].lstrip()) + 1
    body = []
    for line in lines[number + 1 :]:
        if line.strip() and not line.startswith(" " * depth):
            break
        body.append(line)
    code = (line for line in body if not re.match(r" +:\w+:", line))
    text = "\n".join(code).strip("\n")
    margin = len(text) - len(text.lstrip(" "))
    return "\n".join(line[margin:] for line in text.split("\n")).rstrip()


def shorten(code):
    code = re.sub(r"\\\n *", "", code)
    for printed, run in SHORTER:
        code = re.sub(printed, run, code, flags=re.MULTILINE)
    return code


def run_page(path, folder):
    """Run the blocks of a page in a folder; refer to the page if one fails."""
    names = {}
    for block in read_blocks(path):
        if block.why_not or block.language not in ("bash", "python"):
            continue
        place, code = f"{block.page}:{block.line}", shorten(block.code)
        if block.language == "python":
            exec(compile(code, place, "exec"), names)
            continue
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", code],
            cwd=folder,
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert done.returncode == 0, f"{place}\n{code}\n{done.stdout}"


@contextmanager
def user_in(folder):
    """Work in a folder that has what the repository and the user of its pages have."""
    for name in ("Makefile", "benchmarks", "dipy_ldm", "doc", "pyproject.toml"):
        (folder / name).symlink_to(ROOT / name)
    digits = load_mnist("train")[0][:640]
    np.save(folder / "few_digits.npy", digits)
    (folder / "my_images").mkdir()
    for i, digit in enumerate(digits[:128, ..., 0]):
        Image.fromarray(np.uint8(digit * 255)).save(folder / f"my_images/{i}.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        # Pages make cohorts of what comes with the tests.
        patch.setenv("PYTHONPATH", with_all(os.environ)["PYTHONPATH"])
        patch.setenv("PATH", f"{SCRIPTS}{os.pathsep}{os.environ['PATH']}")
        # Where volumes are kept as the networks need them.
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        yield


@pytest.fixture(scope="module")
def first_volumes(tmp_path_factory):
    """Follow the page on which the others go on, once; return what it made."""
    folder = tmp_path_factory.mktemp("first-volumes")
    with user_in(folder):
        run_page(ROOT / "doc/guide/first-volumes.rst", folder)
    return {name: folder / name for name in ("brains", "cohort")}


@pytest.mark.pages
def test_readme(first_volumes, tmp_path):
    with user_in(tmp_path):
        # The scans of its reader, who has some.
        files = sorted(first_volumes["cohort"].iterdir())
        for i, file in enumerate(files):
            scan = tmp_path / f"sub-{i:02}/anat/sub-{i:02}_T1w.nii.gz"
            scan.parent.mkdir(parents=True)
            shutil.copy(file, scan)
            (tmp_path / "bids").mkdir(exist_ok=True)
            shutil.copytree(scan.parents[1], tmp_path / f"bids/sub-{i:02}")
            other = tmp_path / f"bids/sub-{i:02}/anat/sub-{i:02}_T2w.nii.gz"
            shutil.copy(file, other)
        shutil.copy(files[0], "scan.nii.gz")
        scan = nib.load("scan.nii.gz")
        lesion = np.zeros(scan.shape, "uint8")
        lesion[tuple(slice(n // 2, n // 2 + 8) for n in scan.shape)] = 1
        nib.save(nib.Nifti1Image(lesion, scan.affine), "lesion.nii.gz")
        people = [f"sub-{i:02}\t{50 + i}\t{'FM'[i % 2]}" for i in range(len(files))]
        table = "\n".join(["participant_id\tage\tsex", *people]) + "\n"
        (tmp_path / "bids/participants.tsv").write_text(table)
        (tmp_path / "wanted.tsv").write_text("age\tsex\n55\tF\n")
        run_page(README, tmp_path)


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, marks=MARKS.get(path.stem, ()))
        for path in GUIDE
        if path.stem != "first-volumes"  # on which others go on
    ],
    ids=lambda path: path.stem,
)
def test_guide(path, request, tmp_path):
    with user_in(tmp_path):
        if path.stem in GO_ON:
            for name, folder in request.getfixturevalue("first_volumes").items():
                shutil.copytree(folder, tmp_path / name)
        run_page(path, tmp_path)


@pytest.mark.parametrize("path", [README, *GUIDE], ids=lambda path: path.stem)
def test_blocks_are_of_supported_languages(path):
    # A block of another kind would not be run, and nobody would know.
    blocks = [*read_blocks(path)]
    for block in blocks:
        assert block.language in ("bash", "python", "text", "json", "none"), block
    text = path.read_text()
    if path.suffix == ".md":
        assert text.count("```") == 2 * len(blocks)
    else:
        assert not re.search(r"(?m)^(?! *\.\. ).*::$|\.\. (code|sourcecode)::", text)


@pytest.mark.pages
@pytest.mark.parametrize(
    ("page", "piece"),
    [("denoising", "for spread in"), ("quality", "nearest_distance(")],
)
def test_printed_figures_stand_below_their_code(page, piece, capsys):
    path = ROOT / f"doc/guide/{page}.rst"
    (block,) = (block for block in read_blocks(path) if piece in block.code)
    exec(compile(block.code, page, "exec"), {})
    printed = re.findall(r"\d+\.\d{3,}", capsys.readouterr().out)
    assert len(printed) > 5
    below = "\n".join(path.read_text().split("\n")[block.line :])
    # In this order, as the iterator goes on.
    numbers = map(float, re.findall(r"\d+\.\d+", below))
    for number in map(float, printed):
        assert any(np.isclose(n, number, rtol=0.03) for n in numbers), number


def test_the_page_of_curves_has_those_of_the_packaged_digits():
    text = (ROOT / "doc/guide/curves.rst").read_text()
    document = _serialization.read_document(_serialization.find("mnist"))
    for name, digits in (("mse", 4), ("perplexity", 0)):
        first, *_, last = document["history"][name]
        assert f"from {first:.{digits}f} to {last:.{digits}f}" in text
    assert f"Here {document['latent_diffusion_history']['loss'][-1]:.2f} is" in text


@pytest.mark.parametrize(
    "command", ["train", "generate", "denoise", "inpaint", "evaluate", "audit"]
)
def test_the_guide_has_each_option(command):
    module = import_module(f"dipy_ldm.workflows.{command}")
    run = getattr(module, f"{command.title()}LDMFlow").run
    in_guide = {o for page in GUIDE for o in re.findall(r"--(\w+)", page.read_text())}
    options = {*inspect.signature(run).parameters} - {"self", "model_file"}
    assert options - {"input_files"} <= in_guide


def test_contributing_says_what_each_part_of_the_package_holds():
    modules = {path.name for path in (ROOT / "dipy_ldm").glob("*.py")} - {"__init__.py"}
    folders = {f"{p.parent.name}/" for p in (ROOT / "dipy_ldm").glob("*/__init__.py")}
    text = (ROOT / "CONTRIBUTING.md").read_text()
    assert not [name for name in modules | folders if f"`{name}`" not in text]


def read_api():
    """Return what has a place in the API pages, by its full name."""
    pages = re.findall(
        r"(?m)^   (dipy_ldm\S+)$", (ROOT / "doc/api/index.rst").read_text()
    )
    api = {name: pkgutil.resolve_name(name) for name in pages}
    for name, page in [*api.items()]:
        if inspect.ismodule(page):
            own = getattr(page, "__all__", vars(page))
            api |= {f"{name}.{part}": getattr(page, part) for part in own}
    return api


def test_references_resolve_to_api_pages():
    api = read_api()
    for path in [*ROOT.glob("dipy_ldm/**/*.py"), *GUIDE]:
        roles = re.findall(r":(\w+):`~?(dipy_ldm\.[\w.]+)`", path.read_text())
        for role, name in roles:
            owner = name.rpartition(".")[0] if role == "meth" else name
            assert "._" in name or owner in api, f"{path}: {name}"


@pytest.mark.tensorflow
def test_functions_on_the_api_pages_have_their_parameters_described():
    for name, thing in read_api().items():
        module, _, own = name.rpartition(".")
        if own in getattr(import_module(module), "__all__", ()):
            takes = inspect.isfunction(thing) and inspect.signature(thing).parameters
            assert not takes or "Parameters\n" in thing.__doc__, name


def test_cited_works_have_entries():
    plan = (ROOT / "doc/guide/planning.rst").read_text()
    works = (ROOT / "doc/references.bib").read_text().split("\n@")
    entries = (ROOT / "CITATION.cff").read_text().lower()
    keys = re.findall(r":footcite:p:`(\w+)`", plan)
    assert len(keys) > 5
    for key in keys:
        (work,) = (work for work in works if f"{{{key}," in work)
        title = re.search(r"title = \{(.*)\},", work)[1]
        cited = re.sub("[{}]", "", title).lower() in entries
        assert cited, f"add {key} of planning.rst to the references of CITATION.cff"


def test_broken_links_are_reported(tmp_path):
    check_links = scripts.load("doc/check_links.py")
    (tmp_path / "below").mkdir()
    (tmp_path / "a.html").write_text(
        '<a href="below/b.html#there">1</a> <a href="below/b.html#gone">2</a> '
        '<img src="gone.png"> <a href="https://example.org/gone">not ours</a> '
        '<a href="#here" id="here">3</a>'
    )
    (tmp_path / "below/b.html").write_text('<p id="there"><a href="../a.html">4</a>')
    n_links, broken = check_links.check(tmp_path)
    assert n_links == 5
    assert broken == ["a.html: below/b.html#gone", "a.html: gone.png"]


def test_commands_of_the_session_are_whole():
    pytest.importorskip("sphinx")
    session = scripts.load("doc/extensions/session.py")
    parts = session.read_parts("#: a\necho 'one\ntwo' \\\n  three\nls\n#: b\nls\n")
    assert parts == {"a": ["echo 'one\ntwo' \\\n  three", "ls"], "b": ["ls"]}
    for commands in session.read_parts(session.SCRIPT.read_text()).values():
        for command in commands:
            subprocess.run(["bash", "-n", "-c", command], check=True)
