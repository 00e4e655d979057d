"""CSV and Parquet in and out, strict about every cell; knows nothing of what the columns mean."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

from metricid.errors import InputError
from metricid.files import atomic_write

SHOWN_PROBLEMS = 10


def read_table(file: str | Path, numbers: Sequence[str]) -> pa.Table:
    """Reads a `.csv` or `.parquet` file.

    Args:
        file: its name.
        numbers: columns of a CSV file that are parsed to float32; the others stay text, as they stand.

    Raises:
        InputError: missing or unreadable file, ragged or blank rows, a cell that is no number.
    """
    path = Path(file)
    text = has_header(path)
    if not path.is_file():
        state = "is a folder" if path.is_dir() else "does not exist"
        raise InputError(f"{path}: {state}; give a .csv or .parquet file")
    if text:
        return _read_csv(path, numbers)
    try:
        return pyarrow.parquet.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: not a readable Parquet file ({_line(error)})") from None


def has_header(file: str | Path) -> bool:
    """Whether the first row of a file that `read_table` takes names the columns, as that of `.csv` does."""
    return _suffix(Path(file)) == ".csv"


def write_table(table: pa.Table, file: str | Path) -> None:
    """Writes `.csv` or `.parquet` atomically.

    Raises:
        InputError: another suffix, or the place cannot be written.
    """
    path = Path(file)
    text = has_header(path)
    with atomic_write(path) as out:
        if text:
            pyarrow.csv.write_csv(table, out)
        else:
            pyarrow.parquet.write_table(table, out)


def _suffix(path: Path) -> str:
    if path.suffix.lower() not in (".csv", ".parquet"):
        raise InputError(f"{path}: the name of a table must end in .csv or .parquet")
    return path.suffix.lower()


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


def _read_csv(path: Path, numbers: Sequence[str]) -> pa.Table:
    ragged: list[Any] = []

    def note(row: Any) -> str:
        ragged.append(row)
        return "skip"

    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            header = file.readline()
            file.seek(0)
            names = next(csv.reader(file), [])
        if not header.strip():
            raise InputError(f"{path}: the first row must name the columns, but it is empty")
        if "," not in header and (";" in header or "\t" in header):
            other = "semicolons" if ";" in header else "tabs"
            raise InputError(f"{path}: its columns are separated by {other}; save it with commas")
        table = pyarrow.csv.read_csv(
            path,
            # Row numbers of ragged rows are known to one thread only, and blank rows must count.
            read_options=pyarrow.csv.ReadOptions(use_threads=False),
            parse_options=pyarrow.csv.ParseOptions(ignore_empty_lines=False, invalid_row_handler=note),
            convert_options=pyarrow.csv.ConvertOptions(
                column_types=dict.fromkeys(names, pa.string()),
                strings_can_be_null=False,
            ),
        )
    except UnicodeDecodeError:
        raise InputError(f"{path}: not UTF-8 text; save it as CSV (UTF-8)") from None
    except (pa.ArrowException, csv.Error) as error:
        raise InputError(f"{path}: not a readable CSV file ({_line(error)})") from None
    if ragged:
        shown = "; ".join(
            f"row {row.number} has {row.actual_columns} values for {row.expected_columns} columns"
            for row in ragged[:SHOWN_PROBLEMS]
        )
        more = f"; and {len(ragged) - SHOWN_PROBLEMS} more" if len(ragged) > SHOWN_PROBLEMS else ""
        raise InputError(f"{path}: {shown}{more}")
    table = _without_blank_end(table)
    if len(set(table.column_names)) < table.num_columns:
        return table
    for column in [c for c in numbers if c in table.column_names]:
        index = table.column_names.index(column)
        table = table.set_column(index, column, _numbers(path, column, table[column]))
    return table


def _without_blank_end(table: pa.Table) -> pa.Table:
    """Drops the empty lines that editors leave at the end of a file."""
    rows = table.num_rows
    while rows and all(value in ("", None) for value in table.slice(rows - 1, 1).to_pylist()[0].values()):
        rows -= 1
    return table.slice(0, rows)


def _numbers(path: Path, column: str, values: pa.ChunkedArray) -> pa.ChunkedArray:
    try:
        return pc.cast(pc.utf8_trim_whitespace(values), pa.float32())
    except pa.ArrowInvalid:
        wrong = []
        for row, text in enumerate(values.to_pylist()):
            try:
                float(text)
            except ValueError:
                wrong.append(f"row {row + 2}: {column} is not a number but {text!r}")
        more = f"; and {len(wrong) - SHOWN_PROBLEMS} more" if len(wrong) > SHOWN_PROBLEMS else ""
        raise InputError(f"{path}: {'; '.join(wrong[:SHOWN_PROBLEMS])}{more}") from None
