"""SLURM: the cells of a sweep as jobs of an array. submitit writes the job script and carries the cell there.

In the place of the plugin's launcher, which takes one dead job for the end of all: each job gets its own answer, by
what it left and by `squeue` (`sacct` may be missing).
"""

import os
import pickle
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import redirect_stderr, suppress
from io import StringIO
from pathlib import Path
from typing import Any

from hydra.core.plugins import Plugins
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus
from hydra_plugins.hydra_submitit_launcher.config import BaseQueueConf  # type: ignore[import-untyped,unused-ignore]
from hydra_plugins.hydra_submitit_launcher.submitit_launcher import SlurmLauncher as Plugin  # type: ignore[import-untyped,unused-ignore]

from ttpa.errors import ConfigError, TtpaError
from ttpa.run import config
from ttpa.run.jobs import ENDED, Died, Submitted, Unfinished, asked, is_alive, note, open_jobs, states

GRACE_S, POLL_S, LONGEST_POLL_S = 8.0, 1.0, 20.0  # how long a shared file system may hide a result; between two looks


def register() -> None:
    """Makes Hydra take the launcher of this module where an option file names the plugin's."""
    Plugins.instance().class_name_to_class[f"{Plugin.__module__}.{Plugin.__name__}"] = SlurmLauncher


def _fail(answer: JobReturn, error: TtpaError) -> None:
    answer.status, answer._return_value = JobStatus.FAILED, error


