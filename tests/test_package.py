"""What an installation contains, and what an import loads."""

import importlib.metadata
import pathlib
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile

import pytest
from paths import ROOT

import s3prl_ofa

HEAVY = ("torch", "torchaudio", "s3prl", "fairseq", "transformers", "librosa")


def in_new_process(code: str, cwd=ROOT) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_is_light():
    """``import s3prl_ofa`` imports neither S3PRL nor fairseq nor torchaudio (nor torch), and has a version."""
    found = in_new_process(f"import s3prl_ofa, sys; print([name for name in {HEAVY} if name in sys.modules])")
    assert found.strip() == "[]"
    assert re.fullmatch(r"\d+\.\d+\.\d+", s3prl_ofa.__version__)


def test_load_needs_no_s3prl(golden_checkpoint):
    """Loading and running a model imports neither S3PRL nor fairseq nor torchaudio, nor torch's compiler, which would
    double the time."""
    code = (
        "import s3prl_ofa, sys, numpy\n"
        f"model = s3prl_ofa.load({str(golden_checkpoint)!r})\n"
        "model.extract([numpy.zeros(16000, numpy.float32)], lambd=0.5)\n"
        f"print([name for name in {[*HEAVY[1:], 'torch._dynamo']} if name in sys.modules])"
    )
    assert in_new_process(code).strip() == "[]"


def test_the_names_of_the_package():
    """The loader and the types of what it gives can be imported from the package itself, and it lists them."""
    from s3prl_ofa import checkpoint, model

    assert s3prl_ofa.load is checkpoint.load and s3prl_ofa.OFAWav2Vec2 is model.OFAWav2Vec2
    assert s3prl_ofa.ExtractOutput is model.ExtractOutput and s3prl_ofa.ModelConfig is model.ModelConfig
    assert set(s3prl_ofa.__all__) == {"ExtractOutput", "ModelConfig", "OFAWav2Vec2", "__version__", "load"}


def test_hub_entries():
    """torch.hub lists every public callable of hubconf.py: the entries and nothing else."""
    code = (
        "import hubconf\n"
        "public = {name for name in dir(hubconf) if callable(getattr(hubconf, name)) and not name.startswith('_')}\n"
        "assert public == set(hubconf.__all__), public"
    )
    in_new_process(code)


def test_unknown_name():
    """An unknown name is an AttributeError."""
    with pytest.raises(AttributeError, match="loda"):
        _ = s3prl_ofa.loda


def sources() -> list[str]:
    """The files that are, or would be, committed."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")
    return [name for name in names if (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> pathlib.Path:
    """The folder of the sdist, built from a copy because building leaves files behind, and of the wheel made of it."""
    copy, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("built")
    for name in sources():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, copy / name)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out)]
    done = subprocess.run(command, cwd=copy, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def wheel(built) -> pathlib.Path:
    (path,) = built.glob("*.whl")
    return path


def test_wheel_is_complete(wheel):
    """Every file of the package, the upstream folder and the task settings is in the wheel, and nothing else is; it is
    small, and says that it is typed."""
    with zipfile.ZipFile(wheel) as file:
        names = {name for name in file.namelist() if ".dist-info/" not in name}
    packaged = [name for name in sources() if name.startswith(("s3prl_ofa/", "upstream/", "downstream_configs/"))]
    assert names == {name if name.startswith("s3prl_ofa/") else f"s3prl_ofa/{name}" for name in packaged}
    assert wheel.stat().st_size < 20_000_000 and "s3prl_ofa/py.typed" in names


def test_sdist_is_complete(built):
    """It holds what the wheel is built from, the pinned versions and the papers, and nothing of tests or benchmarks."""
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as file:
        names = {member.name.partition("/")[2] for member in file.getmembers() if member.isfile()}
    folders = ("s3prl_ofa/", "upstream/", "downstream_configs/")
    expected = {name for name in sources() if name.startswith(folders)}
    expected |= {"setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"}
    expected |= {"constraints.txt", "CHANGELOG.md", "CITATION.cff", "MODEL_CARD.md"}
    assert {name for name in names if ".egg-info/" not in name} - {"PKG-INFO", "setup.cfg"} == expected
    assert path.stat().st_size < 20_000_000


def test_twine_accepts(built):
    command = [sys.executable, "-m", "twine", "check", "--strict", *map(str, built.iterdir())]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.count("PASSED") == 2, done.stdout + done.stderr


def test_wheel_works(wheel, tmp_path):
    """Folders outside the package in the repository are found inside it once installed."""
    with zipfile.ZipFile(wheel) as file:
        file.extractall(tmp_path)
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "import s3prl_ofa.upstream.ofa_wav2vec2, s3prl_ofa.resources as resources\n"
        "from s3prl_ofa.info import BUNDLED_AUDIO\n"
        "from s3prl_ofa.io.audio import find_audio\n"
        f"assert s3prl_ofa.__file__.startswith({str(tmp_path)!r})\n"
        "assert (resources.folder('downstream_configs') / 'sid_mini.yaml').is_file()\n"
        "assert (resources.folder('upstream') / 'ofa_wav2vec2' / 'hubconf.py').is_file()\n"
        "print(len(find_audio(BUNDLED_AUDIO)))"
    )
    assert in_new_process(code, cwd=tmp_path).strip() == "24"


def test_metadata(wheel):
    """Version, licence, Python and the command are in the metadata; S3PRL's version is exact."""
    with zipfile.ZipFile(wheel) as file:
        (folder,) = {name.split("/")[0] for name in file.namelist() if ".dist-info/" in name}
        metadata = file.read(f"{folder}/METADATA").decode()
        entry_points = file.read(f"{folder}/entry_points.txt").decode()
    assert f"\nVersion: {s3prl_ofa.__version__}\n" in metadata
    assert re.search(r"^Requires-Python: (>=3.11,<3.14|<3.14,>=3.11)$", metadata, re.M)
    assert "Requires-Dist: s3prl==0.4.18\n" in metadata and "License" in metadata
    assert "s3prl-ofa = s3prl_ofa.cli:main" in entry_points


