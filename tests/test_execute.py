"""``s3prl-ofa exec``: other tools with the shims and the upstream in place."""

import os
import pathlib
import re
import subprocess
import sys

import pytest
import soundfile
import torch
import yaml
from paths import ROOT

from s3prl_ofa import cli, load
from s3prl_ofa.io.audio import load_speech
from s3prl_ofa.resources import AUDIO

SPEECH = AUDIO / "dev" / "wav"
ESPNET = pathlib.Path(sys.prefix) / "espnet"
needs_espnet = pytest.mark.skipif(not ESPNET.exists(), reason="ESPnet is not installed: see .ci/venv")


def run(folder: pathlib.Path, *arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "s3prl_ofa", "exec", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ESPNET)}
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment)


def test_arguments_and_status(tmp_path, monkeypatch, capsys):
    """The module is run as a program, with its arguments as they are, and ends with its own status; what torchaudio
    and pandas have dropped is there."""
    (tmp_path / "tool_of_a_user.py").write_text(
        "import sys, torchaudio, pandas\n"
        "assert __name__ == '__main__' and torchaudio.sox_effects and torchaudio.load\n"
        "assert list(pandas.Series([1], ['a']).iteritems()) == [('a', 1)]\n"
        "print(sys.argv[0].endswith('tool_of_a_user.py'), sys.argv[1:])\n"
        "sys.exit(7)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(SystemExit) as end:
        cli.main(["exec", "tool_of_a_user", "--help", "--quiet", "a=b", "-v"])
    assert end.value.code == 7
    assert capsys.readouterr().out == "True ['--help', '--quiet', 'a=b', '-v']\n"


@pytest.mark.slow
def test_fairseq_has_the_plugin(tmp_path):
    """fairseq's command knows our models without common.user_dir."""
    done = run(tmp_path, "fairseq_cli.hydra_train", "--cfg", "job", "model=ofa_wav2vec_ctc")
    assert done.returncode == 0 and yaml.safe_load(done.stdout)["model"]["frame_period_ms"] is None, done.stderr


@pytest.mark.parametrize("module", ["no_such_tool", "no_such.tool", "s3prl.no_such_tool"])
def test_no_such_module(module, capsys):
    assert cli.main(["exec", module]) == 2
    assert f"error: there is no module {module} to run" in capsys.readouterr().err


@pytest.fixture
def fluent(tmp_path) -> pathlib.Path:
    """Bundled speech laid out as Fluent Speech Commands: the speaker is the action."""
    (tmp_path / "fluent" / "data").mkdir(parents=True)
    for split, folder in {"train": "train", "valid": "dev", "test": "dev"}.items():
        lines = ["path,speakerId,transcription,action,object,location"]
        for speaker in ("id10001", "id10002"):
            for path in sorted((SPEECH / speaker / folder).glob("*.opus"))[:2]:
                name = f"{speaker}-{split}-{path.stem}.wav"
                soundfile.write(tmp_path / "fluent" / name, load_speech(path)[:16_000], 16_000)
                lines.append(f"{name},{speaker},x,{speaker},none,none")
        (tmp_path / "fluent" / "data" / f"{split}_data.csv").write_text("\n".join(lines) + "\n")
    return tmp_path / "fluent"


@pytest.mark.slow
def test_an_s3prl_main_recipe(fluent, tmp_path):
    """Intent classification by S3PRL's newer recipes trains, validates and tests at lambd 0.5."""
    upstream = ["--build_upstream.name", "ofa_wav2vec2", "--build_upstream.path_or_url", "tiny"]
    upstream += ["--build_upstream.extra_conf.lambd", 0.5, "--build_upstream.extra_conf.output_frames", "native"]
    steps = [text for name in ("total_steps", "eval_step", "save_step") for text in (f"--train.{name}", 2)]
    where = ["--target_dir", "result", "--prepare_data.dataset_root", fluent, "--device", "cpu", "--num_workers", 0]
    done = run(tmp_path, "s3prl.main", "SuperbIC", *where, *upstream, *steps)
    assert done.returncode == 0, done.stderr[-3000:]
    (result,) = (tmp_path / "result").rglob("result.yaml")
    assert 0 <= yaml.safe_load(result.read_text())["accuracy"] <= 1
    assert (tmp_path / "result" / "train" / "step_2").is_dir()


FRONTEND = """
import torch
from espnet2.asr.frontend.s3prl import S3prlFrontend

extra = {"lambd": 0.5, "output_frames": "native"}
frontend = S3prlFrontend(
    frontend_conf={"upstream": "ofa_wav2vec2", "path_or_url": "tiny", "extra_conf": extra}, multilayer_feature=True
)
waves = torch.load("waves.pt")
frames, lengths = frontend(waves, torch.tensor([waves.shape[1], 16_000]))
frames.sum().backward()
torch.save({"frames": frames, "lengths": lengths}, "frames.pt")
"""


@pytest.mark.slow
@needs_espnet
def test_espnets_frontend(tmp_path):
    """ESPnet's S3PRL frontend gives the frames of the rate with their lengths."""
    (tmp_path / "tool.py").write_text(FRONTEND)
    waves = torch.randn(2, 32_000) / 10
    torch.save(waves, tmp_path / "waves.pt")
    done = run(tmp_path, "tool")
    assert done.returncode == 0, done.stderr[-3000:]
    saved = torch.load(tmp_path / "frames.pt")
    expected = load("tiny").extract([waves[0], waves[1, :16_000]], lambd=0.5)
    assert saved["lengths"].tolist() == expected.lengths.tolist()
    mean = torch.stack(expected.hidden_states).mean(0)  # the featurizer's weights begin equal
    for row, other, length in zip(saved["frames"], mean, expected.lengths.tolist(), strict=True):
        torch.testing.assert_close(row[:length], other[:length], rtol=0, atol=1e-4)


@pytest.fixture
def espnet_data(tmp_path) -> list[str]:
    """Four utterances of bundled speech as ESPnet's recipes prepare them, with text that is made up; the options that
    name them."""
    paths = sorted(SPEECH.rglob("*.opus"))[:4]
    for index, path in enumerate(paths):
        soundfile.write(tmp_path / f"{index}.wav", load_speech(path)[:32_000], 16_000)
    for name, value in {"wav.scp": "{0}.wav", "text": "AB AB", "speech_shape": "32000"}.items():
        lines = [f"utterance{index} {value.format(index)}\n" for index in range(len(paths))]
        (tmp_path / name).write_text("".join(lines))
    (tmp_path / "tokens.txt").write_text("<blank>\n<unk>\n<space>\nA\nB\n<sos/eos>\n")
    options = ["--token_type", "char", "--token_list", "tokens.txt"]
    for split in ("train", "valid"):
        for data in ("wav.scp,speech,sound", "text,text,text"):
            options += [f"--{split}_data_path_and_name_and_type", data]
        options += [f"--{split}_shape_file", "speech_shape"]
    return options


@pytest.mark.slow
@needs_espnet
def test_espnets_trainer(espnet_data, tmp_path):
    """The configuration of the documentation trains for two updates and is validated: the upstream stays as it is, and
    the layer weights, the encoder and CTC learn."""
    page = (ROOT / "docs" / "how-to" / "integrations.md").read_text("utf-8")
    (config,) = re.findall(r"```yaml\n(# train\.yaml\n.*?)```", page, re.S)
    (tmp_path / "train.yaml").write_text(config.replace("checkpoint.pt", "tiny"))
    sizes = ["--max_epoch", 1, "--num_iters_per_epoch", 2, "--batch_type", "unsorted", "--batch_size", 2]
    sizes += ["--ngpu", 0, "--num_workers", 0, "--seed", 1]
    where = ["--config", "train.yaml", "--output_dir", "exp"]
    done = run(tmp_path, "espnet2.bin.asr_train", *where, *espnet_data, *sizes)
    assert done.returncode == 0, done.stderr[-3000:]
    trained = torch.load(tmp_path / "exp" / "1epoch.pth", weights_only=True)
    assert trained["frontend.featurizer.weights"].count_nonzero() > 0  # they begin as zeros
    prefix, ours = "frontend.upstream.upstream.model.", load("tiny").state_dict()
    stored = {name.removeprefix(prefix): value for name, value in trained.items() if name.startswith(prefix)}
    assert stored.keys() == ours.keys() and all(torch.equal(stored[name], ours[name]) for name in ours)
    assert all(value.isfinite().all() for value in trained.values())
