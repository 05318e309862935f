"""Guidance from CTM files and Praat TextGrids."""

import gzip
import json

import pytest
import torch
from guidance_data import guidance, write_ctm, write_manifest, write_textgrid

from s3prl_ofa.arguments.guidance import SILENCES
from s3prl_ofa.guidance.alignments import Interval, boundaries_of, cut_long, read_ctm, read_textgrid
from s3prl_ofa.guidance.layout import GuidanceError, num_frames, read_alpha, read_boundaries

PHONES = [(0.0, 0.2, "SIL"), (0.2, 0.31, "AE"), (0.31, 0.4, "Z"), (0.4, 0.6, "SIL"), (0.6, 0.8, "Y"), (0.8, 1.0, "SIL")]
SECOND = 16_000


def boundaries(intervals, samples=SECOND, merge=False, silences=SILENCES) -> list[int]:
    return boundaries_of([Interval(*each) for each in intervals], samples, silences, merge).tolist()


def test_a_frame_belongs_to_the_segment_that_holds_its_centre():
    """Checked frame by frame for many random alignments."""
    random = torch.Generator().manual_seed(0)
    for _ in range(20):
        times = torch.rand(12, generator=random, dtype=torch.float64).mul(900).round().div(1000).sort().values.tolist()
        intervals = [(start, end, "A") for start, end in zip([0.0, *times], [*times, 1.0], strict=True)]
        centers = [(320 * frame + 200) / SECOND for frame in range(num_frames(SECOND))]
        owners = [max(i for i, (start, _, _) in enumerate(intervals) if start <= center) for center in centers]
        expected = [i + 1 for i, owner in enumerate(owners) if i + 1 == len(owners) or owners[i + 1] != owner]
        assert boundaries(intervals) == expected


def test_short_segments_vanish_and_the_last_boundary_is_the_last_frame():
    """A segment without a frame's center has no boundary, also at the start and the end."""
    intervals = [(0.0, 0.005, "A"), (0.005, 0.5, "B"), (0.5, 0.505, "C"), (0.505, 0.995, "D"), (0.995, 1.0, "E")]
    assert boundaries(intervals) == [25, 49]
    assert boundaries([(0.0, 0.5, "A")]) == [25, 49]  # the rest is silence
    assert boundaries([(0.0, 0.99, "A")]) == [49]  # less than a frame is not
    assert boundaries([(0.0, 1.05, "A")]) == [49]  # the aligner rounded up
    assert boundaries([(0.0, 0.01, "A")], samples=400) == [1]


def test_silence_kept_and_merged():
    """Kept silences are segments, adjacent ones a single segment; merged silences belong to the segment before, the
    first one to the segment after."""
    assert boundaries(PHONES) == [10, 15, 20, 30, 40, 49]
    assert boundaries(PHONES, merge=True) == [15, 30, 49]
    double = [*PHONES[:3], (0.4, 0.5, "sil"), (0.5, 0.6, "sp"), *PHONES[4:]]
    assert boundaries(double) == boundaries(PHONES) and boundaries(double, merge=True) == [15, 30, 49]
    assert boundaries([(0.0, 0.5, "SIL"), (0.5, 1.0, "")]) == [49] == boundaries([(0.0, 1.0, "SIL")], merge=True)
    assert boundaries(PHONES, merge=True, silences=("Z",)) == [10, 20, 30, 40, 49]


def test_long_segments_are_cut_on_request():
    """No segment is longer than requested, its parts differ by at most a frame, and shorter segments stay."""
    found = torch.tensor([3, 10, 11, 30])
    assert cut_long(found, None).tolist() == found.tolist() == cut_long(found, 19).tolist()
    assert cut_long(found, 4).tolist() == [3, 6, 10, 11, 14, 18, 22, 26, 30]
    assert cut_long(found, 1).tolist() == list(range(1, 31))


def test_gaps_are_silence_and_rounding_is_not():
    """Gaps between intervals are silence; gaps and overlaps below a frame are the aligner's rounding."""
    spoken = [each for each in PHONES if each[2] != "SIL"]
    assert boundaries(spoken) == boundaries(PHONES) and boundaries(spoken, merge=True) == boundaries(PHONES, merge=True)
    assert boundaries([(0.0, 0.5, "A"), (0.51, 1.0, "B")]) == [25, 49] == boundaries([(0, 0.5, "A"), (0.49, 1, "B")])


def test_impossible_alignments():
    """Overlapping intervals, and an alignment that exceeds the audio, are refused."""
    with pytest.raises(GuidanceError, match="B at 0.30 s overlaps one that ends at 0.50 s"):
        boundaries([(0.0, 0.5, "A"), (0.3, 1.0, "B")])
    with pytest.raises(GuidanceError, match="A ends at 1.50 s, the audio at 1.00 s"):
        boundaries([(0.0, 1.5, "A")])


