"""What the names of files say in the way of BIDS: ``sub-01_ses-02_T1w.nii.gz``."""

from collections.abc import Iterable
from pathlib import Path
import re


def entity(file: str | Path, key: str) -> str | None:
    """Look an entity up in the name of a file or, without, of a folder that it is in.

    Parameters
    ----------
    file : str or Path
        The file; it need not be there.
    key : str
        Such as ``"sub"``.

    Returns
    -------
    str or None
        Such as ``"sub-01"``; None if no name has it. The nearest counts.
    """
    pattern = re.compile(rf"(?:^|_)({key}-[^_.]+)")
    for name in reversed(Path(file).parts):
        if found := pattern.search(name):
            return found[1]
    return None


def suffix(file: str | Path) -> str | None:
    """Tell of what kind a scan is.

    Parameters
    ----------
    file : str or Path
        Named as BIDS does.

    Returns
    -------
    str or None
        Such as ``"T1w"``; None for other names.
    """
    stem, _, last = Path(file).name.partition(".")[0].rpartition("_")
    return last if re.search("(?:^|_)sub-", stem) and last.isalnum() else None


def common_suffix(files: Iterable[str | Path]) -> str | None:
    """Tell of what kind all scans are.

    Parameters
    ----------
    files : iterable of str or Path
        Named as BIDS does, or not.

    Returns
    -------
    str or None
        As of :func:`suffix`; None if there are several or none.
    """
    kinds = {suffix(file) for file in files}
    return kinds.pop() if len(kinds) == 1 else None
