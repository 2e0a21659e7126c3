"""Stands in for sbatch and squeue: runs no job, but leaves what FATES says of each, `success`, an error, or a state."""

import os
import pickle
import re
import sys
from pathlib import Path

home, fates = Path(os.environ["FAKE_SLURM"]), os.environ["FATES"].split(",")
if Path(sys.argv[0]).name == "squeue":
    count = int((home / "count").read_text()) if (home / "count").exists() else 0
    for number, fate in enumerate(fates[:count]):
        print(f"7{f'_{number}' * (count > 1)}|{fate if fate.isupper() else 'COMPLETING'}")
elif fates == ["refuse"]:
    sys.exit("sbatch: error: invalid partition specified: nowhere\nsbatch: error: Batch job submission failed: no")
else:
    text = Path(sys.argv[-1]).read_text()
    (home / "script").write_text(text)
    found = re.search(r"--array=0-(\d+)", text)
    count = int(found[1]) + 1 if found else 1
    (home / "count").write_text(str(count))
    for number, fate in enumerate(fates[:count]):
        job = f"7_{number}" if found else "7"
        folder = Path(text.split()[-1].replace("%j", job))
        folder.mkdir(parents=True, exist_ok=True)
        if not fate.isupper():
            trace = f"Traceback ...\nttpa.errors.DataError: {fate}\n"
            result = ("success", None) if fate == "success" else ("error", trace)
            (folder / f"{job}_0_result.pkl").write_bytes(pickle.dumps(result))
    print("Submitted batch job 7")
