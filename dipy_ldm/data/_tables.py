"""Read text tables, and descriptions of their columns in JSON files."""

from collections.abc import Container, Iterable, Mapping, Sequence
import csv
import json
import math
from pathlib import Path
import re
from typing import NamedTuple

from dipy_ldm._utils.checks import InputError
from dipy_ldm._utils.values import MISSING, NONE

# In lower case, as of BIDS, R and NumPy.
_MISSING_CELLS = (*MISSING, "na")
_NO_UNITS = (*_MISSING_CELLS, NONE, "-")
SEX_COLUMNS = ("sex", "gender")
_SEXES = {"m": "M", "male": "M", "f": "F", "female": "F", "o": "O", "other": "O"}


def is_missing(text: str | None) -> bool:
    """Return whether a cell marks a missing value."""
    return text is None or text.strip().lower() in _MISSING_CELLS


def as_number(text: str) -> float | None:
    """Return a text as a finite number; None if it is not one."""
    try:
        # Python takes 1_000 for a number.
        number = math.nan if "_" in text else float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def as_level(name: str, level: str, levels: Mapping[str, str] | None = None) -> str:
    """Return the canonical spelling of a class."""
    levels = levels or {}
    level = as_code(level, levels)
    if name.lower() not in SEX_COLUMNS:
        return level
    meaning = levels.get(level, level)
    code = level.removesuffix(".0")
    return _SEXES.get(level.lower()) or _SEXES.get(meaning.strip().lower(), code)


def as_code(text: str, levels: Container[str]) -> str:
    """Return a code as levels spell it, also if pandas wrote it as a float (1.0)."""
    code = text.removesuffix(".0")
    return code if text not in levels and code in levels else text


def as_text(value: object) -> str:
    """Return a value as the text of a BIDS table."""
    if value is None:
        return "n/a"
    return f"{value:.10g}" if isinstance(value, float) else str(value)


# Tables of these kinds may have their JSON in a folder above (BIDS: inheritance).
_INHERITING = ("scans", "sessions")
# As spreadsheets write it in languages where they separate columns by semicolons.
DECIMAL_COMMA = re.compile(r"\A([+-]?\d+),(\d+)\Z")


class Row(NamedTuple):
    """A row of a table: file, line number, and cells by column."""

    table: Path
    line: int
    cells: dict

    def __str__(self) -> str:
        """Return file and line."""
        return f"{self.table}, line {self.line}"


class Description(NamedTuple):
    """Unit and meanings of levels of a column, from its JSON."""

    unit: str | None = None
    levels: dict = {}


def read_table(path: str | Path) -> list[Row]:
    """Read a table whose first line is a header."""
    path = Path(path)
    lines = read_cells(path)
    if len(lines) < 2:
        raise InputError(f"{path} has no rows", "give a header line and rows below it")
    if path.suffix.lower() == ".tsv" and len(lines[0][1]) == 1:
        (name,) = lines[0][1]
        if re.search("[,;]", name):
            raise InputError(
                f"{path} has no tabs between its columns", "add them, or name it .csv"
            )
    return name_cells(path, lines)


def name_cells(path: Path, lines: Sequence[tuple[int, list[str]]]) -> list[Row]:
    """Return rows with cells by the column names in the first line."""
    names = [name.strip() for name in lines[0][1]]
    if twice := sorted({name for name in names if name and names.count(name) > 1}):
        raise InputError(
            f"{path} has two columns called {', '.join(twice)}", "rename one"
        )
    complaints = [
        f"{path}, line {line}: {len(cells)} cells for {len(names)} columns"
        for line, cells in lines[1:]
        if len(cells) < len(names) or any(map(str.strip, cells[len(names) :]))
    ]
    refuse_rows(complaints, "complete these rows, or put texts with commas in quotes")
    return [
        Row(path, line, {name: cell.strip() for name, cell in zip(names, cells)})
        for line, cells in lines[1:]
    ]


