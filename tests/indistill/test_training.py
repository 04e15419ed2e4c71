from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from indistill.curriculum.phases import Phase, build_warm_up
from indistill.curriculum.schedule import Optimisation
from indistill.data.batches import Batches
from indistill.data.pixels import Pixels
from indistill.distillation.distill import (
    Distillation,
    EmbeddingStep,
    StageStep,
    build_step,
    build_terms,
    check_distillation,
)
from indistill.errors import ConfigError, ExistsError, ModelError, StageError, TrainingError
from indistill.losses.options import LossOptions
from indistill.losses.pkt import compute_pkt_loss, compute_probabilities
from indistill.models.paper import PaperResNet18, build_cnn_a, build_cnn_s
from indistill.preprocess import Preprocessing
from indistill.pruning.channels import measure_importance, select_channels
from indistill.run_folder import check_run_output, create_run, read_metrics, write_text
from indistill.runs.config import FAITHFUL, Recipe, list_recipes, load_recipe, parse_overrides
from indistill.runs.environment import describe_environment
from indistill.stages.graph import Embedder, StagePair, Tap
from indistill.training.loop import train

CPU = torch.device("cpu")
PAIRS = tuple(StagePair(f"stage{i}", f"stage{i}") for i in (1, 2, 3))
CONFIG = {"command": "train", "network": {}}
EXAMPLE = torch.zeros(2, 3, 32, 32)


class Silent:
    def __init__(self) -> None:
        self.records: list[dict] = []
        self.batches = 0

    def resume(self, records: list[dict], batches: int) -> None:
        self.records = list(records)

    def report_batch(self, phase: Phase, loss: Tensor, images: int) -> None:
        assert not loss.requires_grad
        self.batches += 1

    def report_epoch(self, record: dict) -> None:
        self.records.append(record)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def make_batches(count: int = 64) -> Batches:
    images = np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    pixels = Pixels("mine", images, np.zeros(count, dtype=np.int64), (), (), ())
    return Batches(pixels, Preprocessing(32), batch_size=16, flip=True, crop_padding=4, seed=0, device=CPU)


def make_distillation() -> Distillation:
    return Distillation(build_cnn_a(), build_cnn_s(), "embedding", "embedding", PAIRS)


def test_a_stage_step_is_the_mean_squared_error_to_the_chosen_channels() -> None:
    distillation = make_distillation()
    step = StageStep(distillation, PAIRS[1], EXAMPLE, batch_statistics=False)
    step.network.train()
    images = torch.randn(4, 3, 32, 32)
    loss = step(images, step.prepare(images, torch.zeros(4)))
    keep = select_channels(measure_importance(distillation.teacher.conv2), 16)
    with torch.no_grad():
        target = Tap(distillation.teacher.eval(), "stage2")(images)[:, keep]
        imitation = Tap(distillation.student.train(), "stage2")(images)
    assert loss.item() == pytest.approx(float((imitation - target).square().mean()), rel=1e-4)


def test_an_embedding_step_is_scaled_pkt() -> None:
    distillation = make_distillation()
    step = EmbeddingStep(distillation, build_terms(distillation, EXAMPLE, LossOptions(scale=50)))
    step.network.eval()
    images = torch.randn(6, 3, 32, 32)
    with torch.no_grad():
        student = Embedder(distillation.student, "embedding").eval()(images)
        teacher = Embedder(distillation.teacher, "embedding").eval()(images)
        expected = 50 * float(compute_pkt_loss(student, compute_probabilities(teacher)))
    loss = step(images, step.prepare(images, torch.zeros(6)))
    assert loss.item() == pytest.approx(expected, rel=1e-4)


def test_preparing_a_step_leaves_the_students_statistics_alone() -> None:
    distillation = make_distillation()
    distillation.student.train()
    check_distillation(distillation, torch.randn(2, 3, 32, 32), batch_statistics=True)
    assert distillation.student.conv1_bn.running_mean.abs().max() == 0
    assert int(distillation.student.conv1_bn.num_batches_tracked) == 0


def test_the_teacher_never_changes() -> None:
    distillation = make_distillation()
    before = {name: value.clone() for name, value in distillation.teacher.state_dict().items()}
    train_phases(distillation, build_warm_up(3, 0, 1e-2), batch_statistics=True)
    assert all(torch.equal(before[name], value) for name, value in distillation.teacher.state_dict().items())


