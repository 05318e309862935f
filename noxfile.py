"""The tests with the oldest and the newest supported dependencies, and the built package; needs ``pip install nox uv``.

``nox`` runs everything, ``nox -s "tests-3.12(oldest)" -- tests/model`` some tests in one environment. On Linux without
a GPU, ``UV_TORCH_BACKEND=cpu`` saves 4 GB per environment.
"""

import pathlib
import shutil

import nox

nox.options.default_venv_backend = "uv"
PYTHONS = ["3.11", "3.12", "3.13"]
NEWEST = ["--constraint", "constraints.txt"]
OLDEST = ["--resolution", "lowest-direct"]  # the lower bounds of setup.py
# Promised only with constraints.txt: its versions, the site, and a drawing to the last digit.
OF_NEWEST = ["--deselect", "tests/test_package.py::test_constraints_are_what_runs", "--ignore", "tests/test_docs.py"]
OF_NEWEST += ["--deselect", "tests/test_benchmarks.py::test_the_cost_curve_is_fresh"]


@nox.session(python=PYTHONS)
@nox.parametrize("versions", [nox.param(OLDEST, id="oldest"), nox.param(NEWEST, id="newest")])
def tests(session: nox.Session, versions: list[str]) -> None:
    """Runs the tests that are not slow."""
    session.install(*versions, "-e", ".")
    # fairseq is built from source on most Pythons, with the installed packages.
    session.install(*NEWEST, "cython", "setuptools", "wheel")
    session.install(*versions, "--no-build-isolation-package", "fairseq-fixed", "-e", ".[all]")
    session.install(*(NEWEST if versions == NEWEST else []), "-e", ".[test]")
    left_out = OF_NEWEST if versions == OLDEST else []
    session.run("python", "-m", "pytest", "-m", "not slow", *left_out, *session.posargs, env={"OMP_NUM_THREADS": "1"})


@nox.session
def build(session: nox.Session) -> None:
    """Builds sdist and wheel into dist/ and checks them."""
    session.install(*NEWEST, "build", "twine")
    shutil.rmtree("dist", ignore_errors=True)
    session.run("python", "-m", "build", "--outdir", "dist")
    session.run("python", "-m", "twine", "check", "--strict", *map(str, pathlib.Path("dist").iterdir()))


@nox.session(python=PYTHONS, requires=["build"])
def installed(session: nox.Session) -> None:
    """Uses the wheel in an environment that holds nothing else, outside the source tree."""
    (wheel,) = pathlib.Path("dist").resolve().glob("*.whl")
    session.install(*NEWEST, f"{wheel}[demo]")
    script = pathlib.Path("tests/installed.py").resolve()
    session.chdir(session.create_tmp())
    session.run("python", "-P", str(script))
