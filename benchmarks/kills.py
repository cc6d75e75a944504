"""kill -9 at random moments of every long job: what was lost each time, and whether anything differs at the end.

One of two equal workspaces of drawn people is left alone. In the other each job is killed again and again, a random
number of batches after its beginning and at a random moment of a batch, and then run to its end by the same command.
Finally all tables (but for times), all files of images, splits and runs are compared.

    python benchmarks/kills.py
    OMP_NUM_THREADS=1 chrt -r 1 python benchmarks/kills.py --kills 20 --seed 1      beside other work
"""
import argparse
import hashlib
import random
import shutil
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT/'tests'), str(ROOT/'benchmarks')]
from plan import workspace  # noqa: E402
from test_killed_pool import run_and_kill  # noqa: E402

BATCH, POOL, CHECKPOINT = 16, 8, 4
WORKING = """
import sys, time, warnings
warnings.simplefilter('ignore')
from hgdpo_curate import generate_pool, open_workspace, reconstruct, score_images, train_curriculum
ws, job = open_workspace(sys.argv[1]), sys.argv[2]
def progress(total, label):
    def update(n): print(label.split()[0], n, time.monotonic(), flush=True)
    return update
how = dict(batch={batch}, progress=progress)
if job == 'pool': generate_pool(ws, {pool}, **how)
if job == 'recon': reconstruct(ws, **how)
if job == 'score': score_images(ws, **how)
if job == 'train':
    train_curriculum(ws, preset='mannequin', run='r', max_train_steps=12, checkpointing_steps={checkpoint},
                     progress=progress, report_to='none')
""".format(batch=BATCH, pool=POOL, checkpoint=CHECKPOINT)
JOBS = dict(pool=.3, recon=.25, score=.2, train=.25)        # name -> share of the kills


def rows(ws): # table -> its rows without times, in one order
    from hgdpo_curate.tables import SCHEMAS
    def of(name): return sorted(map(str, ws.table(name).drop(columns='written_at').to_dict('records')))
    return {name: of(name) for name in SCHEMAS if ws.parts(name)}


def content(path): # hash of a file; of safetensors that of its tensors and texts, whose order there changes by itself
    if path.suffix != '.safetensors' or '.tmp' in path.name: return hashlib.sha256(path.read_bytes()).hexdigest()
    from safetensors import safe_open
    with safe_open(path, 'np') as f:
        known = [*sorted((f.metadata() or {}).items()), *((k, f.get_tensor(k).tobytes()) for k in sorted(f.keys()))]
    return hashlib.sha256(repr(known).encode()).hexdigest()


def files(ws): # path -> hash, of images, frozen pairs and LoRAs; and whatever is left half written
    kept = [p for f in ('images', 'splits', 'runs') for p in (ws.root/f).rglob('*') if p.is_file()]
    pairs = {*(ws.root/'splits').rglob('*.parquet')}
    kept = [p for p in kept if p.suffix in ('.png', '.safetensors') or '.tmp' in p.name or p in pairs]
    return {str(p.relative_to(ws.root)): content(p) for p in kept}


def done(ws, job): # how much of a job is kept: rows, or steps that a checkpoint or an adapter has
    if job == 'score': return len(ws.table('scores'))
    if job != 'train': return len(ws.table('images').query("domain == @domain", local_dict=dict(
        domain=dict(pool='generated', recon='intermediate')[job])))
    steps = 0
    for stage in (ws.root/'runs'/'r').glob('*'):
        saved = [int(p.stem.split('-')[1]) for p in stage.glob('checkpoints/step-*.pt')]
        steps += 12 if (stage/'done.json').exists() else max(saved, default=0)
    return steps


def counted(job, lines): # what a process said it had done
    said = [line.split() for line in lines]
    return sum(int(n) for label, n, _ in said if job != 'train' or label == 'training')


def seconds_of_a_batch(lines):
    times = [float(line.split()[2]) for line in lines]
    return median(b - a for a, b in zip(times, times[1:]))


def kill_and_go_on(ws, job, kills, lines, total, rng): # lines: what the job prints undisturbed; total: all that it does
    "Kill the job so often, print what was lost, and let it end."
    lost, batch = [], seconds_of_a_batch(lines)
    for n in range(kills):
        before = done(ws, job)
        left = len(lines)*(total - before)//total//(kills - n + 1)      # so that something is left for the next one
        at, wait = rng.randint(1, max(1, left)), rng.uniform(0, batch)
        said, killed = run_and_kill(WORKING, str(ws.root), job, kill_in=at, pause=wait)
        if not killed: sys.exit(f'{job} ended before it could be killed; give more --photos.')
        worked, kept = counted(job, said), done(ws, job) - before
        lost.append(worked - kept)
        unit = 'steps' if job == 'train' else 'images'
        print(f'| {job} | {len(said)} batches, {wait:.2f} s | {worked} {unit} | {kept} | {lost[-1]} |', flush=True)
    run_and_kill(WORKING, str(ws.root), job)
    return lost


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--kills', type=int, default=20, help='how many in all')
    p.add_argument('--jobs', nargs='+', default=[*JOBS], choices=[*JOBS], help='those that are killed')
    p.add_argument('--photos', type=int, default=60, help='drawn photos')
    p.add_argument('--seed', type=int, default=1, help='of the moments')
    a = p.parse_args()
    from hgdpo_curate import freeze_split, open_workspace
    rng, began, lost = random.Random(a.seed), time.monotonic(), {}
    with tempfile.TemporaryDirectory() as folder:
        alone = workspace(Path(folder)/'alone', a.photos)
        # of the same name, which is part of the names of LoRA files
        killed = open_workspace(shutil.copytree(alone.root, Path(folder)/'killed'/'people'))
        head = 'job', 'killed after', 'worked by then', 'kept', 'lost, beside the batch in flight'
        print(f'| {" | ".join(head)} |\n{"|---"*len(head)}|', flush=True)
        for job, share in JOBS.items():
            if job == 'train':
                for ws in (alone, killed): freeze_split(ws, 'v1')
            lines, _ = run_and_kill(WORKING, str(alone.root), job)
            kills = round(a.kills*share) if job in a.jobs else 0
            lost[job] = kill_and_go_on(killed, job, kills, lines, done(alone, job), rng)
        tables, kept = [rows(ws) for ws in (alone, killed)], [files(ws) for ws in (alone, killed)]
    differ = {name for x, y in (tables, kept) for name in x.keys() | y.keys() if x.get(name) != y.get(name)}
    count, minutes = sum(map(len, lost.values())), (time.monotonic() - began)/60
    most = ', '.join(f'{job} {max(some)}' for job, some in lost.items() if some)
    print(f'{date.today()}: {count} kills in {minutes:.0f} minutes; lost at most: {most}')
    print(f'{sum(map(len, tables[0].values())):,} rows of {len(tables[0])} tables and {len(kept[0]):,} files: '
          + (f'these DIFFER: {", ".join(sorted(differ)[:20])}' if differ else 'equal'))
    return bool(differ)


if __name__ == '__main__': raise SystemExit(main())
