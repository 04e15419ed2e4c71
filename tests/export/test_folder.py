"""A model folder is complete and of one student; ONNX Runtime and OpenVINO read it; it replaces nothing else."""

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import pytest
from huggingface_hub import ModelCard
from PIL import Image

from indistill.errors import ExistsError, InputError, ModelError
from indistill.export.artefact import PREFIX
from indistill.export.folder import pack_folder, read_folder
from indistill.export.session import EmbeddingSession
from indistill.preprocess import Preprocessing
from tests.cli.calls import run_cli, snapshot

NAMES = ["README.md", "config.json", "model.onnx", "model_fp16.onnx", "preprocessor_config.json"]
Spoil = Callable[[Path], object]


@pytest.fixture
def packed(exports: dict[str, Path], tmp_path: Path) -> Path:
    pack_folder([exports["tensor16"], exports["tensor"]], tmp_path / "packed", license_id="mit")
    return tmp_path / "packed"


@pytest.fixture
def photo(tmp_path: Path) -> Image.Image:
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (57, 91, 3), dtype=np.uint8))
    image.save(tmp_path / "photo.png")
    return image


def test_a_folder_holds_the_files_unchanged_under_the_names_that_loaders_look_for(
    exports: dict[str, Path], packed: Path
) -> None:
    assert sorted(path.name for path in packed.iterdir()) == NAMES
    assert (packed / "model.onnx").read_bytes() == exports["tensor"].read_bytes()
    assert (packed / "model_fp16.onnx").read_bytes() == exports["tensor16"].read_bytes()
    written = (exports["tensor"].parent / "preprocessor_config.json").read_bytes()
    assert (packed / "preprocessor_config.json").read_bytes() == written
    config = json.loads((packed / "config.json").read_text())
    assert config == {"model_type": "indistill", "format": 1, "hidden_size": 64, "image_size": 32}
    assert packed.stat().st_mode & 0o777 == 0o755


def test_the_same_files_give_the_same_folder(exports: dict[str, Path], packed: Path, tmp_path: Path) -> None:
    pack_folder([exports["tensor"], exports["tensor16"]], tmp_path / "again", license_id="mit")
    assert snapshot(tmp_path / "again") == snapshot(packed)


@pytest.mark.parametrize("name", ["tensor", "image"])
def test_the_code_of_the_card_gives_the_vector_of_our_own_session(
    exports: dict[str, Path], tmp_path: Path, photo: Image.Image, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    pack_folder([exports[name]], tmp_path / "packed")
    code = (tmp_path / "packed" / "README.md").read_text().split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path / "packed")
    found: dict[str, np.ndarray] = {}
    exec(code.replace("photo.jpg", "../photo.png"), found)
    expected = EmbeddingSession(exports[name]).embed_images([photo])[0]
    tolerance = 1e-6 if name == "tensor" else 1e-2  # in the graph the resize is one 8-bit level off here and there
    np.testing.assert_allclose(found["embedding"][0], expected, atol=tolerance)


@pytest.mark.skipif(find_spec("openvino") is None, reason="OpenVINO is an extra")
@pytest.mark.parametrize("name", ["model.onnx", "model_fp16.onnx"])
def test_openvino_reads_the_folder(packed: Path, photo: Image.Image, name: str) -> None:
    import openvino

    preprocessing = Preprocessing(32, 0.9, (0.4, 0.5, 0.6), (0.2, 0.3, 0.25))
    model = openvino.Core().compile_model(packed / name, "CPU")
    (vector,) = model({"pixel_values": preprocessing.normalise(preprocessing.resize(photo)[None])})[0]
    assert vector @ EmbeddingSession(packed / "model.onnx").embed_images([photo])[0] > 0.999


