"""Manifests: a table with a path, and perhaps a label, for each image. Needs no torch.

`.csv` (with a header, commas, UTF-8), `.jsonl` (an object a line) and `.parquet`. The column of paths is `path`, or
`file_name` as in the `metadata.csv` or `metadata.jsonl` of a Hugging Face `imagefolder`, whose folder may be named in
its file's place. Paths are relative to the manifest's folder, or absolute.
"""

import csv
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from indistill.data.sets import FolderSet, locate_files, number_labels, place_files
from indistill.errors import DataError
from indistill.files.documents import read_json

SUFFIXES = (".csv", ".jsonl", ".parquet")
METADATA = ("metadata.csv", "metadata.jsonl")
PATH_COLUMNS = ("path", "file_name")
LABEL_COLUMN = "label"
ROWS_PER_BYTE = 10  # of a Parquet file: more cannot be different from one another, and would fill the memory
MAX_BATCH_BYTES = 2**28  # of the rows that are read at once, of which pyarrow takes 65,536

Row = Mapping[str, object]


def open_manifest(path: Path, name: str) -> FolderSet:
    """Returns the images that a manifest names, in its order. An empty label is none.

    An image that does not exist is skipped when it is read, as any that is damaged. The set's folder is the manifest's,
    or the deepest that holds all images where some lie outside that.

    Args:
        path: the manifest.
        name: the data spec.

    Raises:
        DataError: the file is damaged, has no column of paths, no rows, or a row without a path or with one again,
            spelled as before or not.
    """
    names: list[str] = []
    labels: list[str | None] = []
    for number, row in enumerate(_read_rows(path), start=1):
        column = next((column for column in PATH_COLUMNS if column in row), None)
        if column is None:
            found = ", ".join(map(repr, row)) or "nothing"
            raise DataError(f"manifest {path}: row {number} has no 'path', it has {found}")
        image, label = _read_cell(row[column]), _read_cell(row.get(LABEL_COLUMN))
        if not image:
            raise DataError(f"manifest {path}: row {number} has no path")
        names.append(image)
        labels.append(label or None)
    if not names:
        raise DataError(f"manifest {path}: it has no rows")
    classes, numbers = number_labels(labels)
    return FolderSet(name, *_place_rows(path, names), classes, numbers)


def _place_rows(path: Path, rows: Sequence[str]) -> tuple[Path, list[str]]:
    """Returns a folder and the paths of a manifest's images relative to it; an image has one, however it is spelled."""
    located = locate_files([os.path.join(path.parent, row) for row in rows])  # noqa: PTH118
    rows_of: dict[str, int] = {}
    for number, (image, row) in enumerate(zip(located, rows, strict=True), start=1):
        first = rows_of.setdefault(image, number)
        if first != number:
            raise DataError(f"manifest {path}: rows {first} and {number} have the same path {row}; keep one of them")
    inside = f"{str(path.parent.resolve()).rstrip('/')}/"
    if all(image.startswith(inside) for image in located):
        return path.parent, [image.removeprefix(inside) for image in located]
    return place_files(located)


def find_metadata(folder: Path) -> Path | None:
    """Returns the metadata file of a Hugging Face `imagefolder`, or None where the folder is none."""
    for name in METADATA:
        path = folder / name
        if path.is_file():
            with path.open(encoding="utf-8-sig", errors="replace") as stream:
                if re.search(r"\bfile_name\b", stream.readline()):
                    return path
    return None


def _read_rows(path: Path) -> Iterator[Row]:
    try:
        if path.suffix == ".parquet":
            yield from _read_parquet(path)
        elif path.suffix == ".jsonl":
            yield from _read_jsonl(path)
        else:
            yield from _read_csv(path)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"manifest {path} cannot be read ({' '.join(str(error).split())})") from error


def _read_csv(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig", newline="") as stream:  # spreadsheets begin UTF-8 files with a mark
        reader = csv.DictReader(stream, strict=True)
        if not set(PATH_COLUMNS) & set(reader.fieldnames or ()):
            found = ", ".join(map(repr, reader.fieldnames or ())) or "nothing"
            raise DataError(f"manifest {path}: its first line needs a column 'path', it has {found}")
        for row in reader:
            if None in row:
                raise DataError(f"manifest {path}: line {reader.line_num} has more cells than the first line")
            yield row


def _read_jsonl(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8") as stream:
        for number, line in enumerate(stream, start=1):
            try:
                row = read_json(line)
            except ValueError as error:
                raise DataError(f"manifest {path}: line {number} is not JSON ({error})") from error
            if not isinstance(row, dict):
                raise DataError(f"manifest {path}: line {number} is not an object with a 'path'")
            yield row


def _read_parquet(path: Path) -> Iterator[Row]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise DataError(
            f"manifest {path}: parquet files need pyarrow: pip install 'indistill[parquet]', or use a .csv"
        ) from error
    try:
        with parquet.ParquetFile(path) as file:
            columns = [name for name in file.schema_arrow.names if name in (*PATH_COLUMNS, LABEL_COLUMN)]
            if not set(PATH_COLUMNS) & set(columns):
                found = ", ".join(map(repr, file.schema_arrow.names)) or "nothing"
                raise DataError(f"manifest {path}: it needs a column 'path', it has {found}")
            count, size_bytes = file.metadata.num_rows, path.stat().st_size
            if count > ROWS_PER_BYTE * size_bytes:
                raise DataError(
                    f"manifest {path}: {count:,} rows in {size_bytes:,} bytes cannot all have their own path"
                )
            for batch in file.iter_batches(columns=columns):
                needed = sum(_measure_column(column) for column in batch.columns)
                if needed > MAX_BATCH_BYTES:
                    raise DataError(f"manifest {path}: {needed:,} bytes of paths and labels in {len(batch):,} rows")
                yield from batch.to_pylist()
    except (ArrowException, OverflowError, ValueError) as error:
        raise DataError(f"manifest {path} cannot be read ({' '.join(str(error).split())})") from error


def _measure_column(column: Any) -> int:  # noqa: ANN401 - an array of pyarrow
    """Returns how many bytes a column takes when each row has its own value, as that of a dictionary has not."""
    from pyarrow import compute, types

    if not types.is_dictionary(column.type):
        return int(column.nbytes)
    return len(column) * int(compute.max(compute.binary_length(column.dictionary)).as_py() or 0)


def _read_cell(value: object) -> str:
    """Returns the text of a cell; whole numbers that stand there as floats, as pandas has them, are whole again."""
    if value is None:
        return ""
    if isinstance(value, float):
        return "" if value != value else str(int(value)) if value.is_integer() else str(value)
    return str(value).strip()
