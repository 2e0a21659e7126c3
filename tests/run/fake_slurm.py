"""Stands in for sbatch, srun, sacct and scontrol: array jobs as processes of this machine, requeued on request."""

import os
import re
import subprocess
import sys
from pathlib import Path

me, name, words = Path(__file__).resolve(), Path(sys.argv[0]).name, sys.argv[1:]
home = Path(os.environ["FAKE_SLURM"])
if name == "sbatch":
    text = Path(words[-1]).read_text()
    (home / "script").write_text(text)
    last = int(re.search(r"--array=0-(\d+)", text).group(1))
    for number in range(last + 1):
        quiet = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
        subprocess.Popen([sys.executable, str(me), str(number)], start_new_session=True, **quiet)
    print("Submitted batch job 7")
elif name == "srun":
    outputs = [words.pop(words.index(flag) + 1) for flag in ("--output", "--error")]
    command = [word for word in words if not word.startswith("--")]
    outputs = [path.replace("%A_%a", os.environ["FAKE_JOB"]).replace("%t", "0") for path in outputs]
    Path(outputs[0]).parent.mkdir(parents=True, exist_ok=True)
    with open(outputs[0], "a") as out, open(outputs[1], "a") as err:
        sys.exit(subprocess.run(command, stdout=out, stderr=err).returncode)
elif name == "sacct":
    print("JobID|State|NodeList")
    for path in sorted(home.glob("job-*")):
        print(f"{path.name[4:]}|{path.read_text()}|localhost")
elif name == "scontrol":
    assert words[0] == "requeue"
    (home / f"requeue-{words[1]}").touch()
else:
    job = f"7_{words[0]}"
    slurm = dict(
        SLURM_JOB_ID="8" + words[0],
        SLURM_ARRAY_JOB_ID="7",
        SLURM_ARRAY_TASK_ID=words[0],
        SLURM_NTASKS="1",
        SLURM_NTASKS_PER_NODE="1",
        SLURM_JOB_NUM_NODES="1",
        SLURM_NODEID="0",
        SLURM_PROCID="0",
        SLURM_LOCALID="0",
        SLURM_JOB_NODELIST="localhost",
        SLURM_JOB_NAME="ttpa",
        FAKE_JOB=job,
    )
    again = True
    while again:
        (home / f"job-{job}").write_text("RUNNING")
        subprocess.run(["bash", str(home / "script")], env={**os.environ, **slurm})
        again = (home / f"requeue-{job}").exists()
        (home / f"requeue-{job}").unlink(missing_ok=True)
    (home / f"job-{job}").write_text("COMPLETED")