def train_phases(
    distillation: Distillation, phases: tuple[Phase, ...], *, batch_statistics: bool = False, ahead: bool = False
) -> Silent:
    monitor = Silent()
    terms = build_terms(distillation, EXAMPLE, LossOptions())

    def build(phase: Phase):
        return build_step(distillation, terms, phase, EXAMPLE, batch_statistics=batch_statistics)

    train(distillation.student, phases, make_batches(), build, monitor, ahead=ahead)
    return monitor


@pytest.mark.parametrize("batch_statistics", [False, True])
def test_every_loss_falls(batch_statistics: bool) -> None:
    phases = (*build_warm_up(3, 4, 1e-2), Phase("embedding", "embedding", 0, 8, 1e-2))
    monitor = train_phases(make_distillation(), phases, batch_statistics=batch_statistics)
    assert monitor.batches == 4 * sum(phase.epochs for phase in phases)
    for phase in phases:
        losses = [record["loss"] for record in monitor.records if record["phase"] == phase.name]
        assert len(losses) == phase.epochs
        assert losses[-1] < 0.9 * losses[0]


def test_a_stage_trains_its_own_layers_only() -> None:
    distillation = make_distillation()
    before = {name: value.clone() for name, value in distillation.student.named_parameters()}
    train_phases(distillation, build_warm_up(2, 0, 1e-2))
    changed = {n for n, v in distillation.student.named_parameters() if not torch.equal(before[n], v)}
    assert changed == {
        *(f"{layer}.weight" for layer in ("conv1", "conv1_bn", "conv2", "conv2_bn")),
        *(f"{layer}.bias" for layer in ("conv1_bn", "conv2_bn")),  # a batch norm cancels the convolutions' own
    }


def test_a_loss_that_is_not_finite_stops_the_training() -> None:
    distillation = make_distillation()
    distillation.student.conv1.weight.data.fill_(float("nan"))
    with pytest.raises(TrainingError, match=r"the loss of batch 1 of 4 in epoch 1 \(stage 1\) is not finite"):
        train_phases(distillation, build_warm_up(1, 0, 1e-2))


def test_a_residual_teacher_meets_a_smaller_map_by_pooling() -> None:
    distillation = Distillation(PaperResNet18(width=8), build_cnn_s(), "embedding", "embedding", PAIRS[:2])
    monitor = train_phases(distillation, build_warm_up(2, 0, 1e-2))
    assert len(monitor.records) == 3


def test_what_cannot_be_distilled_is_found_before_training() -> None:
    narrow = Distillation(build_cnn_s(), build_cnn_a(), "embedding", "embedding", PAIRS)
    with pytest.raises(StageError, match="stage stage1:stage1: the teacher has 8 channels"):
        check_distillation(narrow, EXAMPLE, batch_statistics=False)
    with pytest.raises(ModelError, match="the teacher cannot take images of 48x48 pixels"):
        check_distillation(make_distillation(), torch.zeros(2, 3, 48, 48), batch_statistics=False)


