"""link and unlink add the upstream's folder to a source checkout of S3PRL and remove it."""

import importlib.util
import os
import pathlib
import shutil
import subprocess
import sys

import pytest
import yaml
from paths import REF_TINY, ROOT
from superb_corpora import make_voxceleb1

from s3prl_ofa import cli
from s3prl_ofa.errors import UsageError
from s3prl_ofa.resources import folder
from s3prl_ofa.superb.compat import link as linking
from s3prl_ofa.superb.compat import shims
from s3prl_ofa.superb.tasks.configs import resolve_config

STEPS = "config.runner.total_steps=1,,config.runner.save_step=1"


def installed_s3prl() -> pathlib.Path:
    return pathlib.Path(importlib.util.find_spec("s3prl").submodule_search_locations[0])


@pytest.fixture(autouse=True)
def torchaudio_works(request, monkeypatch):
    """The check takes a second, so only its own test runs it."""
    if "torchaudio" not in request.node.name:
        monkeypatch.setattr(linking, "torchaudio_problem", lambda package: None)


@pytest.fixture
def checkout(tmp_path):
    """S3PRL as in a source checkout: the package in a folder s3prl, beside a setup.py."""
    root = tmp_path / "checkout"
    root.mkdir()
    (root / "setup.py").write_text("")
    shutil.copytree(installed_s3prl(), root / "s3prl", ignore=shutil.ignore_patterns("__pycache__"))
    return root


@pytest.fixture
def bare(tmp_path):
    """Only the files by which a checkout is recognized."""
    package = tmp_path / "bare" / "s3prl"
    for name in linking.CHECKOUT_FILES:
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(installed_s3prl() / name, package / name)
    return package.parent


def contents(root: pathlib.Path) -> dict:
    return {
        str(path.relative_to(root)): os.readlink(path) if path.is_symlink() else path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_symlink() or path.is_file()
    }


def test_link_and_unlink_leave_no_trace(bare):
    """unlink restores the checkout byte for byte, whether the checkout or its s3prl folder is named."""
    (bare / "s3prl" / "hub.py").chmod(0o640)
    before = contents(bare)
    target = linking.link(bare)
    assert target == bare / "s3prl" / "upstream" / "ofa_wav2vec2"
    assert {"__init__.py", "hubconf.py", "expert.py"} <= {path.name for path in target.iterdir()}
    changed = contents(bare)
    different = {name for name in changed if changed.get(name) != before.get(name)} - {"s3prl/hub.py"}
    assert all(name.startswith("s3prl/upstream/ofa_wav2vec2/") for name in different)
    linking.link(bare)  # again: nothing more
    assert contents(bare) == changed
    linking.unlink(bare / "s3prl")
    assert contents(bare) == before
    assert (bare / "s3prl" / "hub.py").stat().st_mode & 0o777 == 0o640
    with pytest.raises(UsageError, match="not linked"):
        linking.unlink(bare)


def test_a_folder_of_another_version(bare):
    """It is updated with --force alone."""
    before, target = contents(bare), linking.link(bare)
    (target / "expert.py").write_text("# of an older version\n")
    with pytest.raises(UsageError, match="--force"):
        linking.link(bare)
    linking.link(bare, force=True)
    assert (target / "expert.py").read_bytes() == (folder("upstream") / "ofa_wav2vec2" / "expert.py").read_bytes()
    linking.unlink(bare)
    assert contents(bare) == before


@pytest.mark.parametrize("kind", ["folder", "link"])
def test_a_folder_of_someone_else_stays(bare, tmp_path, kind):
    """A folder or link of that name that is not ours is neither overwritten, even with force, nor removed."""
    target = bare / "s3prl" / "upstream" / "ofa_wav2vec2"
    if kind == "folder":
        target.mkdir()
        (target / "expert.py").write_text("# theirs\n")
    else:
        (tmp_path / "theirs").mkdir()
        target.symlink_to(tmp_path / "theirs")
    before = contents(bare)
    for refused in (lambda: linking.link(bare, force=True), lambda: linking.unlink(bare)):
        with pytest.raises(UsageError, match="ofa_wav2vec2"):
            refused()
    assert contents(bare) == before


