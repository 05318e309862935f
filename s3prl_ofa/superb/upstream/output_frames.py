"""Which output frames an S3PRL task gets: native frames if the task works correctly with them, else upsampled ones.

Native frames have no constant rate. They suit tasks that read the true length of each utterance and have one answer per
utterance or labels without fixed times (CTC). All other tasks count 20 ms frames: their labels would not match native
frames in time, and training and scores would be wrong without any error.
"""

from collections.abc import Mapping
from typing import Any

from s3prl_ofa.errors import UsageError
from s3prl_ofa.superb.compat.task_names import S3PRL_DOWNSTREAM
from s3prl_ofa.superb.upstream.rate_options import NATIVE, UPSAMPLED, RateOptions, merged

# folders of s3prl/downstream
NATIVE_TASKS = {"asr", "ctc"}  # align their labels by CTC
NATIVE_TASKS |= {"atis", "audio_snips", "emotion", "fluent_commands", "speaker_linear_utter_libri", "speech_commands"}
NATIVE_TASKS |= {"sv_voxceleb1", "voxceleb1", "voxceleb2_amsoftmax_segment_eval", "voxceleb2_ge2e"}  # pool utterances
# why the others need upsampled frames, to complete a sentence that begins with the task's name
UPSAMPLED_TASKS = {
    "has labels at a constant rate, to which S3PRL tiles or cuts the frames": "diarization phone_1hidden phone_linear "
    "phone_linear_concat timit_phone timit_phone_1hidden timit_phone_linear timit_phone_linear_concat",
    "masks a spectrogram with one frame every 20 ms": "enhancement_stft enhancement_stft2 separation_stft "
    "separation_stft2",
    "makes spectrogram frames from a constant number of frames": "a2o-vc-vcc2020",
    "matches frame by frame and drops queries of fewer than 5 frames": "quesst14_dtw",
    "stacks its segments, which must have the same number of frames": "mos_prediction quesst14_embedding sws2013",
    "scores frame by frame": "speaker_linear_frame_libri voxceleb1_framelevel",
    "averages the padding of a batch too": "example mosei",
    "limits the length of its sources in frames of a constant rate": "speech_translation",
}
REASONS = {task: reason for reason, tasks in UPSAMPLED_TASKS.items() for task in tasks.split()}
UNKNOWN = "is not known here and may assume a frame every 20 ms"


def usual_output_frames(task: str) -> str:
    """The default output frames of a task. task: its name in S3PRL or in SUPERB."""
    return NATIVE if S3PRL_DOWNSTREAM.get(task, task) in NATIVE_TASKS else UPSAMPLED


def why_not_native(task: str) -> str | None:
    """Why a task cannot have native frames, as a sentence; None if it can."""
    if usual_output_frames(task) == NATIVE:
        return None
    return f"{task} {REASONS.get(task, UNKNOWN)}, so it needs output_frames {UPSAMPLED}"


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
