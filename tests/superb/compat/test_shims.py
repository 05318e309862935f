"""What S3PRL misses in the current stack: each shim patches what is broken, and nothing else."""

import argparse
import importlib
import io
import subprocess
import sys
import textwrap
import types

import numpy as np
import pytest
import soundfile
import torch

from s3prl_ofa.superb.compat import shims

shims.apply_shims()  # torchaudio may not be importable before


@pytest.fixture
def torchaudio():
    return importlib.import_module("torchaudio")


def python(code: str) -> str:
    """Runs code in a fresh Python; returns what it prints."""
    result = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_s3prl_imports_on_this_stack():
    """All of S3PRL that the tasks need imports, and a second call applies nothing more."""
    code = """
    from s3prl_ofa.superb.compat import shims
    first = shims.apply_shims()
    assert shims.apply_shims() == [] and len(set(first)) == len(first)
    import s3prl.hub, s3prl.run_downstream, s3prl.nn, s3prl.util.audio_info
    import s3prl.downstream.asr.expert, s3prl.downstream.ctc.expert, s3prl.downstream.voxceleb1.expert
    print(*first)
    """
    applied = python(code).split()
    assert set(applied) <= {shim.__name__ for shim in shims.SHIMS}


def test_importing_the_package_imports_nothing_heavy():
    """Importing s3prl_ofa, and s3prl_ofa.superb, imports neither s3prl nor torchaudio."""
    code = """
    import sys
    import s3prl_ofa, s3prl_ofa.superb
    print(*[name for name in ("s3prl", "torchaudio", "fairseq", "huggingface_hub") if name in sys.modules])
    """
    assert python(code) == ""


def test_every_shim_says_why():
    """One list of shims, each with its reason, and the issue in S3PRL's tracker named."""
    assert all(shim.__doc__ for shim in shims.SHIMS)
    assert "issues/575" in shims.ISSUE and shims.ISSUE in shims.__doc__


@pytest.fixture
def fake_torchaudio(tmp_path, monkeypatch):
    """A function that puts a torchaudio with this ``_extension`` where the real one was, until the test ends."""
    real = {name: module for name, module in sys.modules.items() if name.split(".")[0] == "torchaudio"}
    shims.forget_modules("torchaudio")

    def make(extension: str) -> None:
        package = tmp_path / "torchaudio"
        (package / "_extension").mkdir(parents=True)
        (package / "__init__.py").write_text("from . import _extension\nfrom .parts import part\n")
        part = "import torchaudio.early\nfrom ._extension import fail_if_no_align\npart = fail_if_no_align(len)\n"
        (package / "parts.py").write_text(part)
        (package / "early.py").write_text("")
        (package / "_extension" / "__init__.py").write_text("import torchaudio.early\n" + textwrap.dedent(extension))
        monkeypatch.syspath_prepend(str(tmp_path))

    yield make
    shims.forget_modules("torchaudio")
    sys.modules.update(real)


def test_torchaudio_for_another_cuda(fake_torchaudio, monkeypatch):
    """torchaudio refuses a torch of another CUDA version: it is imported all the same, with its native part."""
    monkeypatch.setattr(torch.version, "cuda", "13.2")
    fake_torchaudio("""
        import torch
        if torch.version.cuda is not None and torch.version.cuda != "13.0":
            raise RuntimeError("Detected that PyTorch and TorchAudio were compiled with different CUDA versions.")
        native, fail_if_no_align = True, lambda function: function
    """)
    assert shims.torchaudio_import()
    torchaudio = importlib.import_module("torchaudio")
    assert torchaudio._extension.native and torchaudio.part is len
    assert torch.version.cuda == "13.2"
    assert not shims.torchaudio_import()


def test_torchaudio_for_cuda_beside_torch_without(fake_torchaudio):
    """torchaudio's libraries cannot be loaded: it is imported without them."""
    fake_torchaudio("raise OSError('libc10_cuda.so: cannot open shared object file')")
    assert shims.torchaudio_import()
    torchaudio = importlib.import_module("torchaudio")
    assert torchaudio.early  # imported by the attempt that failed, and by the one that did not
    assert torchaudio.part is len and not torchaudio._extension._IS_TORCHAUDIO_EXT_AVAILABLE


