"""`compress` without flips and crops, where the teacher is run once."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from indistill.files.hashing import hash_file
from tests.cli.calls import fill, succeed
from tests.cli.test_loggers import cut_off

Places = dict[str, Path]

LINE = (
    "compress --teacher {teacher} --student paper:cnn-s --data {gallery} --recipe digits --no-report "
    "--set data.crop_padding=0 --set validation.share=0.25 --epochs 12 --checkpoint-every 0 --out "
)


def read_losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_a_run_is_that_of_a_teacher_run_batch_by_batch_and_resumes_exactly(places: Places) -> None:
    runs = {name: places["here"] / name for name in ("stored", "ahead", "never", "broken")}
    succeed(*fill(LINE + str(runs["stored"]), places))
    succeed(*fill(f"{LINE}{runs['never']} --set targets.cache=never", places))
    losses = read_losses(runs["stored"])
    assert losses == pytest.approx(read_losses(runs["never"]), rel=1e-3)
    weights = {name: load_file(runs[name] / "student.safetensors") for name in ("stored", "never")}
    for name, tensor in weights["stored"].items():
        assert tensor.numpy() == pytest.approx(weights["never"][name].numpy(), rel=1e-2, abs=1e-3)
    assert not (runs["stored"] / "checkpoint").exists()

    succeed(*fill(f"{LINE}{runs['ahead']} --set targets.ahead=true", places))
    assert read_losses(runs["ahead"]) == losses

    cut_off(runs["broken"], LINE + str(runs["broken"]), places, 5)
    assert len(list((runs["broken"] / "checkpoint").glob("teacher-*.npy"))) == 1
    succeed(*fill(f"{LINE}{runs['broken']} --resume", places))
    assert hash_file(runs["broken"] / "student.safetensors") == hash_file(runs["stored"] / "student.safetensors")