class SlurmLauncher(Plugin):  # type: ignore[misc]
    """Submits what is neither done nor under way, and waits for all."""

    submit_only = False
    """Leaves when every job waits or runs."""

    def __call__(self, *given: Any) -> None:
        """One cell, in its job. What fails for us fails for SLURM too."""
        theirs = signal.getsignal(signal.SIGUSR2)  # submitit's: the time is nearly up, queue the job again
        if theirs.__self__._delayed._timeout_countdown < 1:  # type: ignore[union-attr]
            signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # to the end of the time, which SLURM then calls TIMEOUT
        _ = super().__call__(*given).return_value

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        runs, now = Path(self.config.hydra.sweep.dir), states()
        known = {job["run"]: job for job in open_jobs(runs)}
        answers = [JobReturn(overrides=words, status=JobStatus.COMPLETED) for words in job_overrides]
        waiting, new = dict[int, dict[str, Any]](), dict[int, dict[str, Any]]()
        shared = set.intersection(*(set(words) for words in job_overrides))
        for number, words in enumerate(job_overrides):
            try:
                facts = self._facts(words, shared)
            except TtpaError as error:
                _fail(answers[number], error)
                print(f"ttpa: not submitted: {error}")
                continue
            job = known.get(facts["run"])
            if not facts["stages"]:
                print(f"ttpa: already done: {facts['cell']}")
            elif job and (is_alive(job, now) or (self.submit_only and self._result(job))):
                waiting[number] = job
                print("ttpa: job {job} of an earlier call: {cell}: {log}".format_map(job))
            else:
                new[number] = facts
        try:
            if new:
                self._submit(runs, {number: list(job_overrides[number]) for number in new}, new, initial_job_idx)
            self._wait(runs, waiting | new, answers)
        except KeyboardInterrupt:
            mine = [job["job"] for job in new.values() if "job" in job and "ended" not in job]
            subprocess.run(["scancel", *mine], timeout=60)
            for job in mine:
                note(runs, job=job, ended="CANCELLED")
            theirs = ", ".join(job["job"] for job in waiting.values() if "ended" not in job)
            more = f"; of earlier calls, and not cancelled: {theirs}" if theirs else ""
            print(f"ttpa: cancelled: {', '.join(mine) or 'no job'}{more}", file=sys.stderr)
            raise
        return answers

    def _facts(self, words: Sequence[str], shared: set[str]) -> dict[str, Any]:
        """What identifies a cell, how people know it, and the stages that it lacks."""
        from ttpa.run import pipeline

        cfg = self.hydra_context.config_loader.load_sweep_config(self.config, list(words))
        run = str(cfg.hydra.sweep.subdir)
        config.complete(cfg, cfg.hydra.runtime.choices, single=False)
        outcome = pipeline.plan(cfg)
        planned = [*outcome.shared.values(), *(one for branch in outcome.branches for one in branch.stages.values())]
        lacking = [stage.path.name for stage in planned if not stage.cached]
        if not lacking and not pipeline.is_recorded(cfg, outcome):
            lacking = [planned[-1].path.name]
        told = {*config.IDENTITY, "seed", "rounds", "until"}
        chosen = [word for word in words if word not in shared or word.partition("=")[0] in told]
        cell = ",".join([str(cfg.name), *(word for word in chosen if word != "until=null")])
        return {"run": run, "cell": cell, "stages": lacking}

    def _paths(self, job: str) -> Any:
        from submitit.core.utils import JobPaths

        return JobPaths(self.params["submitit_folder"], job_id=job, task_id=0)

    def _submit(self, runs: Path, jobs: dict[int, list[str]], facts: dict[int, dict[str, Any]], first: int) -> None:
        """One array. Adds job and log to the facts, remembers them and says them."""
        import submitit

        extra, params = self.config.cluster.get("extra") or {}, dict(self.params)
        folder, restarts = params.pop("submitit_folder"), params.pop("max_num_timeout")
        if not hasattr(extra, "items"):
            raise ConfigError.at("cluster.extra", extra, "must be options of sbatch", "Such as {mail-type: FAIL}")
        again = {"requeue": True} if restarts else {}
        params["additional_parameters"] = again | params["additional_parameters"] | dict(extra)
        params["srun_args"] = ["--kill-on-bad-exit=1"]  # one dead task of a job would have the others wait for ever
        executor = submitit.AutoExecutor(folder, cluster="slurm", slurm_max_num_timeout=restarts)
        general = BaseQueueConf.__dataclass_fields__
        executor.update_parameters(**{key if key in general else f"slurm_{key}": params[key] for key in params})
        given = [
            (words, "hydra.sweep.dir", first + number, f"job_id_for_{first + number}", Singleton.get_state())
            for number, words in jobs.items()
        ]
        try:
            with redirect_stderr(StringIO()):  # submitit says it again
                made = executor.map_array(self, *zip(*given, strict=True))
        except submitit.core.utils.FailedJobError as error:
            said = "; ".join(line.removeprefix("sbatch: error: ") for line in str(error).strip().splitlines())
            remedy = "Correct cluster.*; conf/cluster/slurm.yaml lists the keys"
            raise ConfigError(f"sbatch refused the jobs: {said}. {remedy}.") from None
        for job, cell in zip((one.job_id for one in made), facts.values(), strict=True):
            log = runs / "slurm" / (re.sub(r"[^\w.,=+-]", "_", cell["cell"])[:150] + f"-{job}.log")
            log.parent.mkdir(exist_ok=True, parents=True)
            log.unlink(missing_ok=True)
            log.symlink_to(os.path.relpath(self._paths(job).stdout, log.parent.absolute()))
            cell.update(job=job, log=str(log))
            note(runs, **cell)
            print(f"ttpa: job {job}: {cell['cell']}: {log}", flush=True)

    def _result(self, job: dict[str, Any]) -> list[Any]:
        """What submitit left of a job: empty, ["success", None] or ["error", traceback]."""
        with suppress(OSError):
            return list(pickle.loads(self._paths(job["job"]).result_pickle.read_bytes()))
        return []

    def _wait(self, runs: Path, jobs: dict[int, dict[str, Any]], answers: list[JobReturn]) -> None:
        """Fills in the answers as jobs end, and says how many wait, run and have ended."""
        pause, next_look, now, said, silent = POLL_S, 0.0, dict[str, str](), [""], dict[int, float]()
        left = dict(jobs)
        while left:
            if time.monotonic() >= next_look:
                try:
                    now = states()
                except TtpaError as error:  # the controller restarts
                    print(f"ttpa: warning: {error}", file=sys.stderr)
                    time.sleep(LONGEST_POLL_S)
                    continue
                pause = min(1.2 * pause, LONGEST_POLL_S)
                next_look = time.monotonic() + pause
            for number, job in list(left.items()):
                result, state = self._result(job), now.get(job["job"], "")
                if is_alive(job, now) and not (result and state == "COMPLETING"):
                    silent.pop(number, None)
                    if result:  # it will be gone in a moment
                        next_look = min(next_look, time.monotonic() + POLL_S)
                elif result or time.monotonic() - silent.setdefault(number, time.monotonic()) > GRACE_S:
                    failure = self._verdict(job, state, result)
                    job["ended"] = state if state in ENDED else "FAILED" if failure else "COMPLETED"
                    note(runs, job=job["job"], ended=job["ended"])
                    del left[number]
                    if failure:
                        _fail(answers[number], failure)
                        print(f"ttpa: {failure}", flush=True)
            count = Counter(now.get(job["job"], "unknown").lower() for job in left.values())
            parts = [f"{len(jobs) - len(left)} of {len(jobs)} jobs ended", *(f"{count[one]} {one}" for one in count)]
            if parts != said:
                print(f"ttpa: {', '.join(parts)}", flush=True)
                said = parts
            if self.submit_only and all(is_alive(job, now) for job in left.values()):
                break
            time.sleep(POLL_S)
        for number, job in left.items():
            _fail(answers[number], Submitted("job {job} waits or runs: {log}".format_map(job)))

    def _verdict(self, job: dict[str, Any], state: str, result: list[Any]) -> TtpaError | None:
        where = "job {job}, {cell} (log: {log})".format_map(job)
        if result[:1] == ["success"]:
            return None
        if result:
            said = [line for line in result[1].splitlines() if re.match(r"[\w.]+(: |$)", line)]  # the last error
            kind = TtpaError if said and said[-1].startswith("ttpa.errors.") else Died
            return kind(f"{where}: {said[-1].rpartition('ttpa.errors.')[2] if said else 'failed'}")
        if not state:
            with suppress(TtpaError):
                found = asked("sacct", "-X", "-n", "-P", "-o", "State", "-j", job["job"])
                state = found[0][0].split()[0] if found else ""
        if state in ("FAILED", "COMPLETED", "OUT_OF_MEMORY"):
            remedy = "Raise cluster.mem_gb." if state == "OUT_OF_MEMORY" else "See its log."
            return Died(f"{where}: {state}, a process of it died. {remedy}")
        return Unfinished(
            f"{where}: {state or 'SLURM knows it no more'}. The same command again goes on from its last resume point."
        )
