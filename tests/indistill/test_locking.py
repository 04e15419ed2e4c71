from pathlib import Path

import pytest

from indistill.errors import ExistsError, InputError
from indistill.files.locking import hold_lock


def test_a_folder_is_held_by_one_at_a_time(tmp_path: Path) -> None:
    with hold_lock(tmp_path, "run"):
        with pytest.raises(InputError) as caught, hold_lock(tmp_path, "run"):
            pass
        with pytest.raises(ExistsError), hold_lock(tmp_path, "run", ExistsError):
            pass
    assert str(caught.value) == (
        f"the run {tmp_path} is being changed by another process; give the command again when that has ended"
    )
    with hold_lock(tmp_path, "run"):
        pass


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    expected = r"the run .*file cannot be written: "
    with pytest.raises(InputError, match=expected), hold_lock(tmp_path / "file", "run"):
        pass
