"""The student of `compress`: the teacher made narrower, to a width or a target, and read back from its run."""

from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor, nn

from indistill.errors import InputError, ModelError
from indistill.models.fitting import Reference, Target, Trial, count_bytes, find_width, parse_latency, parse_size
from indistill.models.loading import Network, load_network
from indistill.models.students import StudentChoice, make_student
from indistill.models.weights import save_weights

SIDE = 32
ARGUMENTS = {"image_size": SIDE}
SCALED = """
import torch
from torch import nn

class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 32, 3)
        self.scale = nn.Parameter(torch.full((32, 1, 1), 0.25))
        self.fc = nn.Linear(32, 5)

    def forward(self, image):
        return self.fc((self.scale * self.conv(image)).mean((2, 3)))
"""


def load_teacher(spec: str = "paper:resnet18?width=16") -> Network:
    torch.manual_seed(0)
    return load_network(spec, arguments=ARGUMENTS, role="teacher")


def make(teacher: Network, spec: str = "width:0.5", **choice: object) -> Network:
    return make_student(StudentChoice(spec, **choice), teacher, ARGUMENTS, SIDE)


def run(network: Network) -> Tensor:
    images = torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return network.module.eval()(images)


def write_run(folder: Path, network: Network) -> str:
    folder.mkdir()
    data = {"image_size": SIDE, "crop": 1.0, "mean": [0.5] * 3, "std": [0.25] * 3}
    config = {"command": "compress", "network": network.describe(), "recipe": {"data": data}}
    config |= {"parameters": 1, "data": "digits/train", "seed": 0, "device": "cpu", "schedule": []}
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    save_weights(network.module, folder / "student.safetensors")
    return str(folder)


def test_a_narrow_student_has_the_teachers_embedding_and_stages_and_quarter_of_its_weights() -> None:
    teacher = load_teacher()
    before = run(teacher)
    student = make(teacher)
    assert (student.source, student.spec, student.weights) == ("width:0.5", teacher.spec, None)
    assert (student.embedding, student.stages) == (teacher.embedding, teacher.stages)
    assert 0.24 < student.count_parameters() / teacher.count_parameters() < 0.26
    assert torch.equal(run(teacher), before)
    assert teacher.narrowing is None


@pytest.mark.parametrize("spec", ["paper:resnet18?width=16", "paper:cnn-a", "timm:resnet10t"])
def test_a_run_of_a_narrow_student_is_read_back_as_it_was(spec: str, tmp_path: Path) -> None:
    student = make(load_teacher(spec))
    again = load_network(write_run(tmp_path / "run", student))
    assert torch.equal(run(again), run(student))
    assert again.describe() == student.describe()


def test_the_student_of_a_narrow_teacher_is_read_back_too(tmp_path: Path) -> None:
    teacher = load_network(write_run(tmp_path / "teacher", make(load_teacher())))
    student = make(teacher)
    assert student.count_parameters() < 0.3 * teacher.count_parameters()
    again = load_network(write_run(tmp_path / "student", student))
    assert torch.equal(run(again), run(student))


def test_a_student_from_scratch_has_the_same_shapes_and_seeded_weights(tmp_path: Path) -> None:
    teacher = load_teacher()
    kept = make(teacher)
    drawn, same, other = (make(teacher, from_scratch=True, seed=seed) for seed in (1, 1, 2))
    assert [p.shape for p in drawn.module.parameters()] == [p.shape for p in kept.module.parameters()]
    assert torch.equal(run(drawn), run(same))
    for different in (other, kept):
        assert not torch.allclose(run(drawn), run(different))
    assert drawn.narrowing is not None
    assert drawn.narrowing.from_scratch
    assert torch.equal(run(load_network(write_run(tmp_path / "run", drawn))), run(drawn))