def test_ctm_plain_and_gzipped(tmp_path):
    """Only the given utterances are read, in any order; comments, empty lines and further columns are ignored."""
    text = ";; a comment\n\nb 1 0.5 0.5 B\na 1 0.30 0.20 AE as\na A 0.00 0.30 SIL <sil> 0.99\nc 1 0 1 C\n"
    (tmp_path / "x.ctm").write_text(text)
    with gzip.open(tmp_path / "x.ctm.gz", "wt") as file:
        file.write(text)
    for name in ("x.ctm", "x.ctm.gz"):
        assert read_ctm(tmp_path / name, {"a", "b", "d"}) == {
            "a": [(0.3, 0.5, "AE"), (0.0, 0.3, "SIL")],
            "b": [(0.5, 1.0, "B")],
        }


@pytest.mark.parametrize("line", ["a 1 0.0 0.1", "a 1 zero 0.1 A", "a 1 0.0 -0.1 A", "a 1 nan 0.1 A", "a 1 0 inf A"])
def test_bad_ctm_line(tmp_path, line):
    """An invalid line is named with its file and number, even one of another utterance."""
    (tmp_path / "x.ctm").write_text(f"a 1 0.0 0.1 A\n{line}\n")
    with pytest.raises(GuidanceError, match=f"{tmp_path}/x.ctm, line 2: expected utterance, channel"):
        read_ctm(tmp_path / "x.ctm", set())


def test_bad_ctm_file(tmp_path):
    """Missing, truncated, not gzipped, not text."""
    (tmp_path / "cut.gz").write_bytes(gzip.compress(b"a 1 0.0 0.1 A\n" * 10_000)[:-100])
    (tmp_path / "plain.gz").write_text("a 1 0.0 0.1 A\n")
    (tmp_path / "x.ctm").write_bytes(b"\xff\xfe\x00")
    cases = {"no": "cannot be read", "cut.gz": "damaged after line", "plain.gz": "damaged", "x.ctm": "damaged"}
    for name, said in cases.items():
        with pytest.raises(GuidanceError, match=said):
            read_ctm(tmp_path / name, {"a"})


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_textgrid_long_and_short(tmp_path, encoding):
    """Praat's long and short forms, in both of its encodings, give the labeled intervals; empty ones are gaps."""
    from praatio import textgrid

    intervals = [(0.0, 0.2, ""), (0.2, 0.5, "é"), (0.5, 1.0, "Z")]
    path = write_textgrid(tmp_path / "a.TextGrid", intervals, encoding=encoding)
    assert read_textgrid(path, "phones") == intervals[1:]
    grid = textgrid.openTextgrid(str(path), includeEmptyIntervals=True)
    grid.save(str(tmp_path / "short.TextGrid"), format="short_textgrid", includeBlankSpaces=True)
    assert read_textgrid(tmp_path / "short.TextGrid", "phones") == intervals[1:]


def test_bad_textgrids(tmp_path):
    """A missing tier, a tier of points, damage: one sentence that names the file and its tiers."""
    path = write_textgrid(tmp_path / "a.TextGrid", [(0.0, 1.0, "A")], tier="words")
    with pytest.raises(GuidanceError, match=f"{path}: has the tiers words; expected phones"):
        read_textgrid(path, "phones")
    text = path.read_text().replace("IntervalTier", "TextTier").replace("intervals", "points")
    path.write_text(text.replace("xmin = 0.0", "number = 0.5").replace("            xmax = 1.0\n", ""))
    with pytest.raises(GuidanceError, match=str(path)):
        read_textgrid(path, "words")
    for data in (b"", b"no TextGrid", b"\x00\xff" * 50):
        path.write_bytes(data)
        with pytest.raises(GuidanceError, match=f"{path}: (damaged|has the tiers none)"):
            read_textgrid(path, "phones")
    with pytest.raises(GuidanceError, match="cannot be read"):
        read_textgrid(tmp_path / "no.TextGrid", "phones")


@pytest.fixture
def manifest(tmp_path):
    """Four utterances; two have the same name."""
    names = ("v1.2/a.b.flac", "c.flac", "x/twin.flac", "y/twin.flac")
    return write_manifest(tmp_path / "train.tsv", tmp_path / "audio", dict.fromkeys(names, SECOND))


