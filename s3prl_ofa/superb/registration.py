"""Registers the upstream ``ofa_wav2vec2`` with S3PRL; importing ``s3prl_ofa.superb`` does it.

S3PRL has no plugin mechanism and takes seconds to import, so it is not imported here. Instead, each of its modules is
patched as soon as it is imported, or at once if it already is.
"""

import functools
import os
import pathlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import Any

import torch
import wrapt
from torch import Tensor

from s3prl_ofa.checkpoint import checkpoint_path
from s3prl_ofa.errors import UsageError
from s3prl_ofa.superb.compat import late_experts, shims
from s3prl_ofa.superb.compat.workers import register_in_workers
from s3prl_ofa.superb.upstream.expert import UpstreamExpert, adapt_s3prl

XVECTOR_FRAMES = 16


def ofa_wav2vec2(ckpt: str | os.PathLike | None = None, refresh: bool = False, **options: Any) -> UpstreamExpert:
    """The upstream from a checkpoint: a file, a folder, a repository of the Hugging Face Hub, or a URL.

    refresh: download again what a URL names. options: model_config, or the fields of RateOptions one by one; see
    UpstreamExpert.
    """
    if ckpt is None:
        raise UsageError("ofa_wav2vec2 needs a checkpoint: give ckpt (S3PRL's -k), a file, a Hub repository or a URL")
    if not checkpoint_path(ckpt, refresh).exists():
        raise UsageError(f"there is no checkpoint at {os.fspath(ckpt)}")
    return UpstreamExpert(ckpt, **options)


# the names that S3PRL conventionally gives to entries that take a file, a URL or either
ofa_wav2vec2_local = ofa_wav2vec2_url = ofa_wav2vec2_custom = ofa_wav2vec2


def ofa_wav2vec2_tiny(**options: Any) -> UpstreamExpert:
    """The upstream from the bundled checkpoint of 8.6 million parameters, for torch.hub."""
    return ofa_wav2vec2("tiny", **options)


ENTRIES = {f"ofa_wav2vec2{source}": ofa_wav2vec2 for source in ("", "_local", "_url", "_custom")}


def replace_asr_dataset(expert: ModuleType) -> None:
    from s3prl_ofa.superb.tasks.asr_dataset import AsrDataset

    expert.SequenceDataset = AsrDataset


def use_keyword_sets(expert: ModuleType) -> None:
    from s3prl_ofa.superb.tasks import keywords

    expert.split_dataset = functools.partial(keywords.divide, expert.split_dataset)
    expert.SpeechCommandsDataset, expert.SpeechCommandsTestingDataset = (
        keywords.KeywordTrainingSet,
        keywords.KeywordTestSet,
    )


def use_emotion_set(expert: ModuleType) -> None:
    from s3prl_ofa.superb.tasks.emotions import EmotionDataset

    expert.IEMOCAPDataset = EmotionDataset


def score_queries(expert: ModuleType) -> None:
    from s3prl_ofa.superb.tasks.spoken_queries import with_score

    expert.DownstreamExpert.log_records = with_score(expert.DownstreamExpert.log_records)
    expert.ProcessPoolExecutor = ThreadPoolExecutor  # in new processes the stand-ins for its packages are missing


def read_intents(expert: ModuleType) -> None:
    from s3prl_ofa.superb.tasks import intents

    expert.DownstreamExpert.get_dataset = intents.read_corpus


def lengthen_short_features(expert: ModuleType) -> None:
    """S3PRL's XVector needs 15 frames per output, and the variance over its outputs needs two. At low rates short
    utterances have fewer, so their last frame is repeated."""
    forward = expert.DownstreamExpert.forward

    def lengthened(self: Any, mode: str, features: list[Tensor], *args: Any, **kwargs: Any) -> Tensor:
        missing = [max(0, XVECTOR_FRAMES - len(feature)) for feature in features]
        features = [
            torch.cat([feature, feature[-1:].expand(count, -1)])
            for feature, count in zip(features, missing, strict=True)
        ]
        return forward(self, mode, features, *args, **kwargs)

    expert.DownstreamExpert.forward = lengthened


def keep_num_workers(expert: ModuleType) -> None:
    """S3PRL's first loader removes ``num_workers`` from the config, and all others would start 12 workers."""
    load_dataset = expert.load_dataset
    expert.load_dataset = lambda split, tokenizer, corpus: load_dataset(split, tokenizer, dict(corpus))


def add_corpora(ctc: ModuleType) -> None:
    """S3PRL's wheel lacks ``s3prl.downstream.ctc.corpus``; a checkout has it, with more corpora."""
    ours = str(pathlib.Path(__file__).parent / "tasks" / "ctc_corpus")
    if ours not in ctc.__path__:
        ctc.__path__.insert(0, ours)


# The patches of each module.
AFTER_IMPORT: dict[str, tuple[Callable[[ModuleType], Any], ...]] = {
    "pandas": (shims.pandas_iteritems,),
    "s3prl": (lambda _: shims.apply_shims(),),
    "s3prl.hub": (lambda hub: vars(hub).update(ENTRIES),),
    **dict.fromkeys(late_experts.UPSTREAMS, (late_experts.postpone_expert,)),
    **{f"{name}.hubconf": (late_experts.restore_expert,) for name in late_experts.UPSTREAMS},
    "s3prl.nn.upstream": (lambda _: adapt_s3prl(),),
    "s3prl.downstream.runner": (lambda _: adapt_s3prl(), shims.cpu_beside_cuda),
    "s3prl.downstream.asr.expert": (replace_asr_dataset,),
    "s3prl.downstream.asr.dataset": (shims.speech_loader, register_in_workers),
    "s3prl.downstream.voxceleb1.dataset": (shims.speech_loader, register_in_workers),
    "s3prl.downstream.speech_commands.dataset": (register_in_workers,),
    "s3prl.downstream.speech_commands.expert": (use_keyword_sets,),
    "s3prl.downstream.fluent_commands.dataset": (shims.speech_loader, register_in_workers),
    "s3prl.downstream.fluent_commands.expert": (read_intents,),
    "s3prl.downstream.sv_voxceleb1.dataset": (register_in_workers,),
    "s3prl.downstream.sv_voxceleb1.expert": (lengthen_short_features,),
    "s3prl.downstream.diarization.dataset": (shims.recording_reader, register_in_workers),
    "s3prl.downstream.emotion.dataset": (shims.speech_loader, register_in_workers),
    "s3prl.downstream.emotion.expert": (use_emotion_set,),
    "s3prl.downstream.quesst14_dtw.dataset": (register_in_workers,),
    "s3prl.downstream.quesst14_dtw.expert": (score_queries,),
    "s3prl.downstream.ctc": (add_corpora,),
    "s3prl.downstream.ctc.data": (shims.speech_loader,),
    "s3prl.downstream.ctc.expert": (keep_num_workers,),
    "s3prl.downstream.ctc.corpus.librispeech": (register_in_workers,),
}


def register() -> None:
    """Patches the modules of ``AFTER_IMPORT``: now, or as soon as they are imported.

    A module may be in the middle of its import (a linked checkout's ``s3prl.hub`` imports us), so a patch must not need
    anything that the module defines later.
    """
    for name, functions in AFTER_IMPORT.items():
        for function in functions:
            wrapt.register_post_import_hook(function, name)
