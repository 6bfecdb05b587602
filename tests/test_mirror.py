"""Tests lie at the same place as the modules that they test."""

from pathlib import Path

TESTS = Path(__file__).parent
ROOT = TESTS.parent
# Of the package as a whole, of its documentation, and of what it is built on.
ALONE = {"doc", "extending", "limits", "mirror", "package", "upstream", "wheel"}


def home_of(folder):
    """Return where that which is tested in a folder lies."""
    if folder.name == "doc":
        return ROOT / "doc" / "examples"
    if folder.name == "benchmarks":
        return ROOT / "benchmarks"
    package = ROOT / "dipy_ldm"
    if folder == TESTS:
        return package
    names = (folder.name, f"_{folder.name}")
    return next(package / name for name in names if (package / name).is_dir())


def names_in(home):
    """Name the modules and packages of a folder, and itself, as tests do."""
    paths = [home, *home.glob("*.py"), *(p.parent for p in home.glob("*/__init__.py"))]
    return {path.stem.lstrip("_") for path in paths} - {"init__"}


def test_each_file_is_named_after_a_module_or_a_package():
    strays = []
    for path in sorted(TESTS.rglob("test_*.py")):
        words = path.stem.removeprefix("test_").split("_")
        # A module with several files has a subject after its name.
        names = {"_".join(words[: n + 1]) for n in range(len(words))}
        home = home_of(path.parent)
        if not names & (names_in(home) | (ALONE if path.parent == TESTS else set())):
            strays.append(str(path.relative_to(TESTS)))
    assert not strays
