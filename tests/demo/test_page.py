"""``s3prl-ofa demo`` without a browser: what it refuses, and what its page contains."""

import socket
import sys

import numpy as np
import pytest

from s3prl_ofa import cli
from s3prl_ofa.demo import page, view
from s3prl_ofa.demo.figures import WIDTH


@pytest.fixture(autouse=True)
def environment_as_before(monkeypatch):
    """The command sets this variable for its own process."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", "")


@pytest.fixture
def utterance(golden_model, make_wave):
    return view.analyse(golden_model, make_wave(1.0))


@pytest.mark.parametrize("missing", ["gradio", "matplotlib"])
def test_missing_extra(missing, monkeypatch, capsys):
    """Without the extra, one sentence says what to install."""
    monkeypatch.setitem(sys.modules, missing, None)
    assert cli.main(["demo", "--port", "0"]) == 2
    said = capsys.readouterr().err
    assert said == f"s3prl-ofa demo: error: the page needs {missing}: pip install 's3prl-ofa[demo]'\n"


@pytest.mark.parametrize("port", ["taken", "70000"])
def test_port(port, capsys):
    """A port that is in use or out of range: one sentence, status 2."""
    with socket.create_server((page.HOST, 0)) as other:
        number = str(other.getsockname()[1]) if port == "taken" else port
        assert cli.main(["demo", "--port", number]) == 2
    said = capsys.readouterr().err
    assert f"--port {number} cannot be used" in said and said.endswith("choose another\n") and said.count("\n") == 1


def test_checkpoint(tmp_path, capsys):
    """A missing checkpoint is reported before the page's address is printed."""
    assert cli.main(["demo", "--port", "0", "--ckpt", str(tmp_path / "none.pt")]) == 2
    printed = capsys.readouterr()
    assert "none.pt" in printed.err and not printed.out


def test_plain_checkpoint(make_wave):
    """Without a compressor the sliders are disabled, with the reason; the utterance is shown at 20 ms."""
    import gradio

    from s3prl_ofa.model import ModelConfig, OFAWav2Vec2

    model = OFAWav2Vec2(ModelConfig(dim=32, ffn_dim=64, heads=4, layers=1))
    blocks = page.build(model)
    sliders = [block for block in blocks.blocks.values() if isinstance(block, gradio.Slider)]
    assert len(sliders) == 2
    for slider in sliders:
        assert not slider.interactive and slider.value == 20 and "no compressor" in slider.info
    seen = view.view_at(model, view.analyse(model, make_wave(1.0)), 20.0)
    assert len(seen.times) == 49 and seen.weights is None
    assert page.pixels(seen).shape[1:] == (WIDTH, 3)


def test_pooling_checkpoint(make_wave):
    """A model with average pooling before its encoder is shown at its own rate."""
    import gradio

    from s3prl_ofa.model import ModelConfig, OFAWav2Vec2

    model = OFAWav2Vec2(ModelConfig(dim=32, ffn_dim=64, heads=4, layers=1, pooling=2))
    sliders = [block for block in page.build(model).blocks.values() if isinstance(block, gradio.Slider)]
    assert [slider.value for slider in sliders] == [40, 40] and "40 ms only" in sliders[0].info
    assert len(view.view_at(model, view.analyse(model, make_wave(1.0)), sliders[0].value).times) == 25


def test_other_hosts_are_refused(golden_model):
    """A request for another host name is refused (DNS rebinding), and every response forbids the page to load from
    other hosts."""
    from fastapi.testclient import TestClient

    app = page.serve(page.build(golden_model))
    answer = TestClient(app, base_url="http://127.0.0.1:7860").get("/")
    assert answer.status_code == 200 and "default-src 'self'" in answer.headers["content-security-policy"]
    assert TestClient(app, base_url="http://elsewhere.example").get("/").status_code == 400


def test_table(golden_model, utterance):
    """Both rates and their ratio, in readable digits; empty without an utterance."""
    a, b = (view.view_at(golden_model, utterance, period) for period in (20.0, 40.0))
    rows = {row[0]: row[1:] for row in (line.strip("| ").split(" | ") for line in page.table(a, b).splitlines()[2:])}
    assert rows["frames"] == ["49", "25", "0.51"]
    assert float(rows["hidden states (MB)"][2]) == pytest.approx(25 / 49, abs=0.01)
    assert page.table(a, None) == ""
    assert page.in_digits(28_456.7) == "28,457" and page.in_digits(0.01234) == "0.0123"


def test_audio_is_not_changed():
    """16-bit samples survive unchanged, which is how a bundled example is recognized."""
    every = np.arange(-32768, 32768)
    rate, samples = page.to_int16((every / 32768).astype(np.float32))
    assert rate == 16_000 and samples.dtype == np.int16 and (samples == every).all()
    assert page.to_int16(np.array([-1.5, 1.5], np.float32))[1].tolist() == [-32768, 32767]
