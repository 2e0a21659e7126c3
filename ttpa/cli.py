"""The command `ttpa`: `ttpa KEY=VALUE ...` runs the graph (a Hydra application), `ttpa COMMAND ...` does the rest.

Imports neither torch nor Lightning. A command is a module with a text `HELP` and a function `main(words) -> status`.
"""

import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from ttpa.errors import ConfigError, Interrupted, TtpaError, masked, nearest, of_disk, status_of, visible
from ttpa.results.job import job, use_own_launchers
from ttpa.run import cluster, config

COMMANDS = {
    "sweep": "ttpa.results.sweep",
    "status": "ttpa.results.status",
    "table": "ttpa.results.render",
    "report": "ttpa.results.report.report",
    "score": "ttpa.benchmarks.score",
    "data": "ttpa.results.show",
    "export": "ttpa.results.export",
    "dashboard": "ttpa.results.dashboard",
}


@hydra.main(version_base="1.3", config_path="pkg://ttpa.conf", config_name="config")
def _run(cfg: DictConfig) -> None:
    job(cfg)


def _end_of_sweep(failed: Sequence[JobReturn]) -> int:
    """Prints the cells that failed; returns the exit status."""
    for one in failed:
        reason = one._return_value
        name = "" if isinstance(reason, TtpaError) else f"{type(reason).__name__}: "
        said = " ".join(f"{name}{reason}".split()).rstrip(".")
        # A job of SLURM has said where its log is.
        log = f" Log: {one.hydra_cfg.hydra.runtime.output_dir}/ttpa.log" if one.hydra_cfg else ""
        print(visible(masked(f"ttpa: failed: {' '.join(one.overrides or ())}: {said}.{log}")), file=sys.stderr)
    if not failed:
        return 0
    print(
        f"ttpa: {len(failed)} cells of the sweep failed. The same command again runs what is missing.", file=sys.stderr
    )
    return status_of(one._return_value for one in failed)


def graph(words: Sequence[str]) -> int:
    """`ttpa KEY=VALUE ...`; without words the demo. What cannot be composed is a ConfigError with the nearest word."""
    sys.argv[1:] = words or ["experiment=demo"]
    flags = list(get_args_parser()._option_string_actions)
    for word in words:  # before argparse refuses an unknown flag in ten lines
        if word.startswith("-") and not any(flag.startswith(word.partition("=")[0]) for flag in flags):
            raise ConfigError(f"no flag {word}. {nearest(word, flags)}")
    launches = not {"-m", "--multirun", "hydra.mode=MULTIRUN"}.isdisjoint(words)
    cluster.check_plugins(words, launches=launches)
    if launches:
        use_own_launchers()
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # errors come back here instead of being printed by Hydra
    failed: list[JobReturn] = []

    def returned(self: JobReturn) -> Any:
        """Hydra's sweeper asks each cell for what it returned, and would stop at the first that failed."""
        if self.status == JobStatus.COMPLETED or (self.hydra_cfg and self.hydra_cfg.hydra.mode == RunMode.RUN):
            return value.fget(self)
        failed.append(self)
        return None

    value: Any = JobReturn.return_value
    JobReturn.return_value = value.getter(returned)  # type: ignore[method-assign]
    try:
        _run()
    except (HydraException, OmegaConfBaseException) as error:
        from ttpa.run.overrides import explained

        raise explained(error, words) from None
    finally:
        JobReturn.return_value = value  # type: ignore[method-assign]
    return _end_of_sweep(failed)


def command(name: str, words: Sequence[str]) -> int:
    """`ttpa COMMAND ...`; returns the exit status."""
    module = importlib.import_module(COMMANDS[name])
    if not words or {"--help", "-h", "help"} & set(words[:1]):
        print(module.HELP, end="")
        return 0
    status: int = module.main(list(words))
    return status


def main() -> None:
    """Entry point of the script `ttpa`."""
    try:
        words = config.allow(sys.argv[1:])
        if words and words[0] in COMMANDS:
            status = command(words[0], words[1:])
        elif words and words[0].isidentifier():
            raise ConfigError(f"no command {words[0]}. {nearest(words[0], COMMANDS)} A setting has the form key=value.")
        else:
            status = graph(words)
    except TtpaError as error:
        print(f"ttpa: error: {error}", file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        print(f"ttpa: {Interrupted()}", file=sys.stderr)
        status = 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader has seen enough
        status = 0
    except Exception as error:
        if (known := of_disk(error)) is None:
            raise
        print(f"ttpa: error: {known}", file=sys.stderr)
        status = 2
    sys.exit(status)


if __name__ == "__main__":
    main()
