"""`index build` on a cluster: what is refused before anything is done."""

from pathlib import Path

import pytest

from tests.cli.calls import MAIN, assert_refused, fill, run_cli, run_process

Places = dict[str, Path]
WITHOUT_RAY = f"import sys; sys.modules['ray'] = None; {MAIN}"
BUILD = "index build {gallery} --model {model} --out {out}"


@pytest.mark.parametrize("options", ["", " --shards 3", " --address auto"])
def test_without_ray_the_command_says_what_to_install(places: Places, options: str) -> None:
    result = run_process(*fill(f"{BUILD} --engine ray{options}", places), code=WITHOUT_RAY)
    assert_refused(result, "pip install 'indistill[ray]'")
    assert not places["out"].exists()


@pytest.mark.parametrize("option", ["--shards 3", "--address auto", "--embeddings kept"])
def test_options_of_a_cluster_need_its_engine(places: Places, option: str) -> None:
    assert_refused(run_cli(*fill(f"{BUILD} {option}", places)), option.split()[0], "--engine ray")
    assert not places["out"].exists()


@pytest.mark.parametrize(
    ("shards", "there"), [("", "shards.json"), (" --shards 2", "CURRENT"), (" --shards 2", "notes")]
)
def test_an_index_of_the_other_kind_is_not_replaced(places: Places, tmp_path: Path, shards: str, there: str) -> None:
    (tmp_path / there).write_text("00000001\n")
    line = f"index build {{gallery}} --model {{model}} --out {tmp_path} --engine ray --overwrite{shards}"
    assert_refused(run_cli(*fill(line, places)), f"{tmp_path} exists and is not a")
    assert [path.name for path in tmp_path.iterdir()] == [there]
