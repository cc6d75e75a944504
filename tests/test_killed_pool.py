"""What a killed process had made is kept, and the same command goes on to the same images."""
import os
import random
import signal
import subprocess
import sys
import time

from conftest import ROOT

from hgdpo_curate import create_workspace

JOBS, BATCH = 60, 4
MAKING = f"""
import sys, time
from hgdpo_curate import open_workspace
from hgdpo_curate.images.jobs import image_job, run_jobs, seed_of
from hgdpo_curate.toy.drawings import draw_person
ws = open_workspace(sys.argv[1])
jobs = [image_job('p', 'a person', seed_of('p', k), 'drawn', ws.size, 'none', 1, 1.) for k in range({JOBS})]
def make(part):
    print('begun', flush=True)
    time.sleep(.1)
    return [draw_person([7, j['seed']]).pil() for j in part]
run_jobs(ws, None, jobs, 'generated', {BATCH}, make=make, progress=lambda total, label: lambda n: None)
"""


def run_and_kill(code, *words, kill_in=None, pause=0.): # the line of its output after which, and how long after it
    "Run code in a process of its own, and kill it; -> (lines that it printed, whether it was killed)."
    process = subprocess.Popen([sys.executable, '-c', code, *words], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    lines = []
    for line in process.stdout:
        lines.append(line)
        if len(lines) == kill_in:
            time.sleep(pause)
            os.kill(process.pid, signal.SIGKILL)
    code = process.wait()
    assert code in (0, -signal.SIGKILL) and (kill_in or code == 0)
    return lines, code != 0


def make_images(ws, kill_in=None): # the batch in which the process is killed; -> batches begun
    lines, killed = run_and_kill(MAKING, str(ws.root), kill_in=kill_in)
    assert killed == bool(kill_in)
    return len(lines)


def images_of(ws): # id -> (row without its time, the file's bytes)
    rows = ws.table('images').drop(columns='written_at').astype(str).set_index('image_id', drop=False)
    return {i: (tuple(r), (ws.root/r.path).read_bytes()) for i, r in rows.iterrows()}


def test_three_kills_lose_no_more_than_the_batch_in_flight_and_the_one_being_saved(tmp_path):
    unbroken, killed = (create_workspace(tmp_path/name, resolution='40x56') for name in ('unbroken', 'killed'))
    make_images(unbroken)
    rng, kept = random.Random(3), 0
    for _ in range(3):
        begun = make_images(killed, rng.randint(2, 5))
        now = len(killed.table('images'))
        assert now - kept >= BATCH*(begun - 2)
        kept = now
    assert 0 < kept < JOBS
    begun = make_images(killed)
    assert begun == -(-(JOBS - kept)//BATCH)               # nothing that was kept is made again
    assert images_of(killed) == images_of(unbroken) and len(images_of(killed)) == JOBS
    assert {p.name for p in (killed.root/'images').rglob('*.png')} == {f'{i}.png' for i in images_of(killed)}
