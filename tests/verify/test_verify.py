"""``s3prl-ofa verify``: a good checkpoint passes, a damaged or odd one fails the check that is meant for it."""

import dataclasses
import json
import re

import pytest
import torch
from paths import CKPT, DEMO, REF_TINY

import s3prl_ofa
from s3prl_ofa import cli
from s3prl_ofa.checkpoint import read_checkpoint
from s3prl_ofa.model import ModelConfig, OFAWav2Vec2
from s3prl_ofa.verify import checks
from s3prl_ofa.verify.checks import Subject, check_alpha, check_dtype, check_fairseq, check_padding, run_checks

BIAS = "cif_subsampler.alpha_fn.layer.2.bias"
SPEAKER = DEMO / "audio" / "test" / "wav" / "id10001"
NAMES = ["format", "size", "alpha", "rates", "padding", "float64", "bfloat16", "fairseq"]


@pytest.fixture
def verify(tmp_path, capsys):
    """A function (checkpoint, arguments) -> (exit status, checks by name, what was printed)."""

    def run(ckpt, *arguments):
        status = cli.main(["verify", str(ckpt), "--json", str(tmp_path / "found.json"), *map(str, arguments)])
        found = json.loads((tmp_path / "found.json").read_text())
        assert found["passed"] is (status == 0)
        return status, {check["name"]: check for check in found["checks"]}, capsys.readouterr().out

    return run


@pytest.fixture
def speech(make_wave):
    return [make_wave(seconds, seed) for seed, seconds in enumerate((2.0, 1.5, 1.1))]


@pytest.fixture
def changed(tmp_path, speech):
    """A function (changed weights, changed config) -> the golden checkpoint with them, as a subject of checks."""

    def make(weights=None, **config):
        checkpoint = read_checkpoint(CKPT)
        checkpoint = dataclasses.replace(
            checkpoint,
            config=dataclasses.replace(checkpoint.config, **config),
            weights=checkpoint.weights | (weights or {}),
        )
        if checkpoint.config.compressor == "none":
            checkpoint.weights = {name: w for name, w in checkpoint.weights.items() if not name.startswith("cif_")}
        model = OFAWav2Vec2(checkpoint.config)
        model.load_weights(checkpoint.weights)
        return Subject(checkpoint, model, speech)

    return make


def test_a_good_checkpoint(verify):
    """Everything is checked and passes, here on a folder of one speaker; the curve is printed beside the published
    one."""
    status, found, printed = verify(CKPT, "--audio", SPEAKER)
    assert status == 0 and list(found) == NAMES
    assert {check["state"] for check in found.values()} == {"passed"}, found
    assert found["format"]["found"]["fingerprint"] == s3prl_ofa.load(CKPT).fingerprint()
    assert [row["lambd"] for row in found["rates"]["found"]["table"]] == [step / 10 for step in range(11)]
    assert re.search(r"^  1.0 .* 90.0$", printed, re.M) and "The checkpoint is what it claims" in printed


@pytest.mark.slow
def test_the_bundled_checkpoint(verify):
    """tiny passes, on the bundled audio."""
    status, found, printed = verify("tiny")
    assert "bundled (synthetic speech)" in printed
    assert status == 0 and found["size"]["found"]["published_size"] == "neither", found


