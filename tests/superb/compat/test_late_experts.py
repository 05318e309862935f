"""S3PRL's hub without transformers, and its upstreams that need it."""

import subprocess
import sys

import pytest

from tests.paths import ROOT

CODE = """
import sys
import s3prl_ofa.superb
from s3prl import hub
from s3prl.downstream import runner
print("transformers" in sys.modules)
import torch
from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2Model
sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
Wav2Vec2Model(Wav2Vec2Config(**sizes)).save_pretrained("folder")
Wav2Vec2FeatureExtractor().save_pretrained("folder")
upstream = hub.hf_wav2vec2_custom("folder")
print(len(upstream([torch.zeros(8000)])["hidden_states"]))
from s3prl.upstream.hf_wav2vec2.expert import UpstreamExpert
print(isinstance(upstream, UpstreamExpert))
"""


@pytest.mark.slow
def test_the_hub_imports_transformers_when_it_is_used(tmp_path, monkeypatch):
    """Promise: S3PRL starts without transformers, and an upstream from the Hugging Face Hub is S3PRL's own."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.split() == ["False", "3", "True"], done.stderr
