"""A training that is cut off and goes on ends with the weights of an unbroken one, bit by bit."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.kill_resume import KillPlan, Outcome, run_plan
from indistill.curriculum.phases import Phase, arrange_warm_up, build_warm_up
from indistill.curriculum.schedule import Optimisation
from indistill.data.batches import Batches
from indistill.data.pixels import Pixels
from indistill.errors import InputError
from indistill.preprocess import Preprocessing
from indistill.runs.resume import find_differences
from indistill.training.checkpoint import Checkpoints
from indistill.training.loop import Record, train

EMBEDDING = Phase("embedding", "embedding", 0, 3, 1e-3)
WARM_UP = build_warm_up(2, 0, 1e-2)
SIDE = 8
VARIANTS: dict[str, tuple[tuple[Phase, ...], Optimisation]] = {
    "plain": ((*WARM_UP, EMBEDDING), Optimisation()),
    "a new Adam each epoch": ((*WARM_UP, EMBEDDING), Optimisation(restart="epoch", beta2=0.99)),
    "a new Adam each phase": ((*WARM_UP, EMBEDDING), Optimisation(restart="phase")),
    "all options": (
        (*WARM_UP, EMBEDDING),
        Optimisation(schedule="cosine", warmup_epochs=0.5, clip=0.1, ema=0.9, weight_decay=0.1),
    ),
    "adaptive": ((*arrange_warm_up(build_warm_up(2, 3, 1e-2), "adaptive", 0.9), EMBEDDING), Optimisation()),
}


class InterruptionError(Exception):
    """Raised between two batches."""


class Watcher:
    """Keeps the records; raises `InterruptionError` after some of the batches."""

    def __init__(self, stops: set[int] = frozenset()) -> None:
        self.records: list[Record] = []
        self.stops, self.done = stops, 0

    def resume(self, records: list[Record], batches: int) -> None:
        self.records, self.done = list(records), batches

    def report_batch(self, phase: Phase, loss: Tensor, images: int) -> None:
        self.done += 1
        if self.done in self.stops:
            self.stops.remove(self.done)
            raise InterruptionError

    def report_epoch(self, record: Record) -> None:
        self.records.append(record)


class Student(nn.Module):
    """Draws from the global generator, normalises by the batch, and has a buffer that no state dict holds."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.last = nn.Linear(4, 5)
        self.register_buffer("seen", torch.zeros(()), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        if self.training:
            self.seen += 1
        x = F.relu(self.norm(self.first(images)) + 0.01 * self.seen).mean((2, 3))
        return self.last(F.dropout(x, 0.3, self.training))


class RegressedStep:
    """The student's output by a learnt regressor to the mean colours, with a weight that falls with the epoch."""

    def __init__(self, network: Student, phase: Phase) -> None:
        self.network, self.learnt, self.weight = network, nn.Linear(5, 3), 1.0
        network.first.bias.requires_grad_(phase.objective != "embedding")

    def begin_epoch(self, epoch: int) -> None:
        self.weight = 0.7**epoch

    def prepare(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        return images.mean((2, 3)), labels

    def __call__(self, images: Tensor, target: tuple[Tensor, Tensor]) -> Tensor:
        logits = self.network(images)
        return self.weight * F.mse_loss(self.learnt(logits), target[0]) + F.cross_entropy(logits, target[1])


def train_once(
    variant: str, watcher: Watcher, folder: Path | None = None, *, ahead: bool = False
) -> tuple[dict[str, Tensor], list[tuple]]:
    """Returns the student's weights and the losses, of a process that begins like any other."""
    phases, options = VARIANTS[variant]
    torch.manual_seed(3)
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (40, SIDE, SIDE, 3), dtype=np.uint8)
    pixels = Pixels("mine", images, generator.integers(0, 5, 40), (), (), ())
    cpu = torch.device("cpu")
    batches = Batches(pixels, Preprocessing(SIDE), batch_size=8, flip=True, crop_padding=1, seed=0, device=cpu)
    student = Student().to(memory_format=torch.channels_last)
    checkpoints = None if folder is None else Checkpoints(folder, 0)

    def build(phase: Phase) -> RegressedStep:
        return RegressedStep(student, phase)

    train(student, phases, batches, build, watcher, options, ahead=ahead, checkpoints=checkpoints)
    names = ("epoch", "phase", "loss", "lr")
    return student.state_dict(), [tuple(record[name] for name in names) for record in watcher.records]


def train_in_pieces(
    variant: str, stops: set[int], folder: Path, *, ahead: bool = False
) -> tuple[dict[str, Tensor], list[tuple]]:
    while stops:
        with pytest.raises(InterruptionError):
            train_once(variant, Watcher(stops), folder, ahead=ahead)
    return train_once(variant, Watcher(), folder, ahead=ahead)


def assert_same(one: tuple[dict[str, Tensor], list[tuple]], other: tuple[dict[str, Tensor], list[tuple]]) -> None:
    assert one[1] == other[1]
    assert all(torch.equal(value, other[0][name]) for name, value in one[0].items())


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_training_in_pieces_is_that_in_one(variant: str, tmp_path: Path) -> None:
    whole = train_once(variant, Watcher())
    # Within an epoch, at its last batch, at the first of a phase, and twice in one place.
    assert_same(train_in_pieces(variant, {2, 5, 6, 13, 14, 16, 27}, tmp_path / "checkpoint"), whole)
    assert len(list((tmp_path / "checkpoint").iterdir())) == 2


def test_a_training_with_batches_made_ahead_is_resumed_at_the_batch_that_was_trained(
    tmp_path: Path, two_threads: None
) -> None:
    whole = train_once("plain", Watcher(), ahead=True)
    assert_same(train_in_pieces("plain", {2, 8, 21}, tmp_path / "checkpoint", ahead=True), whole)


def test_what_is_not_restored_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train_once("plain", Watcher())
    monkeypatch.setattr("indistill.training.loop.set_random_states", lambda *_: None)
    with pytest.raises(AssertionError):
        assert_same(train_in_pieces("plain", {12}, tmp_path / "checkpoint"), whole)


def test_skipped_batches_leave_the_others_as_they_are() -> None:
    images = np.random.default_rng(0).integers(0, 256, (20, SIDE, SIDE, 3), dtype=np.uint8)
    pixels = Pixels("mine", images, np.arange(20), (), (), ())

    def draw(skip: int) -> list[Tensor]:
        cpu = torch.device("cpu")
        batches = Batches(pixels, Preprocessing(SIDE), batch_size=4, flip=True, crop_padding=2, seed=1, device=cpu)
        return [part for _ in range(2) for batch in batches.draw_epoch(skip) for part in batch]

    whole, skipped = draw(0), draw(3)
    expected = [*whole[6:10], *whole[16:20]]
    assert len(skipped) == 8
    assert all(torch.equal(a, b) for a, b in zip(expected, skipped, strict=True))


def damage_by_cutting(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def damage_by_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [damage_by_cutting, damage_by_a_bit])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(
    damage: Callable[[Path], None], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    whole, folder = train_once("plain", Watcher()), tmp_path / "checkpoint"
    with pytest.raises(InterruptionError):
        train_once("plain", Watcher({8}), folder)
    newest = sorted(folder.iterdir())[-1]
    damage(newest)
    (folder / "0000000009.partial").write_bytes(b"cut off")
    assert_same(train_once("plain", Watcher(), folder), whole)
    assert f"warning: {newest} is damaged; going back to the one before" in capfd.readouterr().err


def test_if_all_checkpoints_are_damaged_training_begins_anew(tmp_path: Path) -> None:
    whole, folder = train_once("plain", Watcher()), tmp_path / "checkpoint"
    with pytest.raises(InterruptionError):
        train_once("plain", Watcher({8}), folder)
    for path in folder.iterdir():
        damage_by_cutting(path)
    assert_same(train_once("plain", Watcher(), folder), whole)


def test_a_checkpoint_holds_nothing_that_runs(tmp_path: Path) -> None:
    with pytest.raises(InterruptionError):
        train_once("all options", Watcher({8}), tmp_path / "checkpoint")
    newest = sorted((tmp_path / "checkpoint").iterdir())[-1]
    contents = torch.load(newest, weights_only=True)
    assert contents["batch"] == 2  # the eighth batch was interrupted before its checkpoint
    assert "seen" in contents["student"]


def test_a_checkpoint_that_cannot_be_written_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "checkpoint").write_text("a file in the way")
    with pytest.raises(InputError, match=r"cannot be written: .*go on with --resume"):
        train_once("plain", Watcher(), tmp_path / "checkpoint")


def test_differences_are_named_by_their_keys() -> None:
    before = {"seed": 0, "recipe": {"optimiser": {"lr": 0.1}}, "pairs": ["a:b"], "gone": 1}
    now = {"seed": 1, "recipe": {"optimiser": {"lr": 0.2}}, "pairs": ["a:c"]}
    assert find_differences(before, now) == [
        "seed was 0, is 1",
        "optimiser.lr was 0.1, is 0.2",
        "pairs.1 was a:b, is a:c",
        "gone was 1, is None",
    ]


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(sys.modules["os"], "fork"), reason="processes are forked")
def test_a_run_that_is_killed_again_and_again_ends_with_the_same_weights(tmp_path: Path) -> None:
    outcome: Outcome = run_plan(KillPlan(kills=3, epochs=6, seed=0, auxiliary=False), tmp_path)
    assert outcome.kills >= 1
    assert outcome.differences == []