def test_constraints_are_what_runs():
    """The versions of constraints.txt are those that these tests run with (a local build such as +cpu counts as the
    same); where they are not, the tests say nothing about them."""
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split() if "==" in line)
    for name in ("torch", "torchaudio", "s3prl"):
        assert name in pins
    other = {}
    for name, version in pins.items():
        try:
            installed = importlib.metadata.version(name).split("+")[0]
        except importlib.metadata.PackageNotFoundError:
            continue
        if installed != version:
            other[name] = (installed, version)
    assert not other, f"installed and pinned versions differ: {other}"


@pytest.mark.parametrize("state", ["no Python", "up to date", "moved"])
def test_environment_script(tmp_path, state):
    """.ci/venv says when there is no fitting Python, leaves an up-to-date environment alone, and remakes one
    that was made elsewhere (its commands name the old place). The Python here is a stand-in that notes what it does."""
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "venv", tmp_path / ".ci")
    for name in ("setup.py", "pyproject.toml", "constraints.txt", "s3prl_ofa/version.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    python = tmp_path / "python"
    python.write_text(
        '#!/bin/sh\necho "$*" >> calls\n'
        'case "$*" in *sys.version_info*) exit $BAD;; *sys.version.split*) echo 3.11;; esac\n'
        f'if [ "$2" = venv ]; then mkdir -p .venv/bin; cp "{python}" .venv/bin/python; fi\n'
    )
    python.chmod(0o755)

    def run(bad: int = 0) -> tuple[int, str, str]:
        (tmp_path / "calls").unlink(missing_ok=True)
        environment = {"PATH": "/usr/bin:/bin", "PYTHON": str(python), "BAD": str(bad)}
        done = subprocess.run([tmp_path / ".ci" / "venv", "test"], env=environment, capture_output=True, text=True)
        return done.returncode, done.stderr, (tmp_path / "calls").read_text()

    if state == "no Python":
        status, said, calls = run(bad=1)
        assert status == 2 and "no Python 3.11 to 3.13" in said and "pip install" not in calls
        return
    status, _, calls = run()
    assert status == 0 and "-m venv .venv" in calls and "-m pip install" in calls and "-e .[test]" in calls
    if state == "moved":
        (tmp_path / ".venv" / "made-by").write_text("elsewhere 3.11\n")
    status, _, calls = run()
    assert status == 0 and ("pip install" in calls) == ("-m venv" in calls) == (state == "moved")


def test_bundled_audio():
    """Small, 16 kHz, laid out as VoxCeleb1 with ids in S3PRL's range, every listed file there and in three splits."""
    import soundfile

    folder = ROOT / "s3prl_ofa" / "demo" / "audio"
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 3_000_000
    rows = [line.split() for line in (folder / "veri_test_class.txt").read_text().splitlines()]
    assert {split for split, _ in rows} == {"1", "2", "3"}
    assert len({name for _, name in rows}) == len(rows) == len(list(folder.rglob("*.opus")))
    speakers = {name.split("/")[0] for _, name in rows}
    assert len(speakers) >= 4 and all(0 <= int(speaker[2:]) - 10001 < 1251 for speaker in speakers)
    for split, name in rows:
        (path,) = folder.glob(f"*/wav/{name}")
        info = soundfile.info(path)
        assert info.samplerate == 16_000 and info.channels == 1 and 2.0 <= info.duration <= 4.5
        assert (split == "3") == (path.relative_to(folder).parts[0] == "test")
    assert "synthe" in (folder / "README.md").read_text()