def test_what_is_no_checkout_is_refused(tmp_path, bare):
    """A missing folder, another folder, the installed S3PRL, a hub.py of another kind: refused, nothing written."""
    with pytest.raises(UsageError, match="no folder"):
        linking.link(tmp_path / "nowhere")
    (tmp_path / "other").mkdir()
    with pytest.raises(UsageError, match="not a checkout"):
        linking.link(tmp_path / "other")
    shutil.copytree(bare, tmp_path / "site-packages")
    with pytest.raises(UsageError, match="installed S3PRL"):
        linking.link(tmp_path / "site-packages")
    (bare / "s3prl" / "hub.py").write_text("# upstreams are found some other way\n")
    before = contents(bare)
    with pytest.raises(UsageError, match="hub.py"):
        linking.link(bare)
    assert contents(bare) == before


def test_a_torchaudio_that_cannot_be_imported_is_said(bare, caplog, capsys, monkeypatch, tmp_path):
    """The checkout's own script imports torchaudio first: where that fails, linking does not say that it works."""
    (tmp_path / "torchaudio.py").write_text("raise OSError('libtorch_cuda.so: cannot open shared object file')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert cli.main(["link", str(bare)]) == 0
    said = [record for record in caplog.records if record.name == linking.logger.name]
    assert [record.levelname for record in said] == ["WARNING"] and not capsys.readouterr().out
    assert all(words in said[0].getMessage() for words in ("libtorch_cuda.so", "s3prl-ofa run_downstream works"))
    caplog.clear()
    (tmp_path / "torchaudio.py").write_text("")
    assert cli.main(["link", str(bare)]) == 0
    assert not caplog.records and "now works" in capsys.readouterr().out


def test_the_commands_say_what_they_did(bare, capsys):
    """s3prl-ofa link and unlink take their arguments and end with one line; with --quiet they print nothing."""
    target = bare / "s3prl" / "upstream" / "ofa_wav2vec2"
    for option in ([], ["--quiet"]):
        said = []
        for command in ("link", "unlink"):
            assert cli.main([command, str(bare), *option]) == 0
            said += capsys.readouterr().out.splitlines()
        assert [line.partition(" is ")[0] for line in said] == ([] if option else [str(target), str(bare / "s3prl")])
    with pytest.raises(UsageError):
        linking.unlink(bare)


@pytest.mark.slow
def test_a_linked_checkout_runs_by_itself(checkout, tmp_path):
    """In a linked checkout its own run_downstream.py takes -u ofa_wav2vec2 -k REF_TINY, here SID on native frames.

    The first thing it imports is torchaudio, which must work by itself there; where it does not (torchaudio for CUDA
    beside a torch without it), a sitecustomize patches that here. The rest of the current stack is our upstream's task.
    """
    linking.link(checkout)
    make_voxceleb1(tmp_path)
    roots = {"voxceleb1": str(tmp_path / "VoxCeleb1"), "prepared": str(tmp_path / "prepared")}
    (tmp_path / "sid.yaml").write_text(yaml.safe_dump(resolve_config("sid", None, True, roots)))
    # as a lone script, so that our package is not there before S3PRL's hub imports it
    patch = f"import runpy\nrunpy.run_path({shims.__file__!r})['torchaudio_import']()\n"
    (checkout / "sitecustomize.py").write_text(patch)
    repo = ROOT
    command = [sys.executable, "run_downstream.py", "-m", "train", "-u", "ofa_wav2vec2", "-k", str(REF_TINY)]
    command += ["-g", "{lambd: 0.5, output_frames: native}", "-d", "voxceleb1", "-c", str(tmp_path / "sid.yaml")]
    command += ["-p", str(tmp_path / "exp"), "--device", "cpu", "-o", STEPS]
    result = subprocess.run(
        command,
        cwd=checkout / "s3prl",
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(checkout), str(repo)])},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "exp" / "states-1.ckpt").is_file()
    assert (checkout / "s3prl" / "downstream" / "voxceleb1" / ".cache").is_dir()  # it is the checkout that ran
