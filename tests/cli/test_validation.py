"""`--set validation.share=...` of `train` and `compress`."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from indistill.data.pixels import load_pixels
from indistill.data.specs import open_images
from indistill.files.hashing import hash_file
from indistill.models.embedding import embed_pixels
from indistill.models.loading import load_network
from indistill.retrieval.evaluation.evaluate import measure_map_at_r
from indistill.run_folder import read_run
from indistill.training.split import split_images
from tests.cli.calls import fill, succeed
from tests.cli.files import write_digits

Refuse = Callable[..., None]
Places = dict[str, Path]

TRAIN = "train --model paper:cnn-s --data {gallery} --recipe digits --epochs 4 --lr 0.01 --out {out}"
COMPRESS = "compress --teacher {teacher} --student paper:cnn-s --data {gallery} --recipe digits --out {out} --no-report"
CHAIN = (
    "compress --teacher paper:resnet18?width=8 --teacher-weights {resnet} --student paper:cnn-s --data {gallery} "
    "--recipe digits --epochs 7 --auxiliary paper:cnn-a --out {out} --no-report"
)


def read_figures(run: Path, name: str = "map@r") -> list[float | None]:
    return [json.loads(line).get(name) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_run_holds_the_weights_of_its_best_epoch(places: Places) -> None:
    out = places["out"]
    result = succeed(*fill(TRAIN + " --set validation.share=0.25 --set data.batch_size=4 --seed 2", places))
    figures = read_figures(out)
    best = max(range(4), key=lambda i: figures[i])
    assert f"best epoch {best + 1}: map@r {figures[best]:.4f} of held-out images; its weights are kept" in result.err
    assert f"map@r {figures[0]:.4f}\n" in result.err

    pixels = load_pixels(open_images(str(places["gallery"])), read_run(out).preprocessing)
    split = split_images(pixels, 0.25, seed=2)
    assert split is not None
    vectors = embed_pixels(load_network(str(out)), read_run(out).preprocessing, pixels.images)
    labels = pixels.labels
    found = measure_map_at_r(
        vectors[split.gallery], labels[split.gallery], vectors[split.held_out], labels[split.held_out]
    )
    assert found == pytest.approx(figures[best], abs=5e-3)

    held_out = yaml.safe_load((out / "config.yaml").read_text())["held_out"]
    assert held_out == {"figure": "map@r", "images": 10, "gallery": 30, "trained_on": 30}
    page = (out / "report.html").read_text()
    assert "10 images, 30 trained on" in page
    assert "map@r of 10 held-out images, looked for in 30 of the training images." in page
    assert f"The run&#39;s weights are those of epoch {best + 1}." in page


def test_a_training_ends_early_and_is_complete(places: Places) -> None:
    line = TRAIN.replace("--epochs 4 --lr 0.01", "--epochs 40 --lr 0.0000001")
    result = succeed(*fill(line + " --set validation.share=0.25 --set validation.patience=2", places))
    out = places["out"]
    done = len(read_figures(out))
    assert done < 40
    assert f"stopped after epoch {done}: none was better for 2 epochs" in result.err
    assert (out / "model.safetensors").is_file()
    assert (out / "report.html").is_file()
    assert not (out / "checkpoint").exists()
    assert (
        "is complete"
        in succeed(*fill(line + " --set validation.share=0.25 --set validation.patience=2 --resume", places)).err
    )


def test_images_without_labels_are_measured_by_the_teachers_neighbours(places: Places) -> None:
    places["unlabelled"] = write_digits(places["here"] / "unlabelled", 0, 9, classes=False)
    line = COMPRESS.replace("{gallery}", "{unlabelled}") + " --epochs 5 --set validation.share=0.45"
    result = succeed(*fill(line, places))
    figures = read_figures(places["out"], "neighbour_overlap")
    assert figures[:3] == [None, None, None]
    assert all(0 < value <= 1 for value in figures[3:])
    assert "neighbour_overlap" in result.err
    assert "compared with the teacher&#39;s nearest images among them" in (places["out"] / "report.html").read_text()


@pytest.mark.slow
def test_the_auxiliary_is_measured_too_and_both_resume(places: Places) -> None:
    line, out = CHAIN + " --set validation.share=0.25", places["out"]
    succeed(*fill(line, places))
    assert None not in read_figures(out / "auxiliary")
    assert read_figures(out)[-1] is not None
    weights = hash_file(out / "student.safetensors")
    (out / "student.safetensors").unlink()
    (out / "auxiliary" / "student.safetensors").unlink()
    succeed(*fill(line + " --resume", places))
    assert hash_file(out / "student.safetensors") == weights


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (TRAIN + " --set validation.share=0.01", "holds out 0 of 40 images, 1 at least are needed"),
        (COMPRESS + " --set validation.share=0.01", "holds out 0 of 40 images, 1 at least are needed"),
        (COMPRESS + " --set validation.share=0.01 --dry-run", "holds out 0 of 40 images"),
        (COMPRESS.replace("{gallery}", "{loose}") + " --set validation.share=0.5", "holds out 10 of 20 images, 20 at"),
        (TRAIN + " --set validation.share=0.6", "validation.share: input should be less than or equal to 0.5, not 0.6"),
        (TRAIN + " --set validation.patient=3", "validation.patient: no such key. Did you mean 'patience'?"),
    ],
)
def test_what_cannot_be_held_out_is_refused(refuse: Refuse, line: str, message: str) -> None:
    refuse(line, message)


def test_a_class_of_one_image_each_is_refused(places: Places, refuse: Refuse) -> None:
    places["single"] = write_digits(places["here"] / "single", 0, 1)
    refuse(TRAIN.replace("{gallery}", "{single}") + " --set validation.share=0.5", "no class has two")


def test_a_run_is_resumed_with_its_own_share_alone(places: Places, refuse: Refuse, copy: Callable[[str], Path]) -> None:
    copy("run")
    line = "compress --teacher {teacher} --student paper:cnn-s --data digits/train --recipe digits --epochs 5"
    refuse(
        line + " --set validation.share=0.1 --resume --out {copied_run}",
        "validation.share was 0.0, is 0.1",
    )