def read_cells(path: Path) -> list[tuple[int, list[str]]]:
    """Return the line numbers and cells of a text file."""
    try:
        # Spreadsheets put a byte-order mark at the beginning.
        text = path.read_text("utf-8-sig")
    except FileNotFoundError as error:
        cure = "fetch it (datalad get)" if path.is_symlink() else "check the path"
        raise InputError(f"there is no file {path}", cure) from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} can't be read as text", "save it as UTF-8") from error
    # Plain lists may have comments; in tables, cells may begin with a number sign.
    comment = "#" if path.suffix.lower() == ".txt" else None
    numbered = [
        (number, line)
        for number, line in enumerate(text.split("\n"), 1)
        if line.strip() and not (comment and line.startswith(comment))
    ]
    separator = _separator(path, [line for _, line in numbered])
    if separator is None:
        return [(number, [line]) for number, line in numbered]
    cells = _split_cells(path, numbered, separator)
    if separator == ";":
        cells = [(n, [DECIMAL_COMMA.sub(r"\1.\2", c) for c in row]) for n, row in cells]
    return cells


def _split_cells(path: Path, numbered: list[tuple[int, str]], separator: str):
    """Split numbered lines into cells, and refuse unbalanced quotes."""
    lines = (line for _, line in numbered)
    reader = csv.reader(lines, delimiter=separator, strict=True)
    cells = []
    while (first := reader.line_num) < len(numbered):
        try:
            row = next(reader)
            # A quoted text may span lines in .csv, but never in .tsv, where a lone
            # quote would span the lines up to the next one.
            if separator == "\t" and reader.line_num > first + 1:
                raise csv.Error
        except csv.Error as error:
            raise InputError(
                f'{path}, line {numbered[first][0]}: a cell begins with a quote (") '
                "that does not end it",
                "remove the quote, or write the cell in quotes and each quote within "
                "it twice",
            ) from error
        # Spreadsheets end tables with empty rows.
        if any(map(str.strip, row)):
            cells.append((numbered[reader.line_num - 1][0], row))
    return cells


def _separator(path: Path, lines: list[str]) -> str | None:
    """Return the separator of columns; None if each line is a path."""
    kind = path.suffix.lower()
    if kind == ".csv":
        # Column names seldom contain the other separator.
        first = "".join(lines[:1])
        return max(",;", key=lambda s: (sum(s in x for x in lines), first.count(s)))
    return "\t" if kind == ".tsv" or any("\t" in x for x in lines) else None


def refuse_rows(complaints: Iterable[str], cure: str) -> None:
    """Raise one error about all bad rows."""
    if errors := [*map(InputError, complaints)]:
        raise InputError(cure=cure, complaints=errors)


def read_descriptions(path: Path) -> dict[str, Description]:
    """Read the descriptions of columns from the JSON beside a table."""
    descriptions: dict[str, Description] = {}
    for file in filter(Path.is_file, _json_paths(path)):
        for name, entry in _read_json(file).items():
            if isinstance(entry, dict):
                descriptions.setdefault(name, _parse_description(entry))
    return descriptions


def _json_paths(path: Path):
    """List the JSON files that may describe a table, the nearest first."""
    kind = path.stem.rpartition("_")[-1]
    above = list(path.absolute().parents)[:3] if kind in _INHERITING else []
    return [path.with_suffix(".json"), *(folder / f"{kind}.json" for folder in above)]


def _read_json(file: Path):
    try:
        document = json.loads(file.read_text("utf-8-sig"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{file} can't be read as JSON", "fix it, or remove it"
        ) from error
    return document if isinstance(document, dict) else {}


def _parse_description(entry: dict):
    unit, levels = entry.get("Units"), entry.get("Levels")
    levels = levels if isinstance(levels, dict) else {}
    # Templates have empty units.
    has_unit = isinstance(unit, str) and unit.strip().lower() not in _NO_UNITS
    # Codes for missing values do not turn numbers into classes.
    texts = {
        x: _meaning_text(meaning) for x, meaning in levels.items() if not is_missing(x)
    }
    return Description(unit if has_unit else None, texts)


def _meaning_text(meaning: object):
    """Return the meaning of a level as text; newer versions of BIDS nest it."""
    text = meaning.get("Description") if isinstance(meaning, dict) else meaning
    return str(text or "")
