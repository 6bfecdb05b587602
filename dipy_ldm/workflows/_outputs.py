"""Where outputs go, that they can, and that none is overwritten unasked."""

from collections.abc import Iterable, Sequence
import json
import logging
import os
from pathlib import Path
from typing import Any

from dipy.workflows.multi_io import connect_output_paths

from dipy_ldm._utils.checks import InputError
from dipy_ldm._utils.files import make_folder, replacing

logger = logging.getLogger(__name__)

# Bytes of a name; 255 less what is added while it is written, or beside it.
_LONGEST = 240


def output_paths(
    flow: Any, input_path: str | Path, out_dir: str | Path, **names: str
) -> list[Path]:
    """Resolve the outputs of a workflow as DIPY does, without making anything.

    DIPY's own iterator takes every positional word for an existing file, makes
    folders before the inputs are known to be good, and goes on with status 0 where
    outputs exist.
    """
    _, (paths,) = connect_output_paths(
        [[str(input_path)]],
        out_dir,
        list(names.values()),
        output_strategy=flow._output_strategy,
        mix_names=flow._mix_names,
    )
    flow.last_generated_outputs = dict(zip(names, map(Path, paths)))
    paths = list(flow.last_generated_outputs.values())
    for path in paths:
        _refuse_unwritable(path)
    return paths


def _refuse_unwritable(path):
    """Say so now, and not after the hours that making it takes."""
    _refuse_long(path)
    place = next(folder for folder in path.absolute().parents if folder.exists())
    if not place.is_dir():
        raise InputError(
            f"{path} can't be written, since {place} is a file; name another place."
        )
    if not os.access(place, os.W_OK | os.X_OK):
        raise InputError(
            f"{path} can't be written, since {place} may not be changed; ask for the "
            "permission or name another place."
        )


def _refuse_long(path):
    """Refuse a name for which file systems have no room, or none for what is added."""
    size = len(os.fsencode(path.name))
    if size > _LONGEST:
        raise InputError(
            f"the name {path.name[:40]}... has {size} bytes, and may have {_LONGEST}; "
            "give a shorter one."
        )


def refuse_overwriting(
    flow: Any, paths: Iterable[Path], cure: str = "add --force to overwrite"
) -> None:
    """Raise an error if one of the paths exists, unless forced."""
    paths = list(paths)
    for path in paths:
        _refuse_long(path)
        if path.is_dir():
            raise InputError(f"{path} is a folder; give the output another name.")
    existing = [str(path) for path in paths if path.exists()]
    if existing and not flow._force_overwrite:
        verb = "exists" if len(existing) == 1 else "exist"
        raise InputError(f"{', '.join(existing)} {verb} already; {cure}.")


def json_and_page(
    flow: Any,
    first: str | Path,
    out_dir: str | Path,
    further: Iterable[str] = (),
    **name: str,
) -> list[Path]:
    """Name the outputs, and refuse to overwrite them unasked."""
    (stem,) = output_paths(flow, first, out_dir, **name)
    ends = [".json", ".html", *further]
    paths = [stem.with_name(f"{stem.name}{end}") for end in ends]
    refuse_overwriting(flow, paths)
    return paths


def write_page(paths: Sequence[Path], facts: dict, html: str) -> None:
    """Write what is known as JSON, and the page."""
    make_folder(paths[0].parent)
    texts = json.dumps(facts, indent=2) + "\n", html
    for path, text in zip(paths, texts, strict=True):
        with replacing(path) as partial:
            # Names of files need not be text.
            partial.write_text(text, "utf-8", errors="backslashreplace")
    logger.info("the page is %s", paths[1])


def write_private(path: Path, html: str) -> None:
    """Write a page that others shall not read."""
    with replacing(path) as partial:
        partial.chmod(0o600)
        partial.write_text(html, "utf-8")
    logger.info("the private page is %s", path)


def interrupted(written: int, cure: str = "") -> str:
    """Say what Ctrl-C left behind of a command that writes volume after volume."""
    if written == 0:
        return "interrupted; nothing was written."
    return f"interrupted; the volumes that are written ({written}) are whole{cure}."
