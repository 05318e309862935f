"""Waves and their guidance: cropped together, reproducible after a stop, bad files named."""

import logging
import pathlib

import numpy as np
import pytest
import soundfile
import torch
from pretraining import SAMPLE_RATE, random_boundaries

from s3prl_ofa.guidance.layout import GuidanceError, guidance_path, num_frames
from s3prl_ofa.pretrain.config import OFATaskConfig
from s3prl_ofa.pretrain.dataset import GuidedAudioDataset
from s3prl_ofa.pretrain.task import OFAPretrainingTask

HOP = 320
PCM = 32768  # sample i of a wave has the value i / PCM, and frame i of alpha the value i / 1000
LENGTHS = (32_000, 20_000, 25_123, 9_000, 16_080, 12_345)


@pytest.fixture
def corpus(tmp_path):
    """Waves and guidance whose values are their positions."""
    lines = [str(tmp_path / "audio")]
    for number, samples in enumerate(LENGTHS):
        relative = f"v1.2/speaker.{number % 2}/a.b.{number}.flac"
        path = tmp_path / "audio" / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, np.arange(samples, dtype=np.int16), SAMPLE_RATE)
        save(tmp_path, "alpha", relative, torch.arange(num_frames(samples)) / 1000)
        save(tmp_path, "boundaries", relative, random_boundaries(num_frames(samples), number))
        lines.append(f"{relative}\t{samples}")
    (tmp_path / "train.tsv").write_text("\n".join(lines) + "\n")
    return tmp_path


def save(corpus: pathlib.Path, kind: str, relative: str, tensor: torch.Tensor) -> pathlib.Path:
    path = guidance_path(corpus / kind, relative)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(tensor, path)
    return path


def open_corpus(corpus, max_sample_size=None, pad=False, roots=("alpha", "boundaries"), **settings):
    return GuidedAudioDataset(
        str(corpus / "train.tsv"),
        sample_rate=SAMPLE_RATE,
        max_sample_size=max_sample_size,
        pad=pad,
        **{f"{kind}_root": str(corpus / kind) for kind in roots},
        **settings,
    )


def crop_start(source: torch.Tensor) -> int:
    """The start of a crop in its wave, in samples."""
    start = round(float(source[0]) * PCM)
    np.testing.assert_array_equal(torch.round(source * PCM).numpy(), start + np.arange(len(source)))
    return start


@pytest.mark.parametrize("size", [400, 5_000, 8_000, 11_999])
def test_wave_and_guidance_are_cropped_together(corpus, size):
    """A crop begins with a frame and has the alpha and boundaries of its frames; first_part is what is left of
    the first segment."""
    dataset = open_corpus(corpus, size)
    starts = set()
    for epoch in range(1, 6):
        dataset.set_epoch(epoch)
        for index in range(len(dataset)):
            batch = dataset.collater([dataset[index]])["net_input"]
            source, guidance = batch["source"][0], batch["guidance"]
            length = min(size, dataset.sizes[index])
            assert len(source) == length
            start, frames = crop_start(source), num_frames(length)
            assert start % HOP == 0
            first = start // HOP
            expected = (first + torch.arange(frames)) / 1000
            torch.testing.assert_close(guidance["pseudo_alpha"][0], expected, atol=1e-6, rtol=0)
            whole = dataset[index]["boundaries"].tolist()
            inside = [end - first for end in whole if first < end <= first + frames]
            assert guidance["boundaries"][0].tolist() == inside
            if inside:
                begin = max([0, *(end for end in whole if end <= first)])
                part = inside[0] / (inside[0] + first - begin)
                assert float(guidance["first_part"][0]) == pytest.approx(part)
            starts.add((index, start))
    assert len(starts) > 2 * len(LENGTHS)


def test_crops_reach_every_place(corpus):
    """Any frame can be the first, up to that of the last crop that fits."""
    dataset = open_corpus(corpus, 31_000)
    starts = []
    for epoch in range(40):
        dataset.set_epoch(epoch)
        starts.append(crop_start(dataset.collater([dataset[int(np.argmax(dataset.sizes))]])["net_input"]["source"][0]))
    assert sorted(set(starts)) == [0, 320, 640, 960]


def test_a_batch_is_cropped_or_padded(corpus):
    """Without padding all are cropped to the shortest; with it padding is masked and without guidance."""
    items = [0, 3, 5]
    dataset = open_corpus(corpus)
    batch = dataset.collater([dataset[index] for index in items])["net_input"]
    assert batch["source"].shape == (3, 9_000) and "padding_mask" not in batch
    assert batch["guidance"]["pseudo_alpha"].shape == (3, num_frames(9_000))
    dataset = open_corpus(corpus, 16_000, pad=True)
    batch = dataset.collater([dataset[index] for index in items])["net_input"]
    assert (~batch["padding_mask"]).sum(1).tolist() == [16_000, 9_000, 12_345]
    assert not batch["source"][batch["padding_mask"]].any()
    for row, samples in enumerate([16_000, 9_000, 12_345]):
        crop_start(batch["source"][row, :samples])
        assert not batch["guidance"]["pseudo_alpha"][row, num_frames(samples) :].any()
        ends = batch["guidance"]["boundaries"][row]
        assert (ends[ends > 0] <= num_frames(samples)).all()
    assert batch["guidance"]["boundaries"].min() == -1


