"""A teacher that is run once gives what it gives batch by batch."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from indistill.data.batches import Batches
from indistill.data.pixels import Pixels
from indistill.distillation.distill import Distillation, EmbeddingStep, build_terms
from indistill.distillation.teacher_cache import store_teacher
from indistill.distillation.terms import Term
from indistill.errors import InputError
from indistill.losses.options import LossName, LossOptions
from indistill.preprocess import Preprocessing
from indistill.runs.config import load_recipe

SIDE, COUNT, DIM = 8, 30, 6
EXAMPLE = torch.zeros(2, 3, SIDE, SIDE)


class Teacher(nn.Module):
    """Counts the images that it is run for."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.relu = nn.Conv2d(3, DIM, 3), nn.ReLU()
        self.head = nn.Linear(DIM, 4)
        self.seen: list[int] = []
        seen = self.seen  # a copy of the network counts here too
        self.first.register_forward_hook(lambda _module, inputs, _output: count_images(seen, inputs))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.relu(self.first(images)).mean((2, 3)))


def count_images(seen: list[int], inputs: tuple[torch.Tensor, ...]) -> None:
    if not isinstance(inputs[0], torch.fx.Proxy):
        seen.append(len(inputs[0]))


def make_batches(positions: np.ndarray | None = None, **changes) -> Batches:
    images = np.random.default_rng(0).integers(0, 256, (COUNT, SIDE, SIDE, 3), dtype=np.uint8)
    pixels = Pixels("mine", images, np.arange(COUNT) % 4, (), ("a", "b", "c", "d"), ())
    settings = {"batch_size": 8, "flip": False, "crop_padding": 0, "seed": 0, "device": torch.device("cpu")} | changes
    return Batches(pixels, Preprocessing(SIDE), positions=positions, **settings)


def make_distillation() -> tuple[Teacher, Distillation]:
    torch.manual_seed(0)
    teacher = Teacher()
    student = nn.Sequential(nn.Conv2d(3, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 4))
    return teacher, Distillation(teacher, student, "relu", "2", ())


def make_terms(distillation: Distillation, name: LossName = "pkt", **options) -> tuple[Term, ...]:
    return build_terms(distillation, EXAMPLE, LossOptions(name=name, **options), classes=4)


@pytest.mark.parametrize("name", ["pkt", "kd", "dkd", "regression"])
@pytest.mark.parametrize("held_out", [0, 7])
def test_stored_targets_and_losses_are_those_of_each_batch(name: LossName, held_out: int, tmp_path: Path) -> None:
    positions = np.delete(np.arange(COUNT), np.arange(held_out) * 3)
    _, distillation = make_distillation()
    terms = make_terms(distillation, name, supervised="cross-entropy")
    batches = make_batches(positions)
    stored = store_teacher(distillation.teacher, terms[0], batches, tmp_path, "abc")
    assert isinstance(stored.rows, np.memmap)
    assert stored.rows.shape == (len(positions), 4 if name in ("kd", "dkd") else DIM)
    one, other = EmbeddingStep(distillation, terms), EmbeddingStep(replace(distillation, stored=stored), terms)
    for _ in range(2):
        for images, labels in batches.draw_epoch():
            expected, found = one.prepare(images, labels), other.prepare(images, labels)
            for theirs, ours in zip(expected, found, strict=True):
                assert torch.allclose(theirs, ours, rtol=1e-5, atol=1e-6)
            assert one(images, expected).item() == pytest.approx(other(images, found).item(), rel=1e-4)


def test_the_teacher_is_run_once_for_each_image_and_in_no_step(tmp_path: Path) -> None:
    teacher, distillation = make_distillation()
    terms, batches = make_terms(distillation), make_batches()
    teacher.seen.clear()
    random = torch.get_rng_state()
    stored = store_teacher(teacher, terms[0], batches, tmp_path, "abc")
    assert sum(teacher.seen) == COUNT
    assert torch.equal(torch.get_rng_state(), random)
    teacher.seen.clear()
    for choice in (stored, None):  # the second shows that the count can rise
        step = EmbeddingStep(replace(distillation, stored=choice), terms)
        for images, labels in batches.draw_epoch():
            step.prepare(images, labels)
        assert sum(teacher.seen) == (0 if choice else COUNT)


def test_a_file_is_used_again_by_the_same_teacher_and_images_alone(tmp_path: Path) -> None:
    teacher, distillation = make_distillation()
    terms = make_terms(distillation)

    def count_run(batches: Batches, fingerprint: str = "abc", term: Term = terms[0]) -> int:
        teacher.seen.clear()
        store_teacher(teacher, term, batches, tmp_path, fingerprint)
        return sum(teacher.seen)

    assert count_run(make_batches()) == COUNT
    assert count_run(make_batches(seed=1)) == 0
    assert count_run(make_batches(), "other images") == COUNT
    assert count_run(make_batches(np.arange(20))) == 20
    assert count_run(make_batches(), term=make_terms(distillation, "kd")[0]) == COUNT
    with torch.no_grad():
        teacher.first.bias += 1
    assert count_run(make_batches()) == COUNT


def test_a_file_that_is_not_whole_is_written_anew(tmp_path: Path) -> None:
    teacher, distillation = make_distillation()
    terms = make_terms(distillation)
    expected = np.array(store_teacher(teacher, terms[0], make_batches(), tmp_path, "abc").rows)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-10])
    path.with_name(path.name + ".partial").write_bytes(b"cut off")
    teacher.seen.clear()
    assert np.array_equal(store_teacher(teacher, terms[0], make_batches(), tmp_path, "abc").rows, expected)
    assert sum(teacher.seen) == COUNT
    assert list(tmp_path.iterdir()) == [path]


def test_a_training_that_is_cut_off_while_the_file_is_written_leaves_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher, distillation = make_distillation()
    batches = make_batches()
    whole = batches.read_plain

    def stop(positions: torch.Tensor):
        yield next(whole(positions))
        raise KeyboardInterrupt

    monkeypatch.setattr(batches, "read_plain", stop)
    with pytest.raises(KeyboardInterrupt):
        store_teacher(teacher, make_terms(distillation)[0], batches, tmp_path, "abc")
    assert [path.suffix for path in tmp_path.iterdir()] == [".partial"]


def test_a_place_that_cannot_be_written_says_what_to_do(tmp_path: Path) -> None:
    teacher, distillation = make_distillation()
    (tmp_path / "checkpoint").write_text("a file in the way")
    with pytest.raises(InputError, match=r"cannot be written: .*targets.cache=never"):
        store_teacher(teacher, make_terms(distillation)[0], make_batches(), tmp_path / "checkpoint", "abc")


@pytest.mark.parametrize(
    ("overrides", "stores"),
    [
        ({}, True),
        ({"data.flip": True}, False),
        ({"data.crop_padding": 1}, False),
        ({"targets.cache": "never"}, False),
        ({"loss.name": "pkth"}, False),
        ({"loss.name": "kd"}, True),
    ],
)
def test_the_teacher_is_stored_where_no_image_varies(overrides: dict, stores: bool) -> None:
    assert load_recipe("digits", {"data.crop_padding": 0} | overrides).stores_teacher == stores
