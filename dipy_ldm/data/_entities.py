"""What the names of files say in the way of BIDS: ``sub-01_ses-02_T1w.nii.gz``."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
import logging
from pathlib import Path
import re

from dipy_ldm._utils.checks import InputError
from dipy_ldm._utils.values import listed

logger = logging.getLogger("dipy_ldm")


def entity(file: str | Path, key: str) -> str | None:
    """Look an entity up in the name of a file or else of its folders."""
    pattern = re.compile(rf"(?:^|_)({key}-[^_.]+)")
    for name in reversed(Path(file).parts):
        if match := pattern.search(name):
            return match[1]
    return None


def suffix(file: str | Path) -> str | None:
    """Tell of what kind a scan is."""
    stem, _, last = Path(file).name.partition(".")[0].rpartition("_")
    # Dates and numbers at the end of a name are no kind of scan.
    kind = last.isalnum() and last[0].isalpha()
    return last if re.search("(?:^|_)sub-", stem) and kind else None


def common_suffix(files: Iterable[str | Path]) -> str | None:
    """Tell of what kind all scans are."""
    kinds = {suffix(file) for file in files}
    return kinds.pop() if len(kinds) == 1 else None


def choose_files(
    files: Sequence[Path],
    suffixes: str | Sequence[str] | None = None,
    values: Mapping[str, str | Sequence[str]] | None = None,
    cure: str = "choose with `suffix`",
) -> list[Path]:
    """Choose scans of one kind by their names; what is taken is logged."""
    chosen = list(files)
    for key, allowed in (values or {}).items():
        chosen = _choose(chosen, key, allowed, lambda file, k=key: _value(file, k))
    if suffixes:
        chosen = _choose(chosen, "suffix", suffixes, suffix)
    kinds = Counter(filter(None, map(suffix, chosen)))
    if len(kinds) > 1 and not suffixes:
        raise InputError(
            f"the files are of several kinds, {_counts(kinds)}; {cure}, such "
            f"as {kinds.most_common(1)[0][0]}."
        )
    if len(files) > 1:
        of = f" ({_counts(kinds)})" if kinds else ""
        logger.info("taken: %d files%s", len(chosen), of)
    if excluded := Counter(map(suffix, files)) - Counter(map(suffix, chosen)):
        logger.info("left out by their names: %s", _counts(excluded))
    return chosen


def _choose(files, key, allowed, value_of):
    """Choose files by a part of their names, and refuse one that none of them has."""
    allowed = [allowed] if isinstance(allowed, str) else list(allowed)
    counts = Counter(value_of(file) or "" for file in files)
    if missing := [value for value in allowed if value not in counts]:
        raise InputError(
            f"no file has the {key} {missing[0] or 'of no name'}; there are "
            f"{_counts(counts)}."
        )
    return [file for file in files if (value_of(file) or "") in allowed]


def _value(file, key):
    """Return what stands behind the key of an entity."""
    return (entity(file, key) or "").partition("-")[2]


def _counts(kinds):
    return listed(f"{kind or 'none'} ({n})" for kind, n in kinds.most_common())