def test_a_damaged_file(verify, tmp_path):
    """It fails at once, with the reason of the reader; a missing one is bad use."""
    content = bytearray(REF_TINY.read_bytes())
    content[len(content) // 2] ^= 0xFF
    (tmp_path / "damaged.pt").write_bytes(content)
    status, found, printed = verify(tmp_path / "damaged.pt")
    assert status == 1 and list(found) == ["format"] and "damaged" in found["format"]["text"]
    assert "The checkpoint is not what it claims: format" in printed
    assert cli.main(["verify", str(tmp_path / "none.pt")]) == 2


@pytest.mark.parametrize("bias", [-30.0, 30.0])
def test_alpha_that_is_zero_or_saturated(bias, changed):
    """It fails alpha and rates: no frame would ever fire, or none would be merged."""
    found = {check.name: check for check in run_checks(changed({BIAS: torch.tensor([bias])}))}
    assert found["alpha"].state == found["rates"].state == "failed"
    assert found["padding"].state == found["float64"].state == "passed"


def test_alpha_that_is_a_constant(changed):
    """It fails: its frames do not follow the speech."""
    name = BIAS.replace("bias", "weight")
    found = check_alpha(changed({name: torch.zeros(1, 32), BIAS: torch.tensor([-1.2])}))
    assert found.state == "failed" and "deviation 0.000" in found.text


def test_features_that_bfloat16_changes(changed):
    """Weights beside which bfloat16 loses the speech fail there, and only there."""
    weights, first, second = read_checkpoint(CKPT).weights, "encoder.layers.0.fc1", "encoder.layers.0.fc2"
    offset = 1000 * weights[f"{second}.weight"].sum(1)  # taken away again
    changes = {f"{first}.bias": weights[f"{first}.bias"] + 1000, f"{second}.bias": weights[f"{second}.bias"] - offset}
    subject = changed(changes)
    assert check_dtype(subject, torch.bfloat16, checks.BFLOAT16).state == "failed"
    assert check_dtype(subject, torch.float64, 1e-3).state == check_padding(subject).state == "passed"


def test_features_that_are_not_finite(changed):
    """A model whose features overflow fails every comparison; a NaN is not taken for a small error."""
    names = [f"encoder.layers.0.{name}.weight" for name in ("fc1", "fc2")]
    subject = changed({name: 1e25 * read_checkpoint(CKPT).weights[name] for name in names})
    found = [check_padding(subject), check_dtype(subject, torch.float64, 1e-3)]
    assert [one.state for one in found] == ["failed"] * 2 and "not finite" in found[0].text


def test_features_that_padding_changes(changed, monkeypatch):
    """A model whose features depend on their batch fails."""
    subject = changed()
    extract = OFAWav2Vec2.extract

    def leaky(model, waves, *args, **kwargs):
        return extract(model, [wave + 1e-2 * (len(waves) - 1) * wave for wave in waves], *args, **kwargs)

    assert check_padding(subject).state == "passed"
    monkeypatch.setattr(OFAWav2Vec2, "extract", leaky)
    found = check_padding(subject)
    assert found.state == "failed" and found.found["relative_error"] > 1e-4


def test_other_features_than_fairseq(changed):
    """A model that computes something else than fairseq with the same weights fails there."""
    pytest.importorskip("fairseq")
    subject = changed()
    assert check_fairseq(subject).state == "passed"
    with torch.no_grad():
        subject.model.encoder.layers[1].fc2.bias[0] += 1
    assert check_fairseq(subject).state == "failed"


@pytest.mark.parametrize("pooling", [1, 3])
def test_without_a_compressor(pooling, changed):
    """A plain wav2vec 2.0, or one trained with average pooling, has no rates to check; the rest is checked."""
    found = {check.name: check for check in run_checks(changed(compressor="none", pooling=pooling))}
    states = {name: check.state for name, check in found.items()}
    assert states.pop("alpha") == states.pop("rates") == "skipped" and set(states.values()) == {"passed"}, found
    assert found["alpha"].text == f"no compressor: {20 * pooling} ms only"


def test_without_fairseq(changed, monkeypatch):
    """What cannot be compared is skipped, which is no failure."""
    monkeypatch.setattr(checks.importlib.util, "find_spec", lambda name: None)
    assert check_fairseq(changed()).state == "skipped"


def test_published_sizes(tmp_path, speech):
    """Base and Large are recognised by their shape."""
    shape = checks.SIZES["Base"]
    subject = Subject(None, torch.nn.Module(), speech)
    subject.model.config = dataclasses.replace(shape, compressor="cif")
    assert checks.check_size(subject).found["published_size"] == "Base"
    subject.model.config = ModelConfig(dim=32, ffn_dim=64, heads=4, layers=1)
    assert "neither Base nor Large" in checks.check_size(subject).text
