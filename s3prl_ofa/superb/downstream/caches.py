"""Opens the caches of a run of S3PRL's runner."""

import argparse
import contextlib
import logging
from typing import Any

from s3prl_ofa.checkpoint.safe_loading import patched_attributes
from s3prl_ofa.superb.compat import shims
from s3prl_ofa.superb.feature_cache.audio import AudioCache
from s3prl_ofa.superb.feature_cache.cache import FeatureCache, wanted_layers
from s3prl_ofa.superb.feature_cache.front_end import FrontEndCache

logger = logging.getLogger(__name__)


def open_caches(
    args: argparse.Namespace,
    config: dict[str, Any],
    expert: Any,
    folder: str,
    limit_gb: float,
    stack: contextlib.ExitStack,
) -> None:
    """Lets a run of our upstream use a cache until ``stack`` is closed: of decoded audio, of the front end's output,
    and, unless the rate is being learned, of the hidden states of the layers that the runner selects.

    None of them for training that cuts utterances at random: it would fill the cache and rarely find a cut again.
    """
    if args.mode == "train" and config.get("downstream_expert", {}).get("datarc", {}).get("max_timestep"):
        logger.warning(
            "training does not use the feature cache, because longer utterances are cut at random "
            "(-o config.downstream_expert.datarc.max_timestep=None trains on whole ones)"
        )
        return
    # What is worth most comes first: opening a section may delete others, if the limit is lower than last time.
    if not expert.options.adaptive:
        layers = wanted_layers(args.upstream_feature_selection, args.upstream_layer_selection, expert.config.layers)
        cache = FeatureCache(folder, limit_gb, expert.model, expert.options.extract_rate, layers)
        expert.cache = stack.enter_context(cache)
    expert.front_end_cache = stack.enter_context(FrontEndCache(folder, limit_gb, expert.model))
    stack.enter_context(patched_attributes(expert.model, front_end_rows=expert.front_end_cache.front_end_rows))
    audio = stack.enter_context(AudioCache(folder, limit_gb))
    stack.enter_context(patched_attributes(shims, load_speech=audio.load))
