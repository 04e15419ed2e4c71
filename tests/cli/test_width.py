"""`compress` with a student that is the teacher made narrower, and what is done with its run afterwards."""

from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from indistill.cli.inputs import load_untrained
from indistill.models.loading import load_network
from indistill.run_folder import read_run
from tests.cli.calls import assert_refused, fill, run_cli, run_process, succeed

OPTIONS = "compress --teacher {teacher} --data {loose} --recipe digits --epochs 1 --no-warm-up --out {out}"
READ = "import sys, torch; from indistill.models.loading import load_network; n = load_network(sys.argv[1]); "
SUM = READ + "print(n.module.eval()(torch.ones(1, 3, 32, 32)).sum().item(), 'torch_pruning' in sys.modules)"


def read_network(run: Path) -> dict[str, object]:
    network: dict[str, object] = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))["network"]
    return network


@pytest.mark.slow
def test_the_student_is_half_the_teacher_unless_named(places: dict[str, Path]) -> None:
    succeed(*fill(OPTIONS, places))
    network = read_network(places["out"])
    assert network["spec"] == "paper:cnn-a"
    narrowing = network["narrowing"]
    assert isinstance(narrowing, dict)
    assert (narrowing["width"], narrowing["from_scratch"]) == (0.5, False)
    weights = load_file(places["out"] / "student.safetensors")
    assert weights["conv3.weight"].shape == (32, 16, 3, 3)
    assert narrowing["tensors"]["conv3.weight"] == "32x16x3x3"
    assert "!!python" not in (places["out"] / "config.yaml").read_text(encoding="utf-8")

    exported = succeed(*fill("export {out} --onnx", places))
    assert "64 dimensions" in exported.out
    assert "paper:cnn-a, width 0.5" in succeed(*fill("info {out}/student.onnx", places)).out
    assert "paper:cnn-a, width 0.5" in (places["out"] / "report.html").read_text(encoding="utf-8")
    measured = succeed(*fill("evaluate --model {out} --gallery {gallery} --queries {queries} --json", places))
    deployed = fill("evaluate --model {out}/student.onnx --gallery {gallery} --queries {queries} --json", places)
    assert measured.out[:400] == succeed(*deployed).out[:400]
    result = run_process(places["out"], code=SUM)
    figure, imported = result.out.split()
    network = load_network(str(places["out"])).module.eval()
    assert float(figure) == pytest.approx(float(network(torch.ones(1, 3, 32, 32)).detach().sum()), rel=1e-5)
    assert imported == "False"  # a run is read without Torch-Pruning


def test_the_stages_of_a_narrow_student_are_those_of_the_teacher(places: dict[str, Path]) -> None:
    succeed(*fill(OPTIONS.replace("--epochs 1 --no-warm-up", "--epochs 4") + " --student width:0.25", places))
    config = yaml.safe_load((places["out"] / "config.yaml").read_text(encoding="utf-8"))
    assert config["pairs"] == ["stage1:stage1", "stage2:stage2", "stage3:stage3"]
    assert config["start"] == "width:0.25"


def test_a_search_prints_what_was_tried(places: dict[str, Path]) -> None:
    result = succeed(*fill(OPTIONS + " --student width:auto --target-size 60KB --from-scratch", places))
    rows = [line for line in result.err.splitlines() if line.startswith("width:")]
    assert len(rows) == 6
    assert {row.rpartition("MB  ")[2] for row in rows} == {"meets the target", "does not"}
    assert (places["out"] / "student.safetensors").stat().st_size < 66_000  # its header comes on top


def test_a_target_that_no_width_meets_ends_with_the_nearest(places: dict[str, Path]) -> None:
    result = run_cli(*fill(OPTIONS + " --student width:auto --target-size 1KB", places))
    assert result.code == 2
    assert "no width meets the target: the nearest, width:0.03125" in result.err.splitlines()[-1]
    assert result.err.startswith("width:0.03125")
    assert not places["out"].exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--student width:2", "student 'width:2': a width between 0 and 1 is needed, as width:0.5, or width:auto"),
        ("--student width:auto", "--target-latency or --target-size go with width:auto, and it with one of them"),
        ("--student width:auto --target-size 5", "--target-size '5' is not a size, as 5MB or 800KB"),
        ("--student width:auto --target-latency 2x", "--target-latency '2x' is not a share of the teacher's latency"),
        ("--student paper:cnn-s --from-scratch", "--from-scratch is for width: students"),
    ],
)
def test_widths_and_targets_that_are_none_are_refused(places: dict[str, Path], options: str, message: str) -> None:
    assert_refused(run_cli(*fill(f"{OPTIONS} {options}", places)), message)
    assert not places["out"].exists()


@pytest.mark.slow
def test_the_report_of_a_narrow_student_measures_the_narrow_network(places: dict[str, Path]) -> None:
    """Its untrained yardstick is as narrow, and a narrow run can be the teacher of another."""
    first, second = places["out"], places["here"] / "second"
    succeed(*fill("compress --teacher {teacher} --data {gallery} --recipe digits --epochs 5 --out {out}", places))
    untrained, trained = load_untrained(read_run(first)), load_network(str(first))
    shapes = {name: value.shape for name, value in trained.module.state_dict().items()}
    assert {name: value.shape for name, value in untrained.module.state_dict().items()} == shapes
    line = "compress --teacher {out} --student paper:cnn-s --data {gallery} --recipe digits --epochs 5 --no-warm-up"
    succeed(*fill(f"{line} --out", places), second)
    succeed("report", second, "--data", "digits/test", "--json")
