"""What a configuration may have hydra and fairseq import, build or call: nothing but what is theirs.

hydra builds the callbacks and the launcher that its own section names, and gives its logging sections to Python, which
imports and calls what they name; fairseq imports ``common.user_dir``.
"""

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

from s3prl_ofa.errors import UsageError
from s3prl_ofa.guarded import replaced

NO_USER_DIR = "common.user_dir is for fairseq-hydra-train; this command brings the plugin itself"
# keys of hydra's section under which something is named, and what its name may begin with; "()" is logging's
NAMING = {"_target_": ("hydra.", "hydra_plugins."), "class": ("logging.",), "()": ()}


@contextlib.contextmanager
def nothing_built() -> Iterator[None]:
    """Has each configuration checked when hydra has put it together, before it acts on it. Raises UsageError."""
    from hydra._internal.config_loader_impl import ConfigLoaderImpl
    from omegaconf import OmegaConf

    load = ConfigLoaderImpl.load_configuration

    @functools.wraps(load)
    def load_checked(*args: Any, **kwargs: Any) -> Any:
        cfg = load(*args, **kwargs)
        if OmegaConf.select(cfg, "common.user_dir", throw_on_missing=False):
            raise UsageError(NO_USER_DIR)
        check_names(OmegaConf.to_container(cfg.hydra), "hydra")
        return cfg

    with replaced(ConfigLoaderImpl, load_configuration=load_checked):
        yield


def check_names(value: Any, where: str) -> None:
    """Raises UsageError for a name of what is not hydra's or logging's own; where: the key of the value."""
    for key, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        if key in NAMING and not str(item).startswith(NAMING[key]):
            raise UsageError(f"{where}.{key}: {str(item)[:80]!r} is not built; only parts of hydra's own are expected")
        check_names(item, f"{where}.{key}")
