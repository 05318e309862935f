"""``s3prl-ofa demo``: a local web page that shows and plays an utterance at any frame period, two rates side by side.

It works offline: every response has a Content-Security-Policy that forbids the browser from contacting other hosts.
"""

import argparse
import os
import socket
import tempfile
from typing import TYPE_CHECKING, Any

import numpy as np

from s3prl_ofa.arguments.parser import one_line
from s3prl_ofa.errors import UsageError
from s3prl_ofa.io.audio import SAMPLE_RATE, load_audio

if TYPE_CHECKING:
    import fastapi
    import gradio

    from s3prl_ofa.demo.view import View
    from s3prl_ofa.model import OFAWav2Vec2

HOST = "127.0.0.1"
PERIODS = (20.0, 90.0)  # ms, of the sliders
STARTS = (20.0, 50.0)
MAX_SECONDS = 20.0  # frames of longer audio would be too narrow to see
SAME_ORIGIN = "default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'; frame-ancestors 'none'"
ROWS = {
    "frames": lambda view: len(view.times),
    "frame period (ms)": lambda view: view.frame_period_ms,
    "lambd": lambda view: view.lambd,
    "million multiply-accumulates": lambda view: view.mmacs,
    "time (ms)": lambda view: view.milliseconds,
    "hidden states (MB)": lambda view: view.megabytes,
}
TITLE = """# s3prl-ofa: one model, any frame period
White lines are frame boundaries. The curves below explain them: a frame ends when the weights have summed to one. Move
a slider to change the rate. **Click a frame to hear it.**"""
NOTE = """Time is the best of a few runs on this machine. Hidden states are those of all layers, which S3PRL's tasks
keep in memory. Synthetic voices say little about real ones: try your own."""
CSS = """
.gradio-container {max-width: 1500px !important; margin: auto}
.side img {width: 100% !important; height: auto !important; object-fit: contain; cursor: pointer}
.wrap-inner input {text-overflow: ellipsis !important; padding-right: 1.5em !important}  /* beside the arrow */
.numbers table {width: 100%; display: table}
.numbers td, .numbers th {padding: 4px 10px}
.numbers td + td, .numbers th + th {text-align: right; white-space: nowrap}
"""


def run(args: argparse.Namespace) -> int:
    """Serves the page until Ctrl-C. Raises UsageError if the port is in use or the extra ``demo`` is not installed."""
    with tempfile.TemporaryDirectory(prefix="s3prl-ofa-demo-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder  # recordings and uploads are deleted at the end
        try:
            import gradio  # noqa: F401
            import matplotlib  # noqa: F401
            import uvicorn
        except ImportError as error:
            raise UsageError(f"the page needs {error.name}: pip install 's3prl-ofa[demo]'") from None

        from s3prl_ofa.checkpoint import load

        try:
            listener = socket.create_server((HOST, args.port))
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UsageError(f"--port {args.port} cannot be used ({reason}); choose another") from None
        with listener:
            page = serve(build(load(args.ckpt, args.device)))
            print(f"http://{HOST}:{listener.getsockname()[1]} shows the page; press Ctrl-C to stop", flush=True)
            uvicorn.Server(uvicorn.Config(page, log_level="warning")).run(sockets=[listener])
    return 0


def serve(blocks: "gradio.Blocks") -> "fastapi.FastAPI":
    """The page as a web application that serves only this machine and loads nothing from other hosts."""
    import fastapi
    import gradio
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    app = fastapi.FastAPI(openapi_url=None)
    # Against DNS rebinding: a page under a foreign name that resolves to 127.0.0.1 must not read this one.
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])

    @app.middleware("http")
    async def only_this_origin(request: fastapi.Request, call_next: Any) -> fastapi.Response:
        response = await call_next(request)
        response.headers["Content-Security-Policy"] = SAME_ORIGIN
        return response

    # Comes with gradio; weight 600 lacks most letters.
    font = gradio.themes.utils.fonts.LocalFont("Source Sans Pro", weights=(400, 700))
    theme = gradio.themes.Default(primary_hue="blue", font=(font, "system-ui", "sans-serif"))
    return gradio.mount_gradio_app(
        app, blocks, "/", theme=theme, css=CSS, ssr_mode=False, pwa=False, mcp_server=False, footer_links=[]
    )