def test_a_working_torchaudio_is_left_alone(fake_torchaudio):
    """Where torchaudio imports, nothing is done."""
    fake_torchaudio("fail_if_no_align = lambda function: function")
    assert not shims.torchaudio_import()


def test_another_failure_of_torchaudio_is_not_hidden(fake_torchaudio):
    """Where torchaudio fails for another reason, its error is raised."""
    fake_torchaudio("raise RuntimeError('something else')")
    with pytest.raises(RuntimeError, match="something else"):
        shims.torchaudio_import()


def test_names_are_added_only_where_they_are_missing(monkeypatch, torchaudio):
    """An older torchaudio and huggingface_hub keep their own functions; on newer ones what S3PRL asks for is there."""
    hub = importlib.import_module("huggingface_hub")
    mark = types.SimpleNamespace(effect_names=list)  # of sox_effects, which would raise an error without libsox
    for module, name, shim in (
        (torchaudio, "set_audio_backend", shims.torchaudio_names),
        (torchaudio, "sox_effects", shims.torchaudio_names),
        (torchaudio, "info", shims.torchaudio_names),
        (hub, "HfFolder", shims.huggingface_hub_names),
    ):
        monkeypatch.setattr(module, name, mark, raising=False)
        monkeypatch.setattr(hub, "Repository", mark, raising=False)
        assert not shim() and getattr(module, name) is mark
        monkeypatch.delattr(module, name)
        if name == "HfFolder":  # huggingface_hub makes its names when they are first asked for
            monkeypatch.setattr(hub, "__getattr__", lambda name: object.__getattribute__(hub, name), raising=False)
        assert shim() and getattr(module, name) is not mark
        assert not shim()


def test_stubs_can_be_imported_and_say_so_when_used(torchaudio, monkeypatch):
    """S3PRL imports names it hardly uses: they are there, and using one without a stand-in is a clear error."""
    monkeypatch.delattr(torchaudio, "sox_effects", raising=False)
    monkeypatch.setitem(sys.modules, "torchaudio.sox_effects", None)
    assert shims.torchaudio_names()
    from torchaudio.sox_effects import apply_effects_tensor

    silent = torch.zeros(1, 10)  # effects are not only there: test_sox_effects.py
    assert apply_effects_tensor(silent, 16_000, [])[0].shape == silent.shape
    with pytest.raises(RuntimeError, match="huggingface_hub.HfFolder"):
        shims.Removed("huggingface_hub.HfFolder").get_token()
    assert not hasattr(shims.Removed("x"), "__wrapped__")


def test_load_is_replaced_only_without_torchcodec(monkeypatch, torchaudio):
    """torchaudio.load keeps its own reader where TorchCodec works and on torchaudio before 2.9."""
    own = object()
    monkeypatch.setattr(torchaudio, "load", own)
    monkeypatch.setattr(torchaudio, "load_with_torchcodec", own, raising=False)
    monkeypatch.setattr(shims, "torchcodec_works", lambda: True)
    assert not shims.torchaudio_load() and torchaudio.load is own
    monkeypatch.setattr(shims, "torchcodec_works", lambda: False)
    assert shims.torchaudio_load() and torchaudio.load is shims.load_audio
    assert not shims.torchaudio_load()
    monkeypatch.setattr(torchaudio, "load", own)
    monkeypatch.delattr(torchaudio, "load_with_torchcodec")
    assert not shims.torchaudio_load() and torchaudio.load is own


def test_torchcodec_without_ffmpeg_does_not_work(monkeypatch):
    """TorchCodec that is there and cannot load its libraries counts as missing."""
    monkeypatch.setitem(sys.modules, "torchcodec", None)
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)
    assert not shims.torchcodec_works()
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", types.ModuleType("torchcodec.decoders"))
    assert shims.torchcodec_works()


@pytest.fixture
def stereo(tmp_path):
    wave = (np.arange(2000).reshape(1000, 2) * 10 - 10000).astype(np.int16)
    soundfile.write(tmp_path / "a.wav", wave, 16000, subtype="PCM_16")
    return tmp_path / "a.wav", wave


