"""Registers the upstream ``ofa_wav2vec2`` with S3PRL; importing ``s3prl_ofa.superb`` does it.

S3PRL has no plugin mechanism and takes seconds to import, so nothing of it is imported here. Instead, those of its
modules that need a change are changed when they are imported, or at once if they already are.
"""

import importlib.abc
import importlib.machinery
import os
import pathlib
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

from s3prl_ofa.checkpoint import checkpoint_path
from s3prl_ofa.errors import CheckpointError, UsageError
from s3prl_ofa.superb.compat import shims
from s3prl_ofa.superb.compat.workers import register_in_workers
from s3prl_ofa.superb.upstream.expert import UpstreamExpert, adapt_s3prl

URL_SCHEMES = ("http://", "https://")


def ofa_wav2vec2(ckpt: str | os.PathLike | None = None, refresh: bool = False, **options: Any) -> UpstreamExpert:
    """The upstream from a checkpoint, a file or a URL (downloaded once, or again with ``refresh``).

    options: model_config, lambd, frame_period_ms, output_frames, repeat; see UpstreamExpert.
    """
    if ckpt is None:
        raise UsageError("ofa_wav2vec2 needs a checkpoint: give ckpt (S3PRL's -k), a file or a URL")
    if os.fspath(ckpt).startswith(URL_SCHEMES):
        return ofa_wav2vec2_url(ckpt, refresh=refresh, **options)
    return ofa_wav2vec2_local(ckpt, **options)


def ofa_wav2vec2_local(ckpt: str | os.PathLike, refresh: bool = False, **options: Any) -> UpstreamExpert:
    """The upstream from a checkpoint file or folder of any known format."""
    if not checkpoint_path(ckpt).exists():
        raise UsageError(f"there is no checkpoint at {os.fspath(ckpt)}")
    register()  # S3PRL may have been partially imported when we were
    return UpstreamExpert(ckpt, **options)


def ofa_wav2vec2_url(ckpt: str, refresh: bool = False, **options: Any) -> UpstreamExpert:
    """The upstream from a URL, through S3PRL's download cache; ``refresh`` downloads it again."""
    if not os.fspath(ckpt).startswith(URL_SCHEMES):
        raise UsageError(f"a URL ({' or '.join(URL_SCHEMES)}) is expected, found {ckpt}")
    from s3prl.util.download import urls_to_filepaths

    path = urls_to_filepaths(os.fspath(ckpt), refresh=refresh)
    try:
        return ofa_wav2vec2_local(path, **options)
    except CheckpointError as error:
        raise CheckpointError(f"what was downloaded from {ckpt} is not a checkpoint: {error}") from error


ofa_wav2vec2_custom = ofa_wav2vec2  # S3PRL's name for entries that take a file or a URL


def ofa_wav2vec2_tiny(**options: Any) -> UpstreamExpert:
    """The upstream from the bundled checkpoint of 5.8 million parameters, for torch.hub."""
    return ofa_wav2vec2_local("tiny", **options)


ENTRIES = {
    "ofa_wav2vec2": ofa_wav2vec2,
    "ofa_wav2vec2_local": ofa_wav2vec2_local,
    "ofa_wav2vec2_url": ofa_wav2vec2_url,
    "ofa_wav2vec2_custom": ofa_wav2vec2_custom,
}


def replace_asr_dataset(expert: ModuleType) -> None:
    from s3prl_ofa.superb.tasks.asr_dataset import AsrDataset

    expert.SequenceDataset = AsrDataset


def fix_num_workers(expert: ModuleType) -> None:
    from s3prl_ofa.superb.tasks.configs import patch_ctc_loaders

    patch_ctc_loaders()


def patch_runner(runner: ModuleType) -> None:
    shims.cpu_beside_cuda(runner)
    adapt_s3prl()


def patch_dataset(dataset: ModuleType) -> None:
    shims.speech_loader(dataset)
    register_in_workers(dataset)


def add_corpora(ctc: ModuleType) -> None:
    """S3PRL's wheel lacks ``s3prl.downstream.ctc.corpus``; a checkout has it, with more corpora."""
    ours = str(pathlib.Path(__file__).parent / "tasks" / "ctc_corpus")
    if ours not in ctc.__path__:
        ctc.__path__.insert(0, ours)


# What is done to which module of S3PRL once it is imported.
AFTER_IMPORT: dict[str, Callable[[ModuleType], None]] = {
    "s3prl": lambda _: shims.apply_shims(),
    "s3prl.hub": lambda hub: vars(hub).update(ENTRIES),
    "s3prl.nn.upstream": lambda _: adapt_s3prl(),
    "s3prl.downstream.runner": patch_runner,
    "s3prl.downstream.asr.expert": replace_asr_dataset,
    "s3prl.downstream.asr.dataset": patch_dataset,
    "s3prl.downstream.voxceleb1.dataset": patch_dataset,
    "s3prl.downstream.ctc": add_corpora,
    "s3prl.downstream.ctc.data": shims.speech_loader,
    "s3prl.downstream.ctc.expert": fix_num_workers,
    "s3prl.downstream.ctc.corpus.librispeech": register_in_workers,
}


class AfterImportFinder(importlib.abc.MetaPathFinder):
    """Finds the modules of ``AFTER_IMPORT`` by the other finders, and makes their functions run after their import."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name not in AFTER_IMPORT:
            return None
        specs = (finder.find_spec(name, path, target) for finder in sys.meta_path if finder is not self)
        spec = next((spec for spec in specs if spec is not None), None)
        if spec is None or spec.loader is None:
            return spec
        run_module = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            run_module(module)
            AFTER_IMPORT[name](module)

        spec.loader.exec_module = exec_module
        return spec


def register() -> None:
    """Changes the modules of ``AFTER_IMPORT`` that are imported, and the others later; may be called again."""
    if not any(isinstance(finder, AfterImportFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, AfterImportFinder())
    for name, function in AFTER_IMPORT.items():
        module = sys.modules.get(name)
        # A module that is still being imported (a linked checkout's hub imports us) may lack what is to be changed.
        if module is not None and not getattr(module.__spec__, "_initializing", False):
            function(module)
