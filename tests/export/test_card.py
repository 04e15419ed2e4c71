"""A model card states what the files say of themselves, and no text of theirs is more than text."""

from dataclasses import replace

import pytest
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from markdown_it.token import Token

from indistill.errors import ModelError
from indistill.export.artefact import Artefact
from indistill.export.card import PackedFile, format_card, quote_text, read_metadata
from tests.export.conftest import PREPROCESSING

FIGURES = {"max_difference": 1.8e-07, "min_cosine": 0.999998, "images": 512, "overlap": 0.9876}
MEASURED = FIGURES | {"metric": "map", "quality": 0.8123, "reference_quality": 0.8234}
HOSTILE = [
    "<script>alert(1)</script>",
    "`</code><img src=x onerror=alert(1)>`",
    "`` ``` ` <b>`",
    "`",
    "x` [click](javascript:alert(1)) `y",
    "![pixel](https://evil.example/p.png)",
    "https://evil.example/ www.evil.example",
    "a | b | c",
    "]: # (",
    "--- ",
    "key: value # no",
    "!!python/object/apply:os.system ['id']",
    "*anchor &anchor {a: [b]}",
    "\\`</code>",
]


def make_file(file: str = "model.onnx", **changes: object) -> PackedFile:
    artefact = Artefact(
        "paper:cnn-s", 64, PREPROCESSING, "image", "fp32", {}, "paper:cnn-a", "a" * 64, "f" * 8, MEASURED, "0.1.0"
    )
    return PackedFile(file, replace(artefact, **changes), 1_234_567, "b" * 64)  # type: ignore[arg-type]


def parse(card: str) -> list[Token]:
    """Returns the tokens of the text below the metadata, as CommonMark with tables and HTML has them."""
    tokens = MarkdownIt("commonmark").enable("table").parse(card.split("\n---\n", 1)[1])
    return [part for token in tokens for part in (token, *(token.children or []))]


def list_markup(card: str) -> list[str]:
    """Returns what is markup in a card; a heading or table row that is not there in another's would be one more."""
    return [f"{token.type} {dict(token.attrs)}" for token in parse(card)]


def test_the_figures_are_those_of_the_files() -> None:
    small = make_file("model_int8.onnx", precision="int8", verification=MEASURED | {"quality": 0.8001})
    card = format_card([make_file(), small])
    assert "| `model.onnx` | 512 | 1.8e-07 | 0.999998 | 0.9876 | 0.8123 | 0.8234 |" in card
    assert "| `model_int8.onnx` | 512 | 1.8e-07 | 0.999998 | 0.9876 | 0.8001 | 0.8234 |" in card
    assert f"| `model.onnx` | fp32 | 1.23 | `{'b' * 64}` |" in card
    assert "- teacher: `paper:cnn-a`" in card
    results = ModelCard(card).data.eval_results
    assert [(result.metric_type, result.metric_value) for result in results] == [("map", 0.8123), ("map", 0.8001)]


@pytest.mark.parametrize(
    "verification",
    [{}, FIGURES, MEASURED | {"metric": "<b>"}, MEASURED | {"quality": "0.9"}, {"images": True, "overlap": [1]}],
    ids=str,
)
def test_what_was_not_measured_or_is_no_number_is_not_stated(verification: dict[str, object]) -> None:
    card = format_card([make_file(verification=verification)])
    assert "model-index" not in read_metadata(card)
    assert "0.9 " not in card
    assert "True" not in card
    assert "<b>" not in card
    assert ("| - | - | - | - |" in card) == ("min_cosine" not in verification)


def test_where_nothing_is_known_the_card_says_so() -> None:
    card = format_card([make_file(teacher="", data_fingerprint="")])
    assert "- teacher: none is named in the files" in card
    assert "- training images: not named in the files" in card
    assert "distilled by" not in card
    assert "No licence was given with this model" in card
    assert "license" not in read_metadata(card)


def test_the_hubs_own_package_reads_the_metadata() -> None:
    data = ModelCard(format_card([make_file()], "Shoes, small", "apache-2.0")).data
    assert (data.license, data.library_name, data.pipeline_tag) == (
        "apache-2.0",
        "indistill",
        "image-feature-extraction",
    )
    assert data.model_name == "Shoes, small"
    assert "onnx" in data.tags


@pytest.mark.parametrize(
    ("teacher", "base"),
    [
        ("timm:resnet50.a1_in1k", "timm/resnet50.a1_in1k"),
        ("timm:resnet50.a1_in1k?num_classes=3", "timm/resnet50.a1_in1k"),
        ("timm:resnet50", None),
        ("timm:../../evil.x", None),
        ("torchvision:resnet18", None),
        ("", None),
    ],
)
def test_the_base_model_is_named_where_it_has_a_repository(teacher: str, base: str | None) -> None:
    assert read_metadata(format_card([make_file(teacher=teacher)])).get("base_model") == base


@pytest.mark.parametrize("text", HOSTILE)
def test_no_text_of_a_file_is_more_than_text(text: str) -> None:
    plain = format_card([make_file()], "title")
    card = format_card(
        [make_file(name=text, teacher=text, data_fingerprint=text, weights_sha256=text, version=text)], text
    )
    assert list_markup(card) == list_markup(plain)
    spans = [token.content for token in parse(card) if token.type == "code_inline"]
    assert spans.count(text.strip()) + spans.count(text) >= 7
    assert not any("html" in token.type for token in parse(card))
    metadata = read_metadata(card)
    assert metadata.keys() == read_metadata(plain).keys()
    assert metadata["model-index"][0]["name"] == text


def test_the_check_for_markup_can_fail() -> None:
    card = format_card([make_file()])
    assert list_markup(card.replace("`paper:cnn-a`", HOSTILE[0], 1)) != list_markup(card)


def test_text_that_steers_a_terminal_or_ends_a_line_is_escaped() -> None:
    assert quote_text("a\x1b[2J\n---\n\u202eb") == "`a\\x1b[2J\\n---\\n\\u202eb`"
    assert len(quote_text("x" * 10_000)) < 300


@pytest.mark.parametrize(
    "card",
    [
        "",
        "# title\n",
        "---\n---\n",
        "---\n- a\n---\n",
        "---\na: [\n---\n",
        "---\na: 1\n",
        "---\na: !!python/name:os\n---\n",
    ],
)
def test_a_card_without_metadata_is_refused(card: str) -> None:
    with pytest.raises(ModelError, match="metadata"):
        read_metadata(card)