class CountingStep:
    """Its gradient is a tenth from one epoch of four steps to the next, so that Adam's memory shows."""

    def __init__(self, network: nn.Linear) -> None:
        self.network, self.learnt, self.seen = network, nn.Module(), []

    def begin_epoch(self, epoch: int) -> None:
        pass

    def prepare(self, images: Tensor, labels: Tensor, /) -> tuple[Tensor]:
        return (labels,)

    def __call__(self, images: Tensor, target: tuple[Tensor, ...], /) -> Tensor:
        self.seen.append(self.network.weight.item())
        return self.network.weight.sum() * 0.1 ** ((len(self.seen) - 1) // 4)


@pytest.mark.parametrize(("restart", "full_steps"), [("never", {0}), ("phase", {0, 2}), ("epoch", {0, 1, 2, 3})])
def test_adam_starts_anew_when_it_is_told_to(restart, full_steps: set[int]) -> None:
    network = nn.Linear(1, 1, bias=False)
    step = CountingStep(network)
    phases = (Phase("a", "stage", 1, 2, 1e-2), Phase("b", "embedding", 0, 2, 1e-2))
    train(network, phases, make_batches(), lambda _: step, Silent(), Optimisation(restart=restart))
    steps = np.abs(np.diff([*step.seen, network.weight.item()]))[::4]  # the first of each epoch
    assert {i for i, size in enumerate(steps) if size > 0.99e-2} == full_steps


def train_seeded(*, ahead: bool) -> tuple[dict[str, Tensor], list[float]]:
    torch.manual_seed(5)
    distillation = make_distillation()
    phases = (*build_warm_up(1, 1, 1e-3), Phase("e", "embedding", 0, 1, 1e-3))
    monitor = train_phases(distillation, phases, ahead=ahead)
    return distillation.student.state_dict(), [record["loss"] for record in monitor.records]


@pytest.mark.parametrize("ahead", [False, True])
def test_the_same_seed_gives_the_same_weights(ahead: bool) -> None:
    first, second = train_seeded(ahead=ahead)[0], train_seeded(ahead=ahead)[0]
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_targets_made_ahead_give_the_same_losses() -> None:
    alone, ahead = train_seeded(ahead=False)[1], train_seeded(ahead=True)[1]
    assert ahead == pytest.approx(alone, rel=1e-3)  # other threads, other order of sums


def test_shipped_recipes_validate_and_faithful_changes_known_keys() -> None:
    assert list_recipes() == ["cifar10", "cifar100", "cub200", "default", "digits", "fashionmnist", "imagenet", "paper"]
    for name in list_recipes():
        assert isinstance(load_recipe(name), Recipe)
    faithful = [load_recipe(name, dict(FAITHFUL)) for name in ("cifar10", "paper")]
    assert faithful[0] == faithful[1]
    assert (faithful[0].optimiser.restart, faithful[0].loss.name, faithful[0].loss.scale) == ("epoch", "pkt", 1)
    assert faithful[0].targets.statistics == "batch"


def test_all_problems_of_a_recipe_are_reported_at_once(tmp_path: Path) -> None:
    sections = ["data: {batch_siz: 3}", "optimiser: {lr: fast}", "curiculum: {first: 1}", "loss: {name: pktt}"]
    (tmp_path / "r.yaml").write_text("\n".join(sections))
    with pytest.raises(ConfigError) as caught:
        load_recipe(str(tmp_path / "r.yaml"))
    message = str(caught.value)
    assert "data.batch_siz: no such key. Did you mean 'batch_size'?" in message
    assert "optimiser.lr: input should be a valid number" in message
    assert "curiculum: no such key. Did you mean 'curriculum'?" in message
    assert "not 'pktt'. Did you mean 'pkt'?" in message
    assert "\n" not in message


def test_overrides_are_read_as_numbers_words_and_lists() -> None:
    items = ["optimiser.lr=1e-2", "data.mean=[0.1, 0.2, 0.3]", "optimiser.restart=epoch", "curriculum.warm_up=false"]
    recipe = load_recipe("cifar10", parse_overrides(items))
    assert recipe.optimiser.lr == 0.01
    assert recipe.data.mean == (0.1, 0.2, 0.3)
    assert recipe.optimiser.restart == "epoch"
    assert not recipe.curriculum.warm_up
    with pytest.raises(ConfigError, match=r"section\.key=value"):
        parse_overrides(["lr=3"])
    with pytest.raises(ConfigError, match="Did you mean 'cifar10'"):
        load_recipe("cifar")


def test_a_run_is_never_overwritten_without_being_told_to(tmp_path: Path) -> None:
    run = tmp_path / "run"
    create_run(run, CONFIG | {"a": 1}, {}, overwrite=False)
    with pytest.raises(ExistsError, match="replace it with --overwrite"):
        create_run(run, CONFIG | {"a": 2}, {}, overwrite=False)
    assert "a: 1" in (run / "config.yaml").read_text()
    create_run(run, CONFIG | {"a": 2}, {}, overwrite=True)
    assert "a: 2" in (run / "config.yaml").read_text()
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").touch()
    with pytest.raises(ExistsError, match="is not a run"):
        check_run_output(tmp_path / "photos", overwrite=True)


def test_the_environment_tells_data_apart() -> None:
    def describe(value: int) -> str:
        images = np.full((1, 2, 2, 3), value, dtype=np.uint8)
        pixels = Pixels("mine", images, np.zeros(1, dtype=np.int64), ("a",), (), ())
        environment = describe_environment(pixels, 7)
        assert environment["seed"] == 7
        assert environment["versions"]["torch"]
        return environment["data_fingerprint"]

    assert describe(1) == describe(1) != describe(2)


def test_files_are_written_whole(tmp_path: Path) -> None:
    write_text(tmp_path / "new" / "a.jsonl", '{"epoch": 1, "phase": "embedding", "loss": 0.5}\n')
    assert read_metrics(tmp_path / "new" / "a.jsonl") == [{"epoch": 1, "phase": "embedding", "loss": 0.5}]
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.jsonl"]
