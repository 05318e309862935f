"""Progress bars on stderr, with the speed as a multiple of real time."""

from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

from s3prl_ofa.output import is_quiet

OF_AUDIO = "{l_bar}{bar}| {audio_done}/{audio_total} of audio [{elapsed}<{remaining}{postfix}]"


class Progress(tqdm):
    """A bar that is shown where stderr is a terminal, but not with ``--quiet``.

    seconds: the total, for a bar that advances by audio rather than by items. options: of tqdm.
    """

    def __init__(self, items: Iterable[Any] | None = None, *, seconds: float | None = None, **options: Any) -> None:
        self.by_audio, self.seconds_done = seconds is not None, 0.0
        if self.by_audio:
            options |= {"total": seconds, "bar_format": OF_AUDIO}
        super().__init__(items, dynamic_ncols=True, disable=is_quiet() or None, **options)

    @property
    def format_dict(self) -> dict[str, Any]:
        """tqdm's values for the bar; with ``by_audio`` also the duration of the audio, as 1:02:03."""
        found = super().format_dict
        if self.by_audio:
            found["audio_done"], found["audio_total"] = map(self.format_interval, (found["n"], found["total"]))
        return found

    def add_audio(self, seconds: float) -> None:
        """Advances the bar by this much audio."""
        self.seconds_done += seconds
        if self.disable:
            return
        elapsed = max(self.format_dict["elapsed"], 1e-3)
        self.set_postfix_str(f"{self.seconds_done / elapsed:.0f} x real time", refresh=False)
        if self.by_audio:
            self.update(seconds)
