"""A copy of a corpus in the form that the tasks and pretraining read: 16 kHz, mono, 16 bit."""

import pathlib

import numpy as np
import soundfile

from s3prl_ofa.errors import UsageError
from s3prl_ofa.io import audio
from s3prl_ofa.io.files import atomic_path, atomic_write
from s3prl_ofa.io.scan import each_in_threads
from s3prl_ofa.output import tell
from s3prl_ofa.superb.prepare.output import Output, refuse_all
from s3prl_ofa.superb.tasks.corpora import listing

LARGEST_COPIED = 64 << 20  # bytes; larger files beside the audio, such as archives, are not needed
MAX_PEAK = 2.0  # resampling can slightly exceed full scale; a file far above it has another scale


def convert_corpus(output: Output, corpus: pathlib.Path) -> None:
    """Writes each audio file of a corpus to the same place below the output folder, converted as in ``extract``.

    WAV files keep their names, so that lists of files stay valid; all others become FLAC. The other files of folders
    with audio, and of the folders above them, such as transcripts and lists, are copied. Files that exist are kept,
    unless ``force``. Raises UsageError if the output folder is a part of the corpus or the other way round.
    """
    if not corpus.is_dir():
        raise UsageError(f"there is no folder {corpus}; expected one with audio files")
    root, target = corpus.resolve(), output.folder.resolve()
    if root == target or root in target.parents or target in root.parents:
        raise UsageError(f"--out {output.folder}: expected a folder that neither holds {corpus} nor is in it")
    sources: dict[pathlib.Path, pathlib.Path] = {}  # by the file that each becomes
    # of several files with the same copy, the first in a readable format counts, as it does beside transcripts
    for path in sorted(audio.find_audio(root), key=lambda path: path.suffix.lower() in audio.OTHER_SUFFIXES):
        suffix = path.suffix if path.suffix.lower() == ".wav" else ".flac"
        copy = target / path.relative_to(root).with_suffix(suffix)
        if sources.setdefault(copy, path) != path:
            output.left_out[path] = f"{sources[copy].name} beside it has the same name in the copy"
    if not sources:
        raise UsageError(f"{corpus} holds no audio files")
    new = {path: copy for copy, path in sources.items() if output.force or not copy.exists()}
    found = dict(each_in_threads(lambda path: convert(path, new[path]), new, output.jobs, root.name))
    bad = {path: reason for path, reason in found.items() if isinstance(reason, str)}
    if len(bad) == len(sources):
        refuse_all(bad, str(corpus))
    output.left_out |= bad
    others = copy_others(output, root, target, {path.parent for path in sources.values()})
    kept = f"{len(sources) - len(new)} kept (--force converts them again), " if len(new) < len(sources) else ""
    tell(f"{output.folder}: {len(new) - len(bad)} audio files converted, {kept}{others} other files copied")


def convert(source: pathlib.Path, target: pathlib.Path) -> int | str:
    """Writes a file as 16 kHz mono with 16 bits. Returns its samples, or why it cannot be done."""
    try:
        wave = audio.load_audio(source)
        if (peak := np.abs(wave).max()) > MAX_PEAK:
            raise audio.AudioError(f"its samples reach {peak:g}; expected -1 to 1")
        with atomic_path(target) as temporary:
            soundfile.write(temporary, wave, audio.SAMPLE_RATE, subtype="PCM_16")
            return audio.check_speech(temporary)
    except audio.AudioError as error:
        return str(error)


def copy_others(output: Output, root: pathlib.Path, target: pathlib.Path, folders: set[pathlib.Path]) -> int:
    """Copies what is not audio in these folders and those above them up to ``root``; returns how many."""
    copied = 0
    below = {folder.relative_to(root) for folder in folders}
    for folder in sorted({root / place for inner in below for place in (inner, *inner.parents)}):
        for path in listing(folder):
            copy = target / path.relative_to(root)
            if path.suffix.lower() in audio.ALL_SUFFIXES or not path.is_file() or copy.exists() and not output.force:
                continue
            if path.stat().st_size > LARGEST_COPIED:
                output.left_out[path] = f"not audio, and above {LARGEST_COPIED >> 20} MiB: copy it if you need it"
                continue
            try:
                content = path.read_bytes()
            except OSError as error:
                output.left_out[path] = f"cannot be read ({error.strerror})"
                continue
            atomic_write(copy, content)
            copied += 1
    return copied
