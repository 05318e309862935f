"""Lays LibriSpeech's train-clean-5 (openslr.org/31) out as the mini corpora of the results.

    python benchmarks/mini_corpus.py LibriSpeech/train-clean-5 OUT

OUT/LibriSpeech/{train-mini,dev-mini,test-mini}   for pr and asr: a speaker is in one of them
OUT/VoxCeleb1                                     for sid: of a speaker's utterances in order, the fourth of every seven
                                                  is dev, the seventh is test, the others are train

The files are links; loaders recognize FLAC by its content, so that those in VoxCeleb1 may end in .wav.
"""

import argparse
import collections
import pathlib

UTTERANCES = 1519
DEV, TEST = {"32", "460", "669", "3664"}, {"1088", "3947", "7367", "8629"}  # speakers
PART_OF_SEVEN = {3: "dev", 6: "test"}
NUMBERS = {"train": 1, "dev": 2, "test": 3}  # in VoxCeleb1's list


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    args = parser.parse_args()
    speakers = collections.defaultdict(list)
    paths = sorted(args.source.resolve().glob("*/*/*.flac"))
    for path in paths:
        speakers[path.parts[-3]].append(path)
    if len(paths) != UTTERANCES or (DEV | TEST) - speakers.keys():
        parser.error(f"{args.source} holds {len(paths)} FLAC files, expected the {UTTERANCES:,} of train-clean-5")
    listed = {}
    for number, speaker in enumerate(sorted(speakers, key=int), 1):
        text_part = "dev" if speaker in DEV else "test" if speaker in TEST else "train"
        for index, path in enumerate(speakers[speaker]):
            chapter = args.out / "LibriSpeech" / f"{text_part}-mini" / speaker / path.parts[-2]
            transcripts = path.with_name(f"{speaker}-{path.parts[-2]}.trans.txt")
            part = PART_OF_SEVEN.get(index % 7, "train")
            name = pathlib.Path(f"id1{number:04d}", path.parts[-2], path.stem + ".wav")
            folder = args.out / "VoxCeleb1" / ("test" if part == "test" else "dev") / "wav"
            link(chapter / transcripts.name, transcripts)
            link(chapter / path.name, path)
            link(folder / name, path)
            listed[path.stem] = f"{NUMBERS[part]} {name.as_posix()}\n"
    (args.out / "VoxCeleb1" / "veri_test_class.txt").write_text("".join(map(listed.get, sorted(listed))))


def link(path: pathlib.Path, target: pathlib.Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)  # the source may have moved
    path.symlink_to(target)


if __name__ == "__main__":
    main()