def test_pack_prints_what_it_wrote(exports: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "packed"
    result = run_cli("pack", exports["tensor"], "--out", out, "--name", "Shoes", "--json")
    assert result.code == 0, result.err
    printed = json.loads(result.out)
    sizes = {file["file"]: file["size_bytes"] for file in printed["files"]}
    assert sizes == {path.name: path.stat().st_size for path in out.iterdir()}
    assert printed["files"][0]["sha256"] == EmbeddingSession(out / "model.onnx").sha256
    assert printed["files"][0]["precision"] == "fp32"
    assert ModelCard.load(out / "README.md").data.base_model == "timm/resnet18.a1_in1k"
    assert "no licence was given" in result.err
    assert (out / "README.md").read_text().split("\n---\n\n")[1].startswith("# `Shoes`\n")


def test_hostile_metadata_of_a_file_stays_text(exports: dict[str, Path], tmp_path: Path) -> None:
    hostile = "x` <script>alert(1)</script>: '\"---"
    model = onnx.load(exports["tensor"])
    for entry in model.metadata_props:
        if entry.key in (PREFIX + "name", PREFIX + "teacher"):
            entry.value = hostile
    onnx.save(model, tmp_path / "evil.onnx")
    pack_folder([tmp_path / "evil.onnx"], tmp_path / "packed")
    card = ModelCard.load(tmp_path / "packed" / "README.md")
    assert card.data.model_name == hostile
    assert f"# `` {hostile} ``" in card.text


def change_name(model: onnx.ModelProto, value: str) -> None:
    for entry in model.metadata_props:
        if entry.key == PREFIX + "data_fingerprint":
            entry.value = value


REFUSED: dict[str, tuple[list[str], dict[str, str], str]] = {
    "another student": (["tensor", "other"], {}, "not of one student"),
    "another input": (["tensor", "image"], {}, "input differs"),
    "the same precision twice": (["tensor", "tensor"], {}, "are both fp32"),
    "no float32": (["tensor16"], {}, "there is no float32 file"),
    "no file": (["nothing"], {}, "there is no file"),
    "a foreign file": (["foreign"], {}, "was not written by 'indistill export'"),
    "a damaged file": (["damaged"], {}, "is not an ONNX file that can be run"),
    "other training images": (["tensor", "retrained"], {}, "data_fingerprint differs (abc and xyz)"),
    "a licence that is none": (["tensor"], {"license_id": "MIT\nx: y"}, "is no licence of the Hub"),
    "a title of two lines": (["tensor"], {"title": "a\nb"}, "is no name"),
    "an empty title": (["tensor"], {"title": "  "}, "is no name"),
}


@pytest.mark.parametrize(("names", "options", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_does_not_make_a_folder_is_refused_and_leaves_nothing(
    exports: dict[str, Path], tmp_path: Path, names: list[str], options: dict[str, str], reason: str
) -> None:
    model = onnx.load(exports["tensor16"])
    change_name(model, "xyz")
    onnx.save(model, tmp_path / "retrained.onnx")
    model.ClearField("metadata_props")
    onnx.save(model, tmp_path / "foreign.onnx")
    (tmp_path / "damaged.onnx").write_bytes(exports["tensor"].read_bytes()[:-500])
    before = snapshot(tmp_path)
    with pytest.raises((InputError, ModelError)) as refused:
        pack_folder([exports.get(name, tmp_path / f"{name}.onnx") for name in names], tmp_path / "out", **options)
    assert reason in str(refused.value)
    assert snapshot(tmp_path) == before


def test_a_folder_is_replaced_only_when_told_to(exports: dict[str, Path], packed: Path) -> None:
    before = snapshot(packed)
    with pytest.raises(ExistsError, match="replace it with --overwrite"):
        pack_folder([exports["other"]], packed)
    assert snapshot(packed) == before
    pack_folder([exports["other"]], packed, overwrite=True)
    assert (packed / "model.onnx").read_bytes() == exports["other"].read_bytes()
    assert not (packed / "model_fp16.onnx").exists()
    assert [path.name for path in packed.parent.iterdir()] == ["packed"]


@pytest.mark.parametrize("name", ["notes.txt", ".git", "student.onnx"])
def test_a_folder_with_other_files_is_never_replaced(exports: dict[str, Path], packed: Path, name: str) -> None:
    (packed / name).write_text("mine")
    before = snapshot(packed)
    with pytest.raises(ExistsError, match="holds other files too"):
        pack_folder([exports["tensor"]], packed, overwrite=True)
    assert snapshot(packed) == before


def test_a_folder_of_another_program_is_never_replaced(exports: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    (tmp_path / "README.md").write_text("mine")
    with pytest.raises(ExistsError, match="is no model folder"):
        pack_folder([exports["tensor"]], tmp_path, overwrite=True)
    assert (tmp_path / "README.md").read_text() == "mine"


def rewrite(name: str, old: str, new: str) -> Spoil:
    return lambda folder: (folder / name).write_text((folder / name).read_text().replace(old, new))


SPOILT: dict[str, tuple[Spoil, str]] = {
    "no card": (lambda folder: (folder / "README.md").unlink(), "there is no README.md"),
    "no float32": (lambda folder: (folder / "model.onnx").unlink(), "there is no model.onnx"),
    "a card without metadata": (rewrite("README.md", "---\n", ""), "is no model card"),
    "other preprocessing": (rewrite("preprocessor_config.json", "36", "40"), "describes another preprocessing"),
    "preprocessing that is no JSON": (rewrite("preprocessor_config.json", "{", ""), "is no JSON"),
    "deep JSON": (lambda folder: (folder / "config.json").write_text("[" * 100_000), "is no JSON"),
    "another kind": (rewrite("config.json", "indistill", "bert"), "is of another kind of model"),
    "a large text": (lambda folder: (folder / "README.md").write_bytes(bytes(2**20 + 1)), "more than 1,048,576 bytes"),
    "a wrong name": (
        lambda folder: (folder / "model_fp16.onnx").rename(folder / "model_int8.onnx"),
        "is the fp16 file",
    ),
    "a damaged file": (
        lambda folder: (folder / "model_fp16.onnx").write_bytes((folder / "model_fp16.onnx").read_bytes()[:-99]),
        "model_fp16.onnx is not an ONNX file that can be run",
    ),
}


@pytest.mark.parametrize(("spoil", "reason"), SPOILT.values(), ids=SPOILT)
def test_a_folder_that_does_not_belong_together_is_refused(packed: Path, spoil: Spoil, reason: str) -> None:
    read_folder(packed)
    spoil(packed)
    with pytest.raises(ModelError) as refused:
        read_folder(packed)
    assert reason in str(refused.value)