def test_ctm_command(tmp_path, manifest, capsys):
    """Utterances are matched by file name, dots included; those without an alignment, with an impossible one or with
    an ambiguous name are listed at the end and in left_out.tsv, status 1, and the rest is done."""
    bad = [(0.0, 0.5, "A"), (0.3, 1.0, "B")]
    ctm = write_ctm(tmp_path / "x.ctm", {"a.b": PHONES, "c": bad, "twin": PHONES})
    assert guidance("ctm", ctm, "--manifest", manifest, "--out", tmp_path / "out") == 1
    alpha = read_alpha(tmp_path / "out" / "alpha", "v1.2/a.b.flac")
    assert len(alpha) == 49 and float(alpha.sum()) == pytest.approx(6)
    assert read_boundaries(tmp_path / "out" / "boundaries", "v1.2/a.b.flac").tolist() == [10, 15, 20, 30, 40, 49]
    said = capsys.readouterr()
    assert "1 of 4 utterances written, 0 already done; the mean segment is 166.7 ms" in said.out
    rows = dict(line.split("\t") for line in (tmp_path / "out" / "left_out.tsv").read_text().splitlines())
    assert set(rows) == {"c.flac", "x/twin.flac", "y/twin.flac"} and all(name in said.err for name in rows)
    assert "overlaps" in rows["c.flac"] and "other files" in rows["x/twin.flac"]
    # Mended, only what is left is done, and the report goes when nothing is left out.
    write_manifest(manifest, tmp_path / "audio", {"v1.2/a.b.flac": SECOND, "c.flac": SECOND})
    write_ctm(ctm, {"a.b": PHONES, "c": PHONES})
    assert guidance("ctm", ctm, "--manifest", manifest, "--out", tmp_path / "out") == 0
    assert "1 of 2 utterances written, 1 already done" in capsys.readouterr().out
    assert not (tmp_path / "out" / "left_out.tsv").exists()


def test_silence_options(tmp_path, manifest):
    """--silence merge and --silence-labels reach the segmentation and are recorded."""
    write_manifest(manifest, tmp_path / "audio", {"a.flac": SECOND})
    ctm = write_ctm(tmp_path / "x.ctm", {"a": PHONES})
    for options, expected in (
        (["--silence", "merge"], [15, 30, 49]),
        (["--silence", "merge", "--silence-labels", "Z", "Y"], [10, 20, 40, 49]),
        (["--silence", "merge", "--longest", "10", "--jobs", "1"], [7, 15, 22, 30, 39, 49]),
    ):
        out = tmp_path / f"out{len(options)}"
        assert guidance("ctm", ctm, "--manifest", manifest, "--out", out, *options) == 0
        assert read_boundaries(out / "boundaries", "a.flac").tolist() == expected
        assert json.loads((out / "settings.json").read_text())["silence"] == "merge"


def test_textgrid_command(tmp_path, manifest, capsys):
    """TextGrids are found by relative path or by name, whatever the case of their suffix; the tier is an option; a
    damaged one is reported and the rest is done."""
    grids = tmp_path / "grids"
    write_textgrid(grids / "elsewhere" / "a.b.textgrid", PHONES)
    write_textgrid(grids / "x" / "twin.TextGrid", PHONES)
    write_textgrid(grids / "c.TextGrid", PHONES, tier="words")
    options = ("--manifest", manifest, "--out", tmp_path / "out")
    assert guidance("textgrid", grids, *options) == 1
    for name in ("v1.2/a.b.flac", "x/twin.flac"):
        assert read_boundaries(tmp_path / "out" / "boundaries", name).tolist() == [10, 15, 20, 30, 40, 49]
    said = capsys.readouterr()
    assert "2 of 4 utterances written" in said.out
    assert (
        "has the tiers words; expected phones" in said.err
        and "y/twin.flac: no alignment at its relative path" in said.err
    )
    assert guidance("textgrid", grids, *options[:2], "--out", tmp_path / "words", "--tier", "words") == 1
    assert (tmp_path / "words" / "boundaries" / "c.pt").exists()


def test_bad_use(tmp_path, manifest, capsys, monkeypatch):
    """Bad use is refused before anything is written, with status 2 and one line."""
    import s3prl_ofa.guidance.command as command

    (tmp_path / "x.ctm").write_text("a 1 0.0 zero A\n")
    (tmp_path / "clash.tsv").write_text("/root\na.flac\t16000\na.wav\t16000\n")
    (tmp_path / "none.tsv").write_text("/root\n")
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    ctm = write_ctm(tmp_path / "good.ctm", {"a": PHONES})
    out = ("--out", tmp_path / "out")
    for arguments, said in (
        (("ctm", tmp_path / "x.ctm", "--manifest", manifest, *out), "line 1"),
        (("ctm", tmp_path / "no.ctm", "--manifest", manifest, *out), "cannot be read"),
        (("ctm", ctm, "--manifest", tmp_path / "no.tsv", *out), "no.tsv"),
        (("ctm", ctm, "--manifest", tmp_path / "none.tsv", *out), "no utterances"),
        (("ctm", ctm, "--manifest", tmp_path / "clash.tsv", *out), "rename one"),
        (("ctm", ctm, "--manifest", manifest, "--out", tmp_path / "file"), "cannot be written"),
        (("ctm", ctm, "--manifest", manifest, *out, "--jobs", 0), "--jobs"),
        (("ctm", ctm, "--manifest", manifest, *out, "--longest", 0), "--longest"),
        (("textgrid", tmp_path / "no", "--manifest", manifest, *out), "no such folder"),
        (("textgrid", tmp_path / "empty", "--manifest", manifest, *out), "holds no .TextGrid"),
    ):
        assert guidance(*arguments) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(command.importlib.util, "find_spec", lambda name: None)
    assert guidance("textgrid", tmp_path / "empty", "--manifest", manifest, *out) == 2
    assert "pip install 's3prl-ofa[guidance]'" in capsys.readouterr().err
