"""``s3prl-ofa guidance check``, and guidance for real speech."""

import csv
import random
import re

import pytest
import torch
from guidance_data import guidance, write_manifest

from s3prl_ofa.arguments.guidance import SILENCES
from s3prl_ofa.guidance.alignments import read_ctm
from s3prl_ofa.guidance.layout import write

SECOND = 16_000


@pytest.fixture
def root(tmp_path):
    """Guidance of four good utterances, laid out as the reference does, and the manifest."""
    names = [f"v1.0/a.{number}.flac" for number in range(4)]
    root = tmp_path / "hubert_pseudo_alpha_w2vu"
    for name in names:
        write(root, name, torch.arange(7, 50, 7), 49)
    write_manifest(tmp_path / "m.tsv", tmp_path, dict.fromkeys(names, SECOND))
    return root


def test_good_guidance(root, tmp_path, capsys):
    """Prints the number of utterances, the segments and their mean period; status 0."""
    assert guidance("check", root, "--manifest", tmp_path / "m.tsv") == 0
    said = capsys.readouterr()
    assert "4 utterances, 4 good, 0 missing, 0 broken" in said.out and said.err == ""
    assert "28 segments, mean period 142.9 ms" in said.out


def test_missing_and_broken(root, tmp_path, capsys):
    """Everything that training would reject is reported with its reason, status 1: missing files, damage, lengths of
    another utterance, boundaries past the end, alpha of other boundaries."""
    (root / "alpha" / "v1.0" / "a.0.pt").unlink()
    (root / "alpha" / "v1.0" / "a.1.pt").write_bytes(b"damaged")
    torch.save(torch.tensor([3, 2]), root / "boundaries" / "v1.0" / "a.1.pt")
    torch.save(torch.tensor([7, 60]), root / "boundaries" / "v1.0" / "a.2.pt")
    torch.save(torch.full((49,), 0.5), root / "alpha" / "v1.0" / "a.3.pt")
    write(root, "long.flac", torch.tensor([60, 120]), 120)
    (tmp_path / "m.tsv").write_text((tmp_path / "m.tsv").read_text() + f"long.flac\t{SECOND}\nno.flac\t{SECOND}\n")
    assert guidance("check", root, "--manifest", tmp_path / "m.tsv") == 1
    said = capsys.readouterr()
    assert "6 utterances, 0 good, 2 missing, 4 broken" in said.out
    lines = said.err.splitlines()
    for name, reason in (
        ("missing: v1.0/a.0.flac", ""),
        ("missing: no.flac", ""),
        ("alpha/v1.0/a.1.pt", "damaged"),
        ("boundaries/v1.0/a.1.pt", "increasing"),
        ("alpha/v1.0/a.2.pt", "the last boundary is 60"),
        ("alpha/v1.0/a.3.pt", "not 1 / length"),
        ("alpha/long.pt", "alpha has 120 frames, but 16000 samples have 49"),
    ):
        assert any(name in line and reason in line for line in lines), (name, reason)
    assert len(lines) == 7


def test_reference_in_half_precision_and_a_frame_longer(root, tmp_path):
    """Guidance of other tools is accepted if alpha is in half precision or a frame longer than ours."""
    lengths = torch.diff(torch.tensor([0, 7, 14, 50]))
    alpha = torch.repeat_interleave(1.0 / lengths, lengths)
    torch.save(alpha.half(), root / "alpha" / "v1.0" / "a.0.pt")
    torch.save(torch.tensor([7, 14, 50], dtype=torch.int32), root / "boundaries" / "v1.0" / "a.0.pt")
    assert guidance("check", root, "--manifest", tmp_path / "m.tsv") == 0


def test_against(root, tmp_path, capsys):
    """Boundaries are scored against other guidance, next to a uniform segmentation of the same rate; the known end of
    an utterance does not count, and utterances that the other guidance lacks are skipped."""
    write(tmp_path / "other", "v1.0/a.0.flac", torch.tensor([7, 15, 30, 49]), 49)
    assert guidance("check", root, "--manifest", tmp_path / "m.tsv", "--against", tmp_path / "other") == 0
    said = capsys.readouterr().out
    assert "boundaries of 1 utterances against" in said
    # 7, 14, 21, 28, 35, 42 against 7, 15, 30
    assert "precision 0.333, recall 0.667" in said and "precision 0.500, recall 1.000" in said
    assert said.count("uniform: precision") == 2


def test_bad_use(root, tmp_path, capsys):
    """A folder that holds no guidance is refused, status 2."""
    for arguments in ((tmp_path,), (root, "--against", tmp_path), (root / "no",)):
        assert guidance("check", *arguments, "--manifest", tmp_path / "m.tsv") == 2
        assert "guidance has alpha/ and boundaries/" in capsys.readouterr().err


@pytest.fixture(scope="module")
def speech(mini_librispeech, tmp_path_factory):
    """Real speech: its manifest, and the guidance of its phone alignments as the command made it."""
    folder = tmp_path_factory.mktemp("speech")
    with open(mini_librispeech / "utterances.tsv", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    samples = {f"{row['speaker']}/{row['chapter']}/{row['utterance']}.opus": int(row["samples"]) for row in rows}
    write_manifest(folder / "all.tsv", mini_librispeech / "audio", samples)
    few = random.Random(0).sample(sorted(samples), 60)
    write_manifest(folder / "few.tsv", mini_librispeech / "audio", {name: samples[name] for name in few})
    ctm = mini_librispeech / "phones.ctm.gz"
    assert guidance("ctm", ctm, "--manifest", folder / "all.tsv", "--out", folder / "ctm", "--jobs", 1) == 1
    return folder


@pytest.mark.slow
def test_real_alignments(mini_librispeech, speech, capsys):
    """All 1,476 aligned utterances, the other 43 listed; phones of 83 ms, or 98 ms with long pauses as segments."""
    assert len((speech / "ctm" / "left_out.tsv").read_text().splitlines()) == 43
    assert guidance("check", speech / "ctm", "--manifest", speech / "all.tsv", "--jobs", 1) == 1
    said = capsys.readouterr().out
    assert "1519 utterances, 1476 good, 43 missing, 0 broken" in said
    period = float(re.search(r"mean period ([\d.]+) ms", said).group(1))
    with open(mini_librispeech / "utterances.tsv", newline="") as file:
        names = {row["utterance"] for row in csv.DictReader(file, delimiter="\t")}
    intervals = [
        each for utterance in read_ctm(mini_librispeech / "phones.ctm.gz", names).values() for each in utterance
    ]
    phones = [end - start for start, end, label in intervals if label not in SILENCES]
    assert sum(phones) / len(phones) == pytest.approx(0.083, abs=0.001)
    assert period == pytest.approx(97.8, abs=0.5)


@pytest.mark.slow
def test_real_speech_without_labels(speech, tmp_path, capsys):
    """Segments found without labels meet phone boundaries better than a uniform segmentation of the same
    rate, at 40 ms and clearly at 20 ms."""
    manifest = ("--manifest", speech / "few.tsv", "--jobs", 1)
    assert guidance("segment", *manifest, "--out", tmp_path / "out", "--period-ms", 90) == 0
    guidance("check", tmp_path / "out", *manifest, "--against", speech / "ctm")
    said = capsys.readouterr().out
    assert float(re.search(r"mean period ([\d.]+) ms", said).group(1)) == pytest.approx(90, rel=0.02)
    own20, uniform20, own40, uniform40 = map(float, re.findall(r"F1 ([\d.]+)", said))
    assert own20 > uniform20 + 0.15 and own40 > uniform40 + 0.03