def test_load_reads_as_torchaudio_did(stereo):
    """The wave as float32 (channels, samples) and its rate; offset, number, orientation, integers, file objects."""
    path, wave = stereo
    expected = torch.from_numpy(wave.astype(np.float32) / 32768).T
    loaded, rate = shims.load_audio(path)
    assert rate == 16000 and loaded.dtype == torch.float32 and loaded.is_contiguous() and torch.equal(loaded, expected)
    assert torch.equal(shims.load_audio(str(path), channels_first=False)[0], expected.T)
    assert torch.equal(shims.load_audio(path, frame_offset=100, num_frames=50)[0], expected[:, 100:150])
    assert torch.equal(shims.load_audio(path, 990, 50)[0], expected[:, 990:])
    assert shims.load_audio(path, frame_offset=5000)[0].shape == (2, 0)
    integers = shims.load_audio(path, normalize=False)[0]
    assert integers.dtype == torch.int16 and torch.equal(integers, torch.from_numpy(wave).T)
    assert torch.equal(shims.load_audio(io.BytesIO(path.read_bytes()))[0], expected)


def test_info_measures_as_torchaudio_did(stereo, tmp_path):
    """Rate, samples a channel, channels, bits and encoding, by the names torchaudio gave."""
    info = shims.audio_info(str(stereo[0]))
    assert (info.sample_rate, info.num_frames, info.num_channels) == (16000, 1000, 2)
    assert (info.bits_per_sample, info.encoding) == (16, "PCM_S")
    soundfile.write(tmp_path / "a.flac", stereo[1], 8000)
    assert shims.audio_info(tmp_path / "a.flac", format="flac")[:] == (8000, 1000, 2, 16, "FLAC")


def test_checkpoints_with_a_namespace_load(tmp_path):
    """S3PRL's checkpoints keep argparse.Namespace: torch.load takes it, and still nothing else."""
    torch.save({"Args": argparse.Namespace(lr=1)}, tmp_path / "states-1.ckpt")
    code = f"""
    import torch
    from s3prl_ofa.superb.compat import shims
    print(shims.namespace_in_checkpoints(), shims.namespace_in_checkpoints())
    print(torch.load({str(tmp_path / "states-1.ckpt")!r}, weights_only=True)["Args"].lr)
    """
    assert python(code).split() == ["True", "False", "1"]


def test_pkg_resources_is_put_back_for_dcase_util_alone(monkeypatch):
    """Newer setuptools have no pkg_resources: where dcase_util will import it there is one, elsewhere none."""
    there = {"pkg_resources": None, "dcase_util": object()}
    monkeypatch.setattr(shims.importlib.util, "find_spec", there.get)
    monkeypatch.delitem(sys.modules, "pkg_resources", raising=False)
    assert shims.pkg_resources_module()
    import pkg_resources

    with pytest.raises(RuntimeError, match="pkg_resources.require"):
        pkg_resources.require("dcase_util")
    for pkg, dcase in ((object(), object()), (None, None)):
        there.update(pkg_resources=pkg, dcase_util=dcase)
        assert not shims.pkg_resources_module()
    del sys.modules["pkg_resources"]  # the stand-in; monkeypatch would put it back


def test_the_cpu_beside_a_card(monkeypatch):
    """S3PRL's runner selects --device as a CUDA device where there is one, in which the CPU must do nothing; without
    a card the runner keeps its own torch."""
    runner = types.ModuleType("runner")
    runner.torch = torch
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    shims.cpu_beside_cuda(runner)
    assert runner.torch is torch
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device", lambda device: f"selected {device}")
    shims.cpu_beside_cuda(runner)
    with runner.torch.cuda.device("cpu"), runner.torch.cuda.device(torch.device("cpu")):
        assert runner.torch.cuda.is_available() and runner.torch.zeros(1).device.type == "cpu"
    for device in ("cuda:1", "cuda", 0):
        assert runner.torch.cuda.device(device) == f"selected {device}"