def test_boundaries_past_the_end(corpus):
    """Guidance a few frames longer or shorter is used; a boundary past the end counts as the end."""
    name = "v1.2/speaker.0/a.b.0.flac"
    frames = num_frames(LENGTHS[0])
    for other in (-5, -1, 1, 5):
        save(corpus, "alpha", name, torch.arange(frames + other) / 1000)
        save(corpus, "boundaries", name, torch.tensor([3, frames - 7, frames + 1, frames + 5]))
        dataset = open_corpus(corpus)
        guidance = dataset.collater([dataset[0]])["net_input"]["guidance"]
        assert guidance["boundaries"][0].tolist() == [3, frames - 7, frames]
        assert guidance["pseudo_alpha"].shape[1] == min(frames, frames + other)


def break_missing(corpus, path):
    path.unlink()


def break_cut(corpus, path):
    path.write_bytes(path.read_bytes()[:100])


def break_other(corpus, path):
    torch.save(torch.full((7,), 0.1), path)


def break_text(corpus, path):
    path.write_text("not a tensor")


BREAKS = {"missing": break_missing, "cut": break_cut, "of another utterance": break_other, "text": break_text}


@pytest.mark.parametrize("how", BREAKS)
def test_bad_guidance_is_named(corpus, how, caplog):
    """With bad_guidance=stop the file is named, with skip the utterance is trained without guidance, with a warning."""
    name = "v1.2/speaker.1/a.b.1.flac"
    path = guidance_path(corpus / "alpha", name)
    assert path.name == "a.b.1.pt"
    BREAKS[how](corpus, path)
    with pytest.raises(GuidanceError, match=str(path)):
        open_corpus(corpus)[1]
    with caplog.at_level(logging.WARNING):
        dataset = open_corpus(corpus, bad_guidance="skip")
        batches = [dataset.collater([dataset[index] for index in (0, 1, 2)])["net_input"] for _ in range(2)]
    assert [str(path) in record.getMessage() for record in caplog.records].count(True) == 1
    for batch in batches:
        assert batch["guidance"]["guided"].tolist() == [True, False, True]
        assert not batch["guidance"]["pseudo_alpha"][1].any() and (batch["guidance"]["boundaries"][1] == -1).all()
    alone = dataset.collater([dataset[1]])["net_input"]["guidance"]
    assert alone["pseudo_alpha"].shape == (1, 0) and alone["boundaries"].shape == (1, 0)


def test_one_kind_of_guidance(corpus):
    """alpha alone, boundaries alone, or neither can be given."""
    keys = {("alpha",): "pseudo_alpha", ("boundaries",): "boundaries"}
    for roots, key in keys.items():
        dataset = open_corpus(corpus, roots=roots)
        guidance = dataset.collater([dataset[0], dataset[1]])["net_input"]["guidance"]
        assert set(guidance) == {"guided", "first_part", key} and guidance["guided"].all()
    dataset = open_corpus(corpus, roots=())
    assert "guidance" not in dataset.collater([dataset[0]])["net_input"]


def test_a_folder_of_guidance_that_is_not_there(corpus):
    with pytest.raises(GuidanceError, match="no such folder"):
        open_corpus(corpus, alpha_root=str(corpus / "nowhere"), roots=("boundaries",))


def batches(task, epoch: int, workers: int, skip: int = 0):
    """(ids, first samples) of the batches of an epoch, as the trainer gets them after skipping ``skip`` batches."""
    task.load_dataset("train")
    iterator = task.get_batch_iterator(
        task.dataset("train"), max_sentences=2, seed=1, num_workers=workers, epoch=epoch, required_batch_size_multiple=1
    )
    if skip:
        iterator.load_state_dict({"epoch": epoch, "iterations_in_epoch": skip, "shuffle": True, "version": 2})
    found = iterator.next_epoch_itr(shuffle=True)
    return [(batch["id"].tolist(), batch["net_input"]["source"].tolist()) for batch in found]


def test_crops_do_not_depend_on_workers_or_stops(corpus):
    """The crops of an epoch are the same with 0 and 2 workers, after earlier epochs or a stop within it."""
    roots = {"alpha_root": str(corpus / "alpha"), "boundaries_root": str(corpus / "boundaries")}
    cfg = OFATaskConfig(data=str(corpus), max_sample_size=8_000, seed=5, max_update=1, **roots)
    task = OFAPretrainingTask(cfg)
    first, second = batches(task, 1, 0), batches(task, 2, 0)
    assert sorted(first) != sorted(second)
    assert batches(task, 2, 2) == second
    assert batches(OFAPretrainingTask(cfg), 2, 2, skip=1) == second[1:]


@pytest.mark.slow
def test_a_reused_loader_follows_the_epochs(corpus):
    """Workers use the crops of a new epoch."""
    cfg = OFATaskConfig(data=str(corpus), max_sample_size=8_000, seed=5, max_update=1)
    task = OFAPretrainingTask(cfg)
    task.load_dataset("train")
    iterator = task.get_batch_iterator(
        task.dataset("train"), max_sentences=2, seed=1, num_workers=1, required_batch_size_multiple=1
    )
    seen = []
    for _ in range(2):
        epoch = iterator.next_epoch_itr(shuffle=True)
        seen.append([(batch["id"].tolist(), batch["net_input"]["source"].tolist()) for batch in epoch])
    assert seen == [batches(task, 1, 0), batches(task, 2, 0)]
