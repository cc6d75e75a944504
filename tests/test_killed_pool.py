"""What a killed process had made is kept, and the same command goes on to the same images."""
import os
import random
import signal
import subprocess
import sys

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


def make_images(ws, kill_in=None): # the batch in which the process is killed; -> batches begun
    process = subprocess.Popen([sys.executable, '-c', MAKING, str(ws.root)], stdout=subprocess.PIPE, cwd=ROOT)
    begun = 0
    for _ in process.stdout:
        begun += 1
        if begun == kill_in: os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == (-signal.SIGKILL if kill_in else 0)
    return begun


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
