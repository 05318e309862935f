"""Which output frames a task of S3PRL gets: native ones where it is correct with them, else upsampled ones.

Native frames have no constant rate. They suit tasks with one answer per utterance, or whose labels find their own place
in time (CTC), and that read each utterance's true length. All other tasks count 20 ms frames: their labels would not
match native frames in time, and their training and scores would be wrong without an error.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from s3prl_ofa.errors import UsageError
from s3prl_ofa.superb.compat.task_names import S3PRL_DOWNSTREAM
from s3prl_ofa.superb.upstream.rate_options import NATIVE, UPSAMPLED, RateOptions, merged


class Kind(NamedTuple):
    """Tasks that take the same frames, and why; ``reason`` follows the task's name in a sentence."""

    output_frames: str
    reason: str
    tasks: str  # folders of s3prl/downstream


KINDS = (
    Kind(NATIVE, "aligns its labels by CTC", "asr ctc"),
    Kind(
        NATIVE,
        "pools each utterance over its true length",
        "atis audio_snips emotion fluent_commands speaker_linear_utter_libri speech_commands sv_voxceleb1 voxceleb1 "
        "voxceleb2_amsoftmax_segment_eval voxceleb2_ge2e",
    ),
    Kind(
        UPSAMPLED,
        "has labels at a constant rate, to which S3PRL tiles or cuts the frames",
        "diarization phone_1hidden phone_linear phone_linear_concat timit_phone timit_phone_1hidden timit_phone_linear "
        "timit_phone_linear_concat",
    ),
    Kind(
        UPSAMPLED,
        "masks a spectrogram with one frame every 20 ms",
        "enhancement_stft enhancement_stft2 separation_stft separation_stft2",
    ),
    Kind(UPSAMPLED, "makes spectrogram frames from a constant number of frames", "a2o-vc-vcc2020"),
    Kind(UPSAMPLED, "matches frame by frame and drops queries of fewer than 5 frames", "quesst14_dtw"),
    Kind(
        UPSAMPLED,
        "stacks its segments, which must have the same number of frames",
        "mos_prediction quesst14_embedding sws2013",
    ),
    Kind(UPSAMPLED, "scores frame by frame", "speaker_linear_frame_libri voxceleb1_framelevel"),
    Kind(UPSAMPLED, "averages the padding of a batch too", "example mosei"),
    Kind(UPSAMPLED, "limits the length of its sources in frames of a constant rate", "speech_translation"),
)
UNKNOWN = Kind(UPSAMPLED, "is not known here and may assume a frame every 20 ms", "")
BY_TASK = {task: kind for kind in KINDS for task in kind.tasks.split()}


def kind_of(task: str | None) -> Kind:
    """task: S3PRL's name, or asr, pr or sid."""
    return BY_TASK.get(S3PRL_DOWNSTREAM.get(task, task), UNKNOWN)


def usual_output_frames(task: str) -> str:
    """The output frames that a task gets by default."""
    return kind_of(task).output_frames


def why_not_native(task: str) -> str | None:
    """Why a task cannot have native frames, as a sentence; None if it can."""
    kind = kind_of(task)
    return None if kind.output_frames == NATIVE else f"{task} {kind.reason}, so it needs output_frames {UPSAMPLED}"


def options_for(task: str, *layers: Mapping[str, Any]) -> RateOptions:
    """``RateOptions.layered`` of the layers, with the task's default output frames.

    Raises UsageError if they ask for native or repeated frames and the task cannot use them.
    """
    asked = {"output_frames": usual_output_frames(task), **merged(*layers)}
    reason = why_not_native(task)
    if reason and asked["output_frames"] == NATIVE:
        raise UsageError(f"{reason}, found output_frames {NATIVE}")
    if reason and asked.get("repeat", 1) != 1:
        raise UsageError(f"{reason}, found repeat {asked['repeat']}")
    return RateOptions(**asked)


def check_trained(task: str, trained: RateOptions, options: RateOptions) -> None:
    """Raises UsageError if an experiment is resumed or evaluated on native frames that its task cannot use."""
    reason = why_not_native(task)
    if reason and options.output_frames == NATIVE:
        if trained.output_frames == NATIVE:
            raise UsageError(f"{reason}, but the experiment was trained on {NATIVE} ones: train a new one (-n or -p)")
        raise UsageError(f"{reason}, found output_frames {NATIVE}")
