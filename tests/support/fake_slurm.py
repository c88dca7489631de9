"""The commands of Slurm on one machine, for tests: sbatch, srun, sacct, scancel and scontrol, in a folder for PATH.

A job is a process group whose leader runs the submitted script, and again after `scontrol requeue`. Each job has a file
JOBS/ID with its state.
"""

import sys
from pathlib import Path

FAKE = '''#!{python}
import os, re, signal, subprocess, sys, time
from pathlib import Path

JOBS = Path({jobs!r})
command, arguments = Path(sys.argv[0]).name, sys.argv[1:]


def state(job, text=None):
    if text:
        (JOBS / f"{{job}}.new").write_text(text)
        (JOBS / f"{{job}}.new").rename(JOBS / job)
    return (JOBS / job).read_text()


def supervise(job, script):
    """Slurm's part: run the script until it ends by itself; a job that was queued again runs again."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    heard = lambda: [signal.signal(n, signal.SIG_DFL) for n in (signal.SIGTERM, signal.SIGUSR2)]
    while True:
        state(job, "RUNNING")
        code = subprocess.call(["bash", script], env={{**os.environ, "SLURM_JOB_ID": job}}, preexec_fn=heard)
        if state(job) != "REQUEUED":
            if state(job) == "RUNNING":
                state(job, "FAILED" if code else "COMPLETED")
            return


def spread(job, number):
    """As Slurm does, signal the processes of the job's steps, but not its supervisor, nor the shell of the script."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            mine = f"SLURM_JOB_ID={{job}}".encode() in (entry / "environ").read_bytes().split(b"\\0")
            step = not (entry / "cmdline").read_bytes().startswith(b"bash\\0")
            if mine and step and int(entry.name) != os.getpid():
                os.kill(int(entry.name), number)
        except OSError:
            pass


if command == "sbatch":
    JOBS.mkdir(exist_ok=True)
    job = str(len(list(JOBS.iterdir())) + 1)
    state(job, "PENDING")
    (JOBS / f".{{job}}.sh").write_text(Path(arguments[0]).read_text())
    if os.fork() == 0:
        os.setsid()
        for n in range(3):
            os.dup2(os.open(os.devnull, os.O_RDWR), n)
        supervise(job, str(JOBS / f".{{job}}.sh"))
        os._exit(0)
    print(f"Submitted batch job {{job}}")
elif command == "srun":
    job = os.environ["SLURM_JOB_ID"]
    paths = {{}}
    while arguments[0].startswith("--"):
        name = arguments.pop(0)
        if name in ("--output", "--error"):
            paths[name] = arguments.pop(0).replace("%j", job).replace("%t", "0")
    os.dup2(os.open(paths["--output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND), 1)
    os.dup2(os.open(paths["--error"], os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    os.execv(arguments[0], arguments)
elif command == "sacct":
    print("JobID|State|NodeList")
    for job in (arguments[n + 1] for n, word in enumerate(arguments) if word == "-j"):
        print(f"{{job}}|{{state(job)}}|here")
elif command == "scancel":
    if "--signal" in arguments:
        spread(arguments[0], getattr(signal, "SIG" + arguments[-1].removeprefix("SIG")))
    else:
        state(arguments[0], "CANCELLED")
        spread(arguments[0], signal.SIGTERM)
        time.sleep(1)
        spread(arguments[0], signal.SIGKILL)
elif command == "scontrol":
    assert arguments[0] == "requeue", arguments
    state(arguments[1], "REQUEUED")
'''


def install(folder: Path) -> Path:
    """Write the commands to `folder`/bin and return that folder."""
    place = folder / "bin"
    place.mkdir()
    for name in ("sbatch", "srun", "sacct", "scancel", "scontrol"):
        (place / name).write_text(FAKE.format(python=sys.executable, jobs=str(folder / "jobs")))
        (place / name).chmod(0o755)
    return place
