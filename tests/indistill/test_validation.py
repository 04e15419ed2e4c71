"""Held-out images: which they are, how they are measured, and what follows from it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from indistill.curriculum.phases import Phase
from indistill.curriculum.schedule import Optimisation
from indistill.data.batches import Batches
from indistill.data.pixels import Pixels, scan_pixels
from indistill.data.sets import ArraySet
from indistill.errors import DataError, TrainingError
from indistill.preprocess import Preprocessing
from indistill.retrieval.evaluation.evaluate import LabelledVectors, evaluate_retrieval, measure_map_at_r
from indistill.training.checkpoint import Checkpoints
from indistill.training.loop import train
from indistill.training.split import ValidationOptions, split_images
from indistill.training.validation import Figure, Validation, build_label_figure, build_neighbour_figure
from tests.indistill.test_resume import InterruptionError, RegressedStep, Student, Watcher

CPU = torch.device("cpu")
SIDE = 8
PHASES = (
    Phase("stage 1", "stage", 1, 1, 1e-2),
    Phase("embedding", "embedding", 0, 5, 1e-2),
    Phase("embedding, final", "embedding", 0, 2, 1e-3),
)
POSITIONS = torch.arange(30, 40)
EMA = Optimisation(ema=0.9)


def make_pixels(labels: list[int], classes: int) -> Pixels:
    images = np.random.default_rng(0).integers(0, 256, (len(labels), SIDE, SIDE, 3), dtype=np.uint8)
    return Pixels("mine", images, np.array(labels), (), tuple("abcdefgh"[:classes]), ())


def make_batches(pixels: Pixels, **changes) -> Batches:
    settings = {"batch_size": 8, "flip": True, "crop_padding": 1, "seed": 0, "device": CPU} | changes
    return Batches(pixels, Preprocessing(SIDE), **settings)


def train_once(
    watcher: Watcher,
    values: list[float] | None,
    options: ValidationOptions = ValidationOptions(0.2),  # noqa: B008 - frozen
    optimisation: Optimisation = EMA,
    *,
    folder: Path | None = None,
    phases: tuple[Phase, ...] = PHASES,
) -> dict[str, Tensor]:
    """Returns the weights of a training whose epochs have the given figures; None for no validation."""
    torch.manual_seed(3)
    pixels = make_pixels([i % 5 for i in range(40)], 5)
    batches = make_batches(pixels, positions=np.arange(30))
    student = Student().to(memory_format=torch.channels_last)
    validation = None
    if values is not None:

        def measure(_: np.ndarray) -> float:
            return values[len(watcher.records) - 1]  # after the one epoch of the warm-up

        validation = Validation(student, "last", Figure("map@r", POSITIONS, measure), batches, options)
    train(
        student,
        phases,
        batches,
        lambda phase: RegressedStep(student, phase),
        watcher,
        optimisation,
        checkpoints=None if folder is None else Checkpoints(folder, 0),
        validation=validation,
    )
    return student.state_dict()


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_each_class_is_held_out_by_its_share_and_keeps_an_image() -> None:
    pixels = make_pixels([0] * 40 + [1] * 20 + [2] * 2 + [3] + [-1] * 5, 4)
    split = split_images(pixels, 0.25, seed=1)
    assert split is not None
    held_out = np.bincount(pixels.labels[split.held_out], minlength=4)
    assert held_out.tolist()[:2] == [10, 5]
    assert held_out[2] <= 1
    assert held_out[3] == 0
    assert sorted([*split.training, *split.held_out]) == list(range(68))
    assert set(range(63, 68)) <= set(split.training)
    assert set(split.gallery) == set(split.training) - set(range(63, 68))


@pytest.mark.parametrize("seed", range(20))
def test_half_of_small_classes_leaves_none_empty(seed: int) -> None:
    pixels = make_pixels([0, 0, 1, 1, 2, 2, 2, 3, 3, 3, 4], 5)
    split = split_images(pixels, 0.5, seed)
    assert split is not None
    assert set(pixels.labels[split.training]) == {0, 1, 2, 3, 4}


def test_the_split_is_drawn_by_the_seed_and_by_no_global_generator() -> None:
    pixels = make_pixels([0] * 30 + [1] * 30, 2)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    first, second, other = (split_images(pixels, 0.2, seed) for seed in (1, 1, 2))
    assert first is not None and second is not None and other is not None  # noqa: PT018
    assert first.held_out.tolist() == second.held_out.tolist() != other.held_out.tolist()
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])


def test_the_gallery_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("indistill.training.split.GALLERY_IMAGES", 10)
    pixels = make_pixels([0] * 30 + [1] * 30, 2)
    split = split_images(pixels, 0.2, 0)
    assert split is not None
    assert np.bincount(pixels.labels[split.gallery]).tolist() == [5, 5]
    assert set(split.gallery) <= set(split.training)


def test_without_classes_images_are_held_out_and_no_gallery() -> None:
    split = split_images(make_pixels([-1] * 100, 0), 0.2, 0)
    assert split is not None
    assert (len(split.held_out), len(split.training), len(split.gallery)) == (20, 80, 0)
    assert split_images(make_pixels([0] * 100, 1), 0.2, 0).held_out.tolist() == split.held_out.tolist()


@pytest.mark.parametrize(
    ("labels", "classes", "message"),
    [
        ([0, 1, 2, 3], 4, "no class has two: use --set validation.share=0"),
        ([0, 0, 1, 1], 2, "validation.share=0.2 holds out 0 of 4 images, 1 at least are needed: raise it"),
        ([-1] * 90, 0, "holds out 18 of 90 images, 20 at least are needed where there are no classes"),
    ],
)
def test_too_few_images_are_refused(labels: list[int], classes: int, message: str) -> None:
    with pytest.raises(DataError, match=f"^data 'mine': .*{message}"):
        split_images(make_pixels(labels, classes), 0.2, 0)


def test_plain_images_are_neither_moved_nor_mirrored_and_draw_nothing() -> None:
    pixels = make_pixels([0] * 20, 1)
    streamed = scan_pixels(
        ArraySet("mine", pixels.images, [str(i) for i in range(20)], (), pixels.labels), Preprocessing(SIDE)
    )
    expected = Preprocessing(SIDE).normalise(pixels.images)
    for batches in (make_batches(pixels), make_batches(streamed)):
        before = batches.generator.get_state()
        positions = torch.arange(19, -1, -1)
        found = torch.cat(list(batches.read_plain(positions)))
        assert np.allclose(found.numpy(), expected[::-1], atol=1e-6)
        assert torch.equal(batches.generator.get_state(), before)


def test_batches_of_some_images_hold_these_alone() -> None:
    pixels = make_pixels(list(range(8)) * 3, 8)
    batches = make_batches(pixels, positions=np.flatnonzero(pixels.labels < 3), batch_size=3)
    labels = torch.cat([labels for _, labels in batches.draw_epoch()])
    assert sorted(labels.tolist()) == [0, 0, 0, 1, 1, 1, 2, 2, 2]


@pytest.mark.parametrize("optimisation", [Optimisation(), EMA], ids=["plain", "averaged"])
def test_a_training_that_is_watched_is_the_same(optimisation: Optimisation) -> None:
    watched, other = Watcher(), Watcher()
    options = ValidationOptions(0.2, keep_best=False)
    found = train_once(watched, [float(i) for i in range(7)], options, optimisation)
    assert_same(found, train_once(other, None, optimisation=optimisation))
    assert [record["loss"] for record in watched.records] == [record["loss"] for record in other.records]
    # Of the warm-up there is no figure.
    assert [record.get("map@r") for record in watched.records] == [None, *range(7)]
    assert all("map@r" not in record for record in other.records)


@pytest.mark.parametrize("optimisation", [Optimisation(), EMA], ids=["plain", "averaged"])
def test_the_weights_are_those_of_the_best_epoch_the_first_of_equals(
    optimisation: Optimisation, capfd: pytest.CaptureFixture[str]
) -> None:
    found = train_once(Watcher(), [0.1, 0.2, 0.9, 0.3, 0.9, 0.8, 0.7], optimisation=optimisation)
    assert "best epoch 4: map@r 0.9000 of held-out images; its weights are kept" in capfd.readouterr().err
    shorter = (PHASES[0], Phase("embedding", "embedding", 0, 3, 1e-2))
    assert_same(found, train_once(Watcher(), None, optimisation=optimisation, phases=shorter))


def test_patience_ends_the_whole_training(capfd: pytest.CaptureFixture[str]) -> None:
    watcher = Watcher()
    train_once(watcher, [0.1, 0.5, 0.4, 0.5, 0.9, 0.9, 0.9], ValidationOptions(0.2, patience=2))
    assert [record["epoch"] for record in watcher.records] == [1, 2, 3, 4, 5]
    err = capfd.readouterr().err
    assert "stopped after epoch 5: none was better for 2 epochs" in err
    assert "best epoch 3" in err


def test_patience_waits_for_the_next_measurement() -> None:
    watcher = Watcher()
    train_once(watcher, [0.0, 0.5, 0.0, 0.0, 0.4, 0.0, 0.0], ValidationOptions(0.2, every=3, patience=2))
    assert [record["epoch"] for record in watcher.records if "map@r" in record] == [3, 6]
    assert len(watcher.records) == 6


def test_epochs_between_measurements_have_no_figure_but_the_last_has() -> None:
    watcher = Watcher()
    train_once(watcher, [0.1] * 7, ValidationOptions(0.2, every=3))
    assert [record["epoch"] for record in watcher.records if "map@r" in record] == [3, 6, 8]


@pytest.mark.parametrize("patience", [0, 3])
def test_a_training_in_pieces_keeps_the_best_epoch_and_the_patience(patience: int, tmp_path: Path) -> None:
    values, options = [0.1, 0.5, 0.2, 0.3, 0.4, 0.1, 0.1], ValidationOptions(0.2, patience=patience)
    whole = Watcher()
    expected = train_once(whole, values, options)
    stops, broken = {2, 9, 12, 13, 19, 20, 23, 24}, Watcher()
    while stops:
        with pytest.raises(InterruptionError):
            train_once(Watcher(stops), values, options, folder=tmp_path / "checkpoint")
    assert_same(train_once(broken, values, options, folder=tmp_path / "checkpoint"), expected)
    assert [(r["epoch"], r["loss"], r.get("map@r")) for r in broken.records] == [
        (r["epoch"], r["loss"], r.get("map@r")) for r in whole.records
    ]
    assert len(whole.records) == (6 if patience else 8)

    # And once more after the end, as where a run was cut off before its weights were written.
    again = Watcher()
    assert_same(train_once(again, values, options, folder=tmp_path / "checkpoint"), expected)
    assert len(again.records) == len(whole.records)


def test_what_is_not_restored_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = [0.5, 0.1, 0.2, 0.3, 0.4, 0.1, 0.1]
    expected = train_once(Watcher(), values)
    monkeypatch.setattr("indistill.training.validation.Validation.restore", lambda *_: None)
    with pytest.raises(InterruptionError):
        train_once(Watcher({14}), values, folder=tmp_path / "checkpoint")
    with pytest.raises(AssertionError):
        assert_same(train_once(Watcher(), values, folder=tmp_path / "checkpoint"), expected)


def test_measuring_leaves_the_network_and_the_generators_as_they_are() -> None:
    pixels = make_pixels([i % 5 for i in range(40)], 5)
    student = Student().train()
    before = {name: tensor.clone() for name, tensor in [*student.named_parameters(), *student.named_buffers()]}
    state = torch.get_rng_state()
    validation = Validation(
        student, "last", Figure("map@r", POSITIONS, lambda _: 0.5), make_batches(pixels), ValidationOptions(0.2)
    )
    assert validation.measure(student, 1) == {"map@r": 0.5}
    assert student.training and student.norm.training  # noqa: PT018
    assert torch.equal(torch.get_rng_state(), state)
    for name, tensor in [*student.named_parameters(), *student.named_buffers()]:
        assert torch.equal(tensor, before[name])


def test_the_figure_is_that_of_the_network_in_eval_mode() -> None:
    pixels = make_pixels([i % 5 for i in range(60)], 5)
    split = split_images(pixels, 0.3, 0)
    assert split is not None
    torch.manual_seed(0)
    student, batches = Student().train(), make_batches(pixels)
    figure = build_label_figure(pixels, split, measure_map_at_r)
    found = Validation(student, "last", figure, batches, ValidationOptions(0.3)).measure(student, 1)
    student.eval()
    with torch.no_grad():
        vectors = student(torch.from_numpy(Preprocessing(SIDE).normalise(pixels.images))).numpy()
    gallery, queries = (
        LabelledVectors(vectors[part], [pixels.classes[label] for label in pixels.labels[part]])
        for part in (split.gallery, split.held_out)
    )
    expected = evaluate_retrieval(gallery, queries)["cosine"].metrics["map@r"]
    assert found["map@r"] == pytest.approx(expected, abs=1e-3)
    with pytest.raises(ValueError, match="need a function"):
        build_label_figure(pixels, split, None)


def test_without_labels_the_figure_is_the_overlap_with_the_teachers_neighbours() -> None:
    pixels = make_pixels([-1] * 60, 0)
    split = split_images(pixels, 0.5, 0)
    assert split is not None
    torch.manual_seed(0)
    teacher, student, batches = Student(), Student(), make_batches(pixels)
    figure = build_neighbour_figure(split, batches, teacher, "last")

    def measure(network: Student) -> float:
        measured = Validation(network, "last", figure, batches, ValidationOptions(0.5)).measure(network, 1)
        return float(measured["neighbour_overlap"])

    assert measure(teacher) > 0.95  # tracing it moved its buffer
    with torch.no_grad():
        images = torch.from_numpy(Preprocessing(SIDE).normalise(pixels.images[split.held_out]))
        named = []
        for network in (teacher.eval(), student.eval()):
            unit = torch.nn.functional.normalize(network(images))
            named.append((unit @ unit.T).fill_diagonal_(-2).topk(10).indices.tolist())
    shared = [len(set(one) & set(other)) / 10 for one, other in zip(*named, strict=True)]
    assert measure(student) == pytest.approx(np.mean(shared), abs=0.01)


def test_embeddings_that_are_not_finite_end_the_training() -> None:
    student = Student()
    batches = make_batches(make_pixels([0] * 40, 1))
    validation = Validation(student, "last", Figure("map@r", POSITIONS, lambda _: 0.5), batches, ValidationOptions(0.2))
    with torch.no_grad():
        student.last.weight.fill_(float("nan"))
    with pytest.raises(TrainingError, match="not finite after epoch 3: lower --lr"):
        validation.measure(student, 3)
