"""Every form of data does the same as the folder of the same images, through every command; faults end in one line."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.cli.calls import fill, run_cli, snapshot, succeed
from tests.cli.files import list_files
from tests.cli.test_light_imports import run_and_list_imports
from tests.miniatures import encode, make_noise, write_cub, write_shard

Places = dict[str, Path]
Refuse = Callable[..., None]
FORMS = ["csv", "jsonl", "parquet", "shards", "saved"]


def list_rows(folder: Path) -> list[tuple[Path, str]]:
    return [(path, path.parent.name) for path in list_files(folder)]


def write_form(form: str, gallery: Path, out: Path) -> str:
    """Writes the images of a folder of classes in another form, and returns the data spec."""
    rows = list_rows(gallery)
    if form == "shards":
        for number in range(2):
            part = rows[number::2]
            files = {f"{label}/{path.stem}{path.suffix}": path.read_bytes() for path, label in part}
            labels = {f"{label}/{path.stem}.cls": label.encode() for path, label in part}
            write_shard(out / f"part-{number}.tar", files | labels)
        return f"{out}/part-{{0..1}}.tar"
    out.mkdir()
    if form == "saved":
        import datasets

        datasets.disable_progress_bars()
        images = [{"bytes": path.read_bytes(), "path": None} for path, _ in rows]
        features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})
        columns = {"image": images, "label": [label for _, label in rows]}
        datasets.Dataset.from_dict(columns, features=features).save_to_disk(str(out))
        return str(out)
    records = [{"path": str(path), "label": label} for path, label in rows]
    file = out / f"images.{form}"
    if form == "csv":
        with file.open("w", encoding="utf-8", newline="") as stream:
            writer = csv.DictWriter(stream, ["path", "label"])
            writer.writeheader()
            writer.writerows(records)
    elif form == "jsonl":
        file.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    else:
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(records), file)
    return str(file)


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest, places: Places) -> str:
    """Returns the data spec of the gallery in a form; also `{data}` in a command line."""
    places["data"] = Path(write_form(request.param, places["gallery"], places["here"] / "form"))
    return request.param


@pytest.mark.slow
def test_a_form_of_data_trains_and_compresses(places: Places, form: str) -> None:
    options = "--data {data} --recipe digits --epochs 1"
    succeed(*fill(f"train --model paper:cnn-s {options} --out {{here}}/a", places))
    succeed(*fill(f"compress -t {{teacher}} -s paper:cnn-s {options} --no-warm-up --out {{here}}/b", places))
    for run in ("a", "b"):
        environment = json.loads((places["here"] / run / "environment.json").read_text(encoding="utf-8"))
        assert environment["images"] == 40


@pytest.mark.slow
def test_a_form_of_data_is_indexed_and_evaluated_as_the_folder_without_torch(places: Places, form: str) -> None:
    line = "index build {data} --model {model} --out {out} --json"
    result, imported = run_and_list_imports(line, places)
    assert result.code == 0, result.err
    assert imported.isdisjoint({"torch", "torchvision", "timm", "sklearn"})
    assert json.loads(result.out)["items"] == 40
    evaluate = "evaluate {index} --queries {queries} --json"
    expected = json.loads(succeed(*fill(evaluate, places)).out)
    of_form = json.loads(succeed(*fill(evaluate.replace("{index}", "{out}"), places)).out)
    assert of_form["cosine"]["map"] == pytest.approx(expected["cosine"]["map"], abs=1e-6)
    line = "evaluate --model {model} --gallery {data} --queries {data} --json"
    result, imported = run_and_list_imports(line, places)
    assert result.code == 0, result.err
    assert imported.isdisjoint({"torch", "torchvision", "timm", "sklearn"})
    assert json.loads(result.out)["cosine"]["recall@1"] == 1


def test_hits_of_a_form_of_data_are_shown_or_missing(places: Places, form: str) -> None:
    succeed(*fill("index build {data} --model {model} --out {out}", places))
    hits = json.loads(succeed(*fill("search {out} {query} --json", places)).out)
    assert hits
    page = places["here"] / "page.html"
    succeed("search", places["out"], places["query"], "--html", page)
    shown = page.read_text(encoding="utf-8").count("data:image/jpeg")
    assert (shown > 1) == (form in ("csv", "jsonl", "parquet"))


@pytest.mark.slow
def test_a_streamed_run_is_the_run_in_memory(places: Places) -> None:
    line = "compress -t {teacher} -s paper:cnn-s --data {gallery} --recipe digits --epochs 5 --device cpu"
    succeed(*fill(f"{line} --out {{here}}/memory", places))
    succeed(*fill(f"{line} --out {{here}}/streamed --set data.memory_limit_gb=0", places))
    memory, streamed = (places["here"] / name / "student.safetensors" for name in ("memory", "streamed"))
    assert memory.read_bytes() == streamed.read_bytes()


def test_an_image_set_with_a_name_is_indexed_with_its_root(places: Places) -> None:
    write_cub(places["here"])
    line = "index build cub200/first100 --data-root {here} --model {model} --out {out} --json"
    manifest = json.loads(succeed(*fill(line, places)).out)
    assert (manifest["items"], manifest["root"]) == (8, str(places["here"] / "CUB_200_2011" / "images"))
    line = "index build digits/test --model {model} --out {out} --json --overwrite"
    assert json.loads(succeed(*fill(line, places)).out)["root"] == "digits/test"


TRAIN = "train --model paper:cnn-s --recipe digits --epochs 1 --out {out} --data {here}/"
COMPRESS = "compress -t {teacher} -s paper:cnn-s --no-warm-up --recipe digits --epochs 1 --out {out} --data {here}/"
BUILD = "index build --model {model} --out {out} {here}/"
COMMANDS = {"train": TRAIN, "compress": COMPRESS, "index build": BUILD}
EVALUATE = "evaluate --model {model} --gallery {gallery} --queries {here}/"

PNG = encode(make_noise(np.random.default_rng(0), 16, 16), "PNG")
FAULTS: dict[str, tuple[str, bytes | dict[str, bytes], str]] = {
    "csv without path": ("m.csv", b"file,label\n1.png,a\n", "needs a column 'path', it has 'file', 'label'"),
    "csv, empty": ("m.csv", b"", "needs a column 'path', it has nothing"),
    "csv without rows": ("m.csv", b"path,label\n", "m.csv: it has no rows"),
    "csv, row without path": ("m.csv", b"path,label\n1.png,a\n,b\n", "m.csv: row 2 has no path"),
    "csv, row too long": ("m.csv", b"path,label\n1.png,a,b\n", "line 2 has more cells than the first line"),
    "csv, path twice": ("m.csv", b"path\n1.png\n2.png\n1.png\n", "rows 1 and 3 have the same path 1.png"),
    "csv, not UTF-8": ("m.csv", b"path\n\xff\xfe.png\n", "m.csv cannot be read"),
    "csv, quote left open": ("m.csv", b'path\n"1.png\n', "m.csv cannot be read"),
    "csv, no image exists": (
        "m.csv",
        b"path,label\n1.png,a\n2.png,b\n",
        "none of 2 images can be read; 1.png: no such",
    ),
    "jsonl, no JSON": ("m.jsonl", b"{\n", "line 1 is not JSON"),
    "jsonl, no object": ("m.jsonl", b"3\n", "line 1 is not an object with a 'path'"),
    "jsonl without path": ("m.jsonl", b'{"path": "1.png"}\n{"label": 3}\n', "row 2 has no 'path', it has 'label'"),
    "parquet, text": ("m.parquet", b"text", "m.parquet cannot be read"),
    "shard, text": ("m.tar", b"text", "m.tar is damaged, compressed or no tar file"),
    "shard, empty": ("m.tar", {}, "m.tar holds no images"),
    "shard, cut": ("m.tar", {"a.png": PNG, "cut": b""}, "m.tar is damaged"),
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("fault", FAULTS)
def test_data_with_a_fault_ends_in_one_line(places: Places, refuse: Refuse, command: str, fault: str) -> None:
    name, content, words = FAULTS[fault]
    path = places["here"] / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        write_shard(path, {key: value for key, value in content.items() if key != "cut"})
        if "cut" in content:
            path.write_bytes(path.read_bytes()[:700])
    if fault == "csv, no image exists" and command == "index build":
        words = "none of the 2 images can be read; 1.png: No such file"
    refuse(COMMANDS[command] + name, words)


def test_a_parquet_file_without_the_column_is_refused(places: Places, refuse: Refuse) -> None:
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"file": ["1.png"]}), places["here"] / "m.parquet")
    refuse(f"{TRAIN}m.parquet", "m.parquet: it needs a column 'path', it has 'file'")


def write_partly_labelled(places: Places) -> None:
    rows = [f"{path},{label if number else ''}" for number, (path, label) in enumerate(list_rows(places["gallery"]))]
    (places["here"] / "m.csv").write_text("\n".join(["path,label", *rows, "missing.png,one"]) + "\n", encoding="utf-8")


@pytest.mark.parametrize("line", [TRAIN, EVALUATE], ids=["train", "evaluate"])
def test_where_labels_are_needed_a_missing_one_is_named(places: Places, refuse: Refuse, line: str) -> None:
    write_partly_labelled(places)
    refuse(f"{line}m.csv", "1 of 41 images have no label, the first is ", "/eight/eight 00.png; ")


@pytest.mark.parametrize("line", [COMPRESS, BUILD], ids=["compress", "index build"])
def test_where_labels_are_not_needed_they_may_be_missing_and_a_missing_image_is_skipped(
    places: Places, line: str
) -> None:
    write_partly_labelled(places)
    result = succeed(*fill(f"{line}m.csv", places))
    assert "1 image was skipped" in result.err
    assert "missing.png: " in result.err


def test_a_manifest_that_does_not_exist_is_refused(refuse: Refuse) -> None:
    refuse(f"{TRAIN}none.csv", "{here}/none.csv': there is no such file or folder")


def test_a_set_with_a_name_that_is_not_there_names_what_is_missing(places: Places) -> None:
    before = snapshot(places["here"])
    result = run_cli(*fill("train --model paper:cnn-s --data cub200/train --data-root {here} --out {out}", places))
    assert result.code == 2
    assert "images.txt, image_class_labels.txt, train_test_split.txt, classes.txt, images of CUB-200-2011" in result.err
    assert snapshot(places["here"]) == before