def build(model: "OFAWav2Vec2") -> "gradio.Blocks":
    """The page's layout and event handlers."""
    import gradio

    from s3prl_ofa.demo import view
    from s3prl_ofa.demo.figures import WIDTH, frame_at

    def pick(name: str) -> tuple[int, np.ndarray]:
        return to_int16(load_audio(view.example_path(name)))

    def open_audio(path: str | None, name: str | None) -> view.Utterance | None:
        if path is None:
            return None
        try:
            wave = load_audio(path)
            if len(wave) > (longest := round(MAX_SECONDS * SAMPLE_RATE)):
                gradio.Info(f"the first {MAX_SECONDS:g} of {len(wave) / SAMPLE_RATE:.0f} seconds are shown")
            # The audio may have been uploaded, recorded or trimmed since the example was picked.
            known = name is not None and np.array_equal(to_int16(wave)[1], pick(name)[1])
            return view.analyse(model, wave[:longest], view.example_phones(name) if known else None)
        except ValueError as error:
            raise gradio.Error(one_line(error), print_exception=False) from None

    def show(utterance: view.Utterance | None, period_ms: float) -> tuple[view.View | None, np.ndarray | None, Any]:
        current = None if utterance is None else view.view_at(model, utterance, period_ms)
        return current, pixels(current), gradio.Audio(None, visible=False)

    def play(current: view.View | None, click: gradio.SelectData) -> tuple[np.ndarray, Any]:
        frame = frame_at(click.index[0] / WIDTH, current.utterance.seconds, current.times)
        start, end = current.times[frame]
        label = f"frame {frame + 1} of {len(current.times)}: {start:.3f} to {end:.3f} s"
        return pixels(current, frame), gradio.Audio(to_int16(current.frame_audio(frame)), label=label, visible=True)

    only = model.config.frame_period_ms  # of a model without a compressor
    names = view.examples()
    choices = [(f"voice {int(name[3:7])}: {text}", name) for name, text in names.items()]
    with gradio.Blocks(title="s3prl-ofa", analytics_enabled=False, delete_cache=(3600, 3600)) as blocks:
        gradio.Markdown(TITLE)
        with gradio.Row():
            with gradio.Column(min_width=480):
                example = gradio.Dropdown(choices, value=choices[0][1], label="bundled speech (synthetic)")
                audio = gradio.Audio(
                    type="filepath", label="or your own: drop a file, or record", elem_id="audio", buttons=[]
                )
            with gradio.Column(min_width=480):
                numbers = gradio.Markdown(elem_classes="numbers", elem_id="numbers")
                gradio.Markdown(NOTE)
        utterance = gradio.State()
        sides = []
        with gradio.Row():
            for letter, start in zip("AB", STARTS, strict=True):
                with gradio.Column(min_width=480, elem_classes="side", elem_id=f"side-{letter}"):
                    slider = gradio.Slider(
                        PERIODS[0],
                        max(PERIODS[1], only),
                        value=start if model.compressor else only,
                        step=1,
                        label=f"{letter}: frame period (ms)",
                        interactive=model.compressor is not None,
                        info=None if model.compressor else f"this checkpoint has no compressor: {only:g} ms only",
                    )
                    image = gradio.Image(format="png", show_label=False, interactive=False, buttons=["fullscreen"])
                    frame = gradio.Audio(autoplay=True, interactive=False, visible=False, buttons=[])
                    sides.append((gradio.State(), slider, image, frame))

        # One model run at a time, so that times are comparable.
        once = {"concurrency_id": "model", "concurrency_limit": 1, "show_progress": "hidden"}
        compare = {"fn": table, "inputs": [side[0] for side in sides], "outputs": numbers}
        opened = audio.change(open_audio, [audio, example], utterance, **once)
        for current, slider, image, frame in sides:
            shown = {"fn": show, "inputs": [utterance, slider], "outputs": [current, image, frame]}
            opened = opened.success(**shown, **once)
            slider.change(**shown, **once, trigger_mode="always_last").success(**compare)
            image.select(play, current, [image, frame], show_progress="hidden")
        opened.success(**compare)
        gradio.on([blocks.load, example.input], pick, example, audio)
        gradio.on([audio.upload, audio.stop_recording], lambda: None, None, example)
    return blocks


def to_int16(wave: np.ndarray) -> tuple[int, np.ndarray]:
    """The sample rate and a wave (samples,) as 16-bit integers: gradio would normalize the loudness of floats."""
    return SAMPLE_RATE, np.clip(wave * 32768, -32768, 32767).round().astype(np.int16)


def pixels(view: "View | None", highlight: int | None = None) -> np.ndarray | None:
    """The figure as an RGB image (height, width, 3), uint8."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    if view is None:
        return None
    canvas = FigureCanvasAgg(view.draw(highlight))
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


def table(*views: Any) -> str:  # gradio 6.0 evaluates the annotations of an event handler, and View is not imported
    """A Markdown table that compares two views; empty if there are none."""
    if None in views:
        return ""
    lines = ["| | A | B | B / A |", "|---|--:|--:|--:|"]
    for label, number in ROWS.items():
        a, b = map(number, views)
        ratio = "" if label == "lambd" else f"{b / a:.2f}"
        lines.append(f"| {label} | {in_digits(a)} | {in_digits(b)} | {ratio} |")
    return "\n".join(lines)


def in_digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
