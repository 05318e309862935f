"""Uses the installed command as a new user would: ``cd /tmp && python -P SOURCES/tests/installed.py``."""

import json
import pathlib
import subprocess
import sys
import tempfile
import urllib.request

import s3prl_ofa

PACKAGE = pathlib.Path(s3prl_ofa.__file__).parent
COMMAND = str(pathlib.Path(sys.executable).with_name("s3prl-ofa"))


def run(*arguments: str) -> str:
    print("s3prl-ofa", *arguments, flush=True)
    return subprocess.run([COMMAND, *arguments], check=True, stdout=subprocess.PIPE, text=True).stdout


def main() -> None:
    assert pathlib.Path(sys.prefix) in PACKAGE.parents, f"{PACKAGE} is not the installed package"
    assert run("--version").split() == ["s3prl-ofa", s3prl_ofa.__version__]
    assert json.loads(run("info", "tiny", "--json"))["utterances"] == 24
    assert "--upstream" in run("run_downstream", "--help")
    with tempfile.TemporaryDirectory() as folder:
        audio = PACKAGE / "demo" / "audio" / "test"
        run("extract", str(audio), "--ckpt", "tiny", "--frame-period-ms", "40", "--out", folder)
        rows = [json.loads(line) for line in pathlib.Path(folder, "index.jsonl").read_text().splitlines()]
        assert len(rows) == len(list(audio.rglob("*.opus")))
    print("s3prl-ofa demo --port 0", flush=True)
    with subprocess.Popen([COMMAND, "demo", "--port", "0"], stdout=subprocess.PIPE, text=True) as server:
        try:
            address = server.stdout.readline().split()[0]
            assert b"s3prl-ofa" in urllib.request.urlopen(address).read()
        finally:
            server.terminate()


if __name__ == "__main__":
    main()