def test_bare_parameters_of_a_student_from_scratch_are_drawn_as_the_factory_draws_them(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(SCALED, encoding="utf-8")
    teacher = load_teacher(f"{file}:Scaled")
    scale = teacher.module.get_parameter("scale")
    scale.data.fill_(7)
    kept, drawn = make(teacher), make(teacher, from_scratch=True)
    assert torch.equal(kept.module.get_parameter("scale"), torch.full((16, 1, 1), 7.0))
    assert torch.equal(drawn.module.get_parameter("scale"), torch.full((16, 1, 1), 0.25))


def test_student_weights_start_a_narrow_student(tmp_path: Path) -> None:
    teacher = load_teacher()
    save_weights(make(teacher, from_scratch=True).module, tmp_path / "start.safetensors")
    student = make(teacher, weights=tmp_path / "start.safetensors")
    assert torch.equal(run(student), run(make(teacher, from_scratch=True)))


@pytest.mark.parametrize("size_bytes", [50_000, 150_000, 500_000])
def test_the_widest_student_that_meets_a_size_is_found(size_bytes: int) -> None:
    teacher, trials = load_teacher(), list[Trial]()
    choice = StudentChoice("width:auto", target=Target(size_bytes=size_bytes))
    student = make_student(choice, teacher, ARGUMENTS, SIDE, trials.append)
    assert count_bytes(student.module) <= size_bytes
    assert student.narrowing is not None
    assert student.source == f"width:{student.narrowing.width:g}"
    wider = make(teacher, f"width:{student.narrowing.width + 1 / 32}")
    assert count_bytes(wider.module) > size_bytes
    assert len(trials) == 6
    assert {trial.met for trial in trials} == {True, False}


@pytest.mark.slow
def test_a_student_that_meets_a_latency_was_measured_to_meet_it() -> None:
    trials = list[Trial]()
    choice = StudentChoice("width:auto", target=Target(latency=0.8))
    student = make_student(choice, load_teacher("paper:resnet18?width=32"), ARGUMENTS, SIDE, trials.append)
    (chosen,) = (trial for trial in trials if student.source == f"width:{trial.width:g}")
    assert chosen.met
    assert chosen.latency is not None
    assert chosen.latency <= 0.8
    assert chosen.threads == torch.get_num_threads()


def test_a_target_that_no_width_meets_is_refused_with_the_nearest() -> None:
    with pytest.raises(
        InputError, match=r"no width meets the target: the nearest, width:0.03125, has 0.0\d MB; ask for"
    ):
        make(load_teacher(), "width:auto", target=Target(size_bytes=1000))
    with pytest.raises(InputError, match=r"the teacher has \d\.\d\d MB, no more than --target-size"):
        make(load_teacher(), "width:auto", target=Target(size_bytes=10**9))


def test_the_search_tries_the_narrowest_first_and_halves_what_is_left() -> None:
    tried: list[float] = []

    def build(width: float) -> nn.Module:
        tried.append(32 * width)
        return nn.Linear(round(32 * width), 1, bias=False)

    reference = Reference(nn.Linear(32, 1, bias=False), "", SIDE)
    assert find_width(reference, Target(size_bytes=4 * 21), build) == 21 / 32
    assert tried == [1, 16, 24, 20, 22, 21]


def test_targets_are_read() -> None:
    assert parse_latency("0.25x") == 0.25
    assert [parse_size(text) for text in ("5MB", "0.5 kb", "12b")] == [5_000_000, 500, 12]
    for text in ("0.25", "1x", "0x", "x", "-0.5x", "25%"):
        with pytest.raises(InputError, match="is not a share of the teacher's latency"):
            parse_latency(text)
    for text in ("5", "MB", "-5MB", "0MB", "5MiB"):
        with pytest.raises(InputError, match="is not a size, as 5MB or 800KB"):
            parse_size(text)


@pytest.mark.parametrize("spec", ["width:0", "width:1", "width:1.5", "width:-1", "width:nan", "width:", "width:half"])
def test_a_width_outside_zero_and_one_is_refused(spec: str) -> None:
    with pytest.raises(ModelError, match=f"student '{spec}': a width between 0 and 1 is needed"):
        make(load_teacher("paper:cnn-a"), spec)


def test_a_width_is_no_model_spec_of_a_teacher() -> None:
    with pytest.raises(ModelError, match=r"model 'width:0\.5' is the teacher made narrower, which only --student of"):
        load_network("width:0.5")


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (
            StudentChoice("paper:cnn-s", from_scratch=True),
            "--from-scratch is for width: students, not for 'paper:cnn-s'",
        ),
        (StudentChoice("width:0.5", Path("x.pt"), from_scratch=True), "exclude each other"),
        (StudentChoice("width:auto"), "go with width:auto, and it with one of them"),
        (StudentChoice("width:0.5", target=Target(0.5)), "go with width:auto, and it with one of them"),
    ],
)
def test_options_that_do_not_belong_together_are_refused(choice: StudentChoice, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_student(choice, load_teacher("paper:cnn-a"), ARGUMENTS, SIDE)
