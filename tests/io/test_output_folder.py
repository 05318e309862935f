"""Output folders: locked, cleared of what a killed process left, and never with results of different settings."""

import pytest

from s3prl_ofa.errors import UsageError
from s3prl_ofa.io import locks
from s3prl_ofa.io.files import atomic_path
from s3prl_ofa.io.output_folder import check_settings, locked_folder, remove_results, write_settings


def open_folder(folder):
    return locked_folder(folder, f"--out {folder}", ["**/.*"])


def test_one_process_at_a_time(tmp_path):
    """The folder is made, is refused while it is in use, and keeps no lock file."""
    folder = tmp_path / "new" / "out"
    with open_folder(folder), pytest.raises(UsageError, match=f"^--out {folder} is in use by another"):
        open_folder(folder).__enter__()
    assert not list(folder.iterdir())


def test_a_folder_that_cannot_be_made(tmp_path):
    """It is refused by name, with the system's reason."""
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"^--out .*file/out cannot be written \(Not a directory\)"):
        open_folder(tmp_path / "file" / "out").__enter__()


def test_leftovers(tmp_path):
    """Only names that atomic_path makes are removed; a user's hidden files stay."""
    (tmp_path / "a").mkdir()
    with pytest.raises(KeyboardInterrupt), atomic_path(tmp_path / "a" / "x.y.pt") as temporary:
        name = temporary.name
        raise KeyboardInterrupt
    for left in (name, ".hidden", ".x.pt", ".x.toolongname.pt"):
        (tmp_path / "a" / left).touch()
    with open_folder(tmp_path):
        assert {path.name for path in (tmp_path / "a").iterdir()} == {".hidden", ".x.pt", ".x.toolongname.pt"}


def test_without_locks(tmp_path, monkeypatch, caplog):
    """A file system without locks can be written all the same, with a warning."""
    monkeypatch.setattr(locks, "fcntl", None)
    with open_folder(tmp_path):
        assert "has no locks" in caplog.text


def test_settings(tmp_path):
    """Given settings must be those of the results; with force the results of others go, and nothing else."""
    assert check_settings(tmp_path, {"a": 1}, ["result"]) is None
    write_settings(tmp_path, {"a": 1, "b": 2})
    for name in ("result", "other"):
        (tmp_path / name).touch()
    assert check_settings(tmp_path, {"a": 1}, ["result"]) == {"a": 1, "b": 2}
    with pytest.raises(UsageError, match="holds results made with a 1, not 3; give --force"):
        check_settings(tmp_path, {"a": 3}, ["result"])
    assert check_settings(tmp_path, {"a": 3}, ["result"], force=True) is None
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_results_of_something_else(tmp_path):
    """Results without settings are never touched, with force neither."""
    (tmp_path / "result").mkdir()
    with pytest.raises(UsageError, match="without settings.json, not made here"):
        check_settings(tmp_path, {}, ["result"], force=True)
    write_settings(tmp_path, {"editor": "vi"})
    with pytest.raises(UsageError, match="settings.json is a file of another program or command; give another --out"):
        check_settings(tmp_path, {"a": 1}, ["result"], force=True)
    remove_results(tmp_path, ["result", "missing"])
    assert not list(tmp_path.iterdir())
