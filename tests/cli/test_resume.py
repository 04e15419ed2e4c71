"""`--resume` and `--auxiliary` on the command line."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from indistill.files.hashing import hash_file
from tests.cli.calls import MAIN, STOP, assert_refused, fill, run_cli, run_process, snapshot, succeed

Refuse = Callable[..., None]
Copy = Callable[[str], Path]
Places = dict[str, Path]

# The commands of the workspace's runs.
OPTIONS = "--data digits/train --recipe digits --epochs 5"
TRAIN = f"train --model paper:cnn-a {OPTIONS}"
COMPRESS = f"compress --teacher {{teacher}} --student paper:cnn-s {OPTIONS}"
CHAIN = (
    "compress --teacher paper:resnet18?width=8 --teacher-weights {resnet} --student paper:cnn-s --data {gallery} "
    "--recipe digits --epochs 7 --auxiliary paper:cnn-a --out {out}"
)


@pytest.mark.parametrize("line", [TRAIN, COMPRESS], ids=["train", "compress"])
def test_there_must_be_a_run_to_resume(places: Places, refuse: Refuse, line: str) -> None:
    refuse(line + " --resume --out {out}", "{out} holds no run that could be resumed: leave --resume out")
    places["out"].mkdir()
    refuse(line + " --resume --out {out}", "{out} holds no run")
    refuse(line + " --resume --overwrite --out {out}", "give one of them")


@pytest.mark.parametrize(("line", "name"), [(TRAIN, "teacher"), (COMPRESS, "run")], ids=["train", "compress"])
def test_a_complete_run_is_left_as_it_is(places: Places, copy: Copy, line: str, name: str) -> None:
    folder = copy(name)
    before = snapshot(folder)
    result = succeed(*fill(f"{line} --resume --out {folder}", places))
    assert result.out == f"{folder}\n"
    assert f"{folder} is complete: there is nothing to resume" in result.err
    assert snapshot(folder) == before


@pytest.mark.parametrize(
    ("option", "difference"),
    [
        ("--lr 0.01", "optimiser.lr was 0.004, is 0.01; optimiser.final_lr was 0.0004, is 0.001"),
        ("--seed 4", "seed was 0, is 4"),
        ("--epochs 6", "schedule.4.epochs was 1, is 2"),
        ("--set curriculum.kind=joint", "curriculum.kind was paper, is joint"),
        ("--student paper:cnn-a", "network.spec was paper:cnn-s, is paper:cnn-a; start was paper:cnn-s,"),
        ("--data digits/test", "data was digits/train, is digits/test; data_fingerprint was"),
    ],
)
def test_a_run_with_other_settings_is_not_resumed(refuse: Refuse, copy: Copy, option: str, difference: str) -> None:
    copy("run")
    refuse(f"{COMPRESS} {option} --resume --out {{copied_run}}", "was begun with other settings", difference)


@pytest.mark.slow
def test_a_run_without_a_checkpoint_begins_anew_and_ends_the_same(places: Places, copy: Copy) -> None:
    folder = copy("run")
    for name in ("student.safetensors", "report.html"):
        (folder / name).unlink()
    with (folder / "metrics.jsonl").open("a") as log:
        log.write('{"epoch": 1, "torn')
    assert_refused(run_cli(*fill(f"{COMPRESS} --out {folder}", places)), "or go on with --resume")
    succeed(*fill(f"{COMPRESS} --resume --out {folder}", places))
    assert hash_file(folder / "student.safetensors") == hash_file(places["run"] / "student.safetensors")
    epochs = [json.loads(line)["epoch"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert epochs == [1, 2, 3, 4, 5]
    assert not (folder / "checkpoint").exists()


def test_a_start_that_was_cut_off_is_no_obstacle(places: Places) -> None:
    places["out"].mkdir()
    for name in ("environment.json", "config.yaml.partial"):
        (places["out"] / name).write_text("cut off")
    line = "train --model paper:cnn-s --data {gallery} --recipe digits --epochs 1 --out {out}"
    succeed(*fill(line, places))
    assert (places["out"] / "model.safetensors").is_file()
    assert not (places["out"] / "config.yaml.partial").exists()


@pytest.mark.slow
def test_an_auxiliary_is_trained_first_and_both_trainings_are_one_run(places: Places) -> None:
    out = places["out"]
    first = succeed(*fill(CHAIN, places))
    assert f"the auxiliary, from the teacher, in {out / 'auxiliary'}" in first.err
    assert "the student, from the auxiliary" in first.err
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert config["teacher"]["spec"] == "paper:resnet18?width=8"
    assert config["auxiliary"]["spec"] == "paper:cnn-a"
    assert config["auxiliary"]["schedule"][0]["epochs"] + sum(p["epochs"] for p in config["schedule"]) == 7
    assert "paper:cnn-a" in (out / "report.html").read_text()
    inner = yaml.safe_load((out / "auxiliary" / "config.yaml").read_text())
    assert (inner["network"]["spec"], inner["teacher"]["spec"]) == ("paper:cnn-a", "paper:resnet18?width=8")
    weights = (out / "student.safetensors").read_bytes()
    assert "is complete" in succeed(*fill(CHAIN + " --resume", places)).err

    # Cut off after the auxiliary, then in it.
    (out / "student.safetensors").unlink()
    succeed(*fill(CHAIN + " --resume", places))
    assert (out / "student.safetensors").read_bytes() == weights
    (out / "student.safetensors").unlink()
    shutil.rmtree(out / "auxiliary")
    succeed(*fill(CHAIN + " --resume", places))
    assert (out / "student.safetensors").read_bytes() == weights

    assert_refused(
        run_cli(*fill(CHAIN + " --resume --auxiliary paper:cnn-s", places)), "auxiliary.spec was paper:cnn-a"
    )
    succeed(*fill(CHAIN.replace("paper:cnn-a", "none") + " --overwrite", places))
    assert not (out / "auxiliary").exists()


@pytest.mark.slow
def test_an_auxiliary_is_chosen_where_teacher_and_student_are_far_apart(places: Places, refuse: Refuse) -> None:
    near = succeed(*fill(CHAIN.replace("--auxiliary paper:cnn-a", "--auxiliary auto") + " --epochs 1", places))
    assert "auxiliary: none, as the teacher has 12 times the student's parameters (not more than 100)" in near.err
    far = CHAIN.replace("{resnet}", "{none}").replace("--teacher-weights {none}", "").replace("?width=8", "?width=32")
    chosen = run_cli(*fill(far.replace("--auxiliary paper:cnn-a", "--auxiliary auto --overwrite --epochs 1"), places))
    assert "auxiliary: paper:cnn-a, as the teacher has 186 times" in chosen.err
    assert chosen.code == 0


@pytest.mark.slow
def test_where_no_auxiliary_is_known_the_teacher_is_narrowed(places: Places, refuse: Refuse) -> None:
    (places["here"] / "tiny.py").write_text(
        "from torch import nn\n\n\ndef build():\n"
        "    return nn.Sequential(nn.Conv2d(3, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 2))\n"
    )
    line = CHAIN.replace("paper:cnn-s", "{here}/tiny.py:build").replace("--auxiliary paper:cnn-a", "--auxiliary auto")
    result = succeed(*fill(line + " --no-warm-up", places))
    found = re.search(r"auxiliary: width:(0\.\d+), as the teacher has ([\d,]+) times", result.err)
    assert found is not None
    assert float(found[1]) == pytest.approx(float(found[2].replace(",", "")) ** -0.25, abs=0.01)
    config = yaml.safe_load((places["out"] / "config.yaml").read_text())
    assert config["auxiliary"]["narrowing"]["width"] == float(found[1])
    assert config["teacher"]["parameters"] > config["auxiliary"]["parameters"] > config["parameters"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--loss kd --set curriculum.auxiliary_epochs=1", "loss 'kd' needs the same classes of both"),
        ("--criterion bn-scale", "bn-scale"),
    ],
    ids=["loss of the first training", "criterion of the second"],
)
def test_a_chain_that_cannot_be_trained_is_refused_before_anything_is_written(
    places: Places, refuse: Refuse, options: str, words: str
) -> None:
    (places["here"] / "between.py").write_text(
        "from torch import nn\n\n\ndef build():\n"
        "    stages = [nn.Conv2d(3, 32, 3, 2, 1), nn.ReLU(), nn.Conv2d(32, 64, 3, 2, 1), nn.ReLU()]\n"
        "    return nn.Sequential(*stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 7))\n"
    )
    line = CHAIN.replace(
        "--auxiliary paper:cnn-a", "--auxiliary {here}/between.py:build --pair 1:stage1 --pair 3:stage2"
    )
    refuse(f"{line} {options}", words)


def test_weights_of_an_auxiliary_need_one(refuse: Refuse) -> None:
    refuse(CHAIN.replace("--auxiliary paper:cnn-a", "--auxiliary-weights {resnet}"), "name it with --auxiliary")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["joint", "reversed", "adaptive", "none"])
def test_every_kind_of_curriculum_is_trained_as_printed(places: Places, kind: str) -> None:
    options = "--set optimiser.schedule=cosine --set optimiser.ema=0.9 --set optimiser.clip=1 --epochs 6"
    line = f"compress --teacher {{teacher}} --student paper:cnn-s --data {{gallery}} --recipe digits {options}"
    result = succeed(
        *fill(f"{line} --set curriculum.kind={kind} --set curriculum.tolerance=0.99 --out {{out}}", places)
    )
    phases = [json.loads(line)["phase"] for line in (places["out"] / "metrics.jsonl").read_text().splitlines()]
    assert len(phases) == 6
    assert (
        phases[0]
        == {
            "joint": "all stages",
            "reversed": "stage 3",
            "adaptive": "stage 1",
            "none": "embedding",
        }[kind]
    )
    assert all(phase in result.err for phase in phases)


@pytest.mark.slow
def test_ctrl_c_before_a_run_begins_says_that_nothing_was_written(places: Places) -> None:
    code = f"{STOP}import indistill.training.devices as place\nplace.start_processes = stop\n{MAIN}"
    for line in (TRAIN, COMPRESS):
        cut = run_process(*fill(line + " --out {out}", places), code=code)
        assert (cut.code, cut.out, cut.err) == (130, "", "interrupted; nothing was written\n")
    assert not places["out"].exists()


@pytest.mark.slow
def test_ctrl_c_in_a_training_says_from_where_resume_goes_on_and_it_does(places: Places) -> None:
    code = f"{STOP}from indistill.training.monitor import TrainingMonitor as monitor\n"
    line = COMPRESS + " --out {out} --checkpoint-every 0"
    first = run_process(*fill(line, places), code=f"{code}monitor.report_batch = stop\n{MAIN}")
    assert first.code == 130
    begins = "there is no checkpoint yet: the same command with --resume begins with the first epoch"
    assert first.err.splitlines()[-1] == f"interrupted; {begins}"
    second = run_process(*fill(line + " --resume", places), code=f"{code}monitor.report_epoch = stop\n{MAIN}")
    assert f"{places['out']} has no checkpoint: the training begins with the first epoch" in second.err
    assert second.err.splitlines()[-1] == "interrupted; the same command with --resume goes on from epoch 2"
    third = succeed(*fill(line + " --resume", places))
    assert "going on after 1 of 5 epochs" in third.err
    assert "no checkpoint" not in third.err
    assert hash_file(places["out"] / "student.safetensors") == hash_file(places["run"] / "student.safetensors")


@pytest.mark.slow
def test_ctrl_c_while_the_student_is_measured_says_that_the_run_is_complete(places: Places) -> None:
    code = f"{STOP}import indistill.cli.closeness as closeness\ncloseness.report_run = stop\n{MAIN}"
    cut = run_process(*fill(COMPRESS + " --out {out}", places), code=code)
    place = places["out"]
    ends = f"interrupted; the run {place} is complete; 'indistill report {place}' measures how close the student is"
    assert cut.err.splitlines()[-1] == ends


@pytest.mark.slow
def test_a_complete_run_is_measured_again_only_where_it_was_not(places: Places, copy: Copy) -> None:
    folder = copy("run")
    line = fill(f"{COMPRESS} --resume --out {folder}", places)
    before = snapshot(folder)
    assert "overlap of the 10 nearest neighbours" in succeed(*line).err
    assert snapshot(folder) == before
    figures = json.loads((folder / "closeness.json").read_text())
    (folder / "closeness.json").write_text(json.dumps(figures | {"weights_sha256": "another"}))
    succeed(*line)
    assert snapshot(folder) == before
