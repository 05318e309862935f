"""Stand-ins for Slurm's sbatch, srun and sacct that run jobs on this machine."""

import os
import pathlib

import pytest

COMMANDS = {
    # sbatch FILE: runs it in the background as the next job, and remembers what it was given
    "sbatch": """
        number=$(($(cat "$CLUSTER/jobs" 2>/dev/null || echo 6) + 1))
        echo $number > "$CLUSTER/jobs"
        cp "$1" "$CLUSTER/$number.sh"
        export SLURM_JOB_ID=$number SLURM_NTASKS=1 SLURM_JOB_NUM_NODES=1 SLURM_NODEID=0 SLURM_PROCID=0 SLURM_LOCALID=0
        export SLURM_JOB_NODELIST=here
        (bash "$1"; touch "$CLUSTER/$number.ended") > "$CLUSTER/$number.log" 2>&1 &
        echo "Submitted batch job $number"
    """,
    # srun [--option | --output FILE | --error FILE]... COMMAND
    "srun": """
        while :; do
            case "$1" in
                --output | --error) shift 2 ;;
                --*) shift ;;
                *) break ;;
            esac
        done
        exec "$@"
    """,
    "sacct": """
        echo "JobID|State|NodeList"
        for job in $(seq 7 $(cat "$CLUSTER/jobs")); do
            if [ -e "$CLUSTER/$job.ended" ]; then state=COMPLETED; else state=RUNNING; fi
            echo "$job|$state|here"
        done
    """,
    "scancel": "",
}


def stand_in(folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """Puts the commands first on the path. Returns the folder in which they keep their jobs, and lie themselves."""
    folder.mkdir()
    for name, script in COMMANDS.items():
        path = folder / name
        path.write_text(f"#!/bin/bash\n{script}")
        path.chmod(0o755)
    monkeypatch.setenv("CLUSTER", str(folder))
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    return folder
