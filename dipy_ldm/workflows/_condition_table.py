"""A table of what is wanted: one sample a row."""

from collections.abc import Mapping
import logging
from pathlib import Path

from dipy_ldm._conditions import Condition
from dipy_ldm._utils.checks import InputError
from dipy_ldm._utils.values import listed
from dipy_ldm.data._tables import (
    as_number,
    is_missing,
    read_table,
    refuse_rows,
    spelled,
)

logger = logging.getLogger(__name__)


def read_requested_table(
    path: str | Path, conditions: Mapping[str, Condition]
) -> dict[str, list[str | float | None]]:
    """Read what is wanted of each sample."""
    rows = read_table(path)
    columns = [name for name in rows[0].cells if name]
    names = [name for name in columns if name in conditions]
    if not names:
        cure = f"it has {listed(conditions)}" if conditions else "train one that has"
        raise InputError(
            f"{path} has no column that is a condition of the model ({cure}); its "
            f"columns are {listed(columns)}."
        )
    ignored = [name for name in columns if name not in conditions and name != _ID]
    if ignored:
        logger.warning(
            "of the columns of %s, %s make no difference: the model has %s.",
            path,
            listed(ignored),
            listed(conditions),
        )
    complaints: list[str] = []
    table = {
        name: [_read(name, row, conditions[name], complaints) for row in rows]
        for name in names
    }
    refuse_rows(complaints, "correct these cells, or leave them empty")
    return table


_ID = "participant_id"


def _read(name, row, condition, complaints):
    """Read a cell, and complain of a bad one."""
    text = row.cells[name]
    if is_missing(text):
        return None
    if condition.kind == "class":
        level = spelled(name, text)
        # A level may be another text than the usual one, where no table was read.
        level = text if text in condition.levels else level
        if level not in condition.levels:
            levels = listed(condition.levels)
            complaints.append(f"{row}: {name} is {text!r}, not one of {levels}")
        return level
    number = as_number(text)
    if number is None:
        complaints.append(f"{row}: {name} is {text!r}, no number")
    return number
