"""What `hgdpo plan` says beside the clock: drawn people, every step planned and then done.

Plans a fresh workspace as `hgdpo plan` does, with its half a minute of measurement, then makes the pool, the
reconstructions, the scores, the cache and the adapters, and compares the seconds of each. What loads weights or writes
tables between them is in `everything else`, of which the plan says nothing. Beside other work on the machine, so that
both halves get the same share of it:

    OMP_NUM_THREADS=1 chrt -r 1 python benchmarks/plan.py
    python benchmarks/plan.py --photos 60 --pool 8 --seconds 30
"""
import argparse
import os
import tempfile
import time
from datetime import date
from pathlib import Path

LIMIT = .25          # of the whole, by which plan and clock may differ


class Clock:
    "A `progress` that notes how long each bar is open, from its first to its last word."
    def __init__(self): self.began, self.ended = {}, {}

    def __call__(self, total, label):
        self.began.setdefault(label, time.perf_counter())
        def update(n): self.ended[label] = time.perf_counter()
        return update

    def seconds(self, *words): # of all bars whose label begins with one of the words
        return sum(end - self.began[label] for label, end in self.ended.items() if label.startswith(words))


def workspace(folder, photos):
    "Drawn photos, imported."
    from hgdpo_curate import create_workspace, import_photos
    from hgdpo_curate.demo import MANNEQUIN
    from hgdpo_curate.toy.drawings import export_photos
    from hgdpo_curate.train.presets import mannequin
    pool = mannequin().pool
    ws = create_workspace(
        folder/'people',
        base_model=MANNEQUIN,
        resolution=pool.resolution,
        steps=pool.steps,
        guidance=pool.guidance,
    )
    import_photos(ws, export_photos(folder/'photos', photos, seed=5), progress=lambda items, **k: items)
    return ws


def do_everything(ws, n): # -> step of the plan -> seconds
    "Each step as its command does it, in this process."
    from hgdpo_curate import freeze_split, generate_pool, reconstruct, score_images, train_curriculum
    clock, took = Clock(), {}
    steps = {
        'pool': lambda: generate_pool(ws, n, progress=clock),
        'reconstructions': lambda: reconstruct(ws, progress=clock),
        'scoring': lambda: score_images(ws, progress=clock),
        'pairs': lambda: freeze_split(ws, 'v1'),
        'caching and training': lambda: train_curriculum(ws, preset='mannequin', progress=clock),
    }
    for step, do in steps.items():
        began = time.perf_counter()
        do()
        took[step] = time.perf_counter() - began
        print(f'{step}: {took[step]:.1f} s', flush=True)
    whole = took.pop('caching and training')
    took['caching'] = clock.seconds('latents')
    for label in clock.began:
        if label.startswith('training '): took[' '.join(label.split()[:2])] = clock.seconds(label)
    took['everything else'] = took.pop('pairs') + whole - clock.seconds('latents', 'training ')
    return took


def compare(plan, took):
    "A row for each step, and one for all; how far the whole is off."
    planned = {w.step: w.seconds for w in plan.work if w.step in took}
    rows = [(step, planned.get(step, 0.), seconds) for step, seconds in took.items()]
    rows.append(('all', sum(p for _, p, _ in rows), sum(t for *_, t in rows)))
    print('| step | planned | by the clock | planned : clock |\n|---|---|---|---|')
    for step, p, t in rows: print(f'| {step} | {p:.1f} s | {t:.1f} s | {f"{p/t:.2f}" if p and t else ""} |')
    return rows[-1][1]/rows[-1][2] - 1


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--photos', type=int, default=60, help='drawn photos')
    p.add_argument('--pool', type=int, default=8, help='images per prompt')
    p.add_argument('--seconds', type=int, default=30, help='how long the plan may measure')
    a = p.parse_args()
    from hgdpo_curate import plan_workspace
    import torch
    with tempfile.TemporaryDirectory() as folder:
        ws = workspace(Path(folder), a.photos)
        began = time.perf_counter()
        plan = plan_workspace(ws, 'mannequin', n=a.pool, seconds=a.seconds, progress=Clock())
        print(f'{plan}\n\nplanned in {time.perf_counter() - began:.0f} s', flush=True)
        off = compare(plan, do_everything(ws, a.pool))
        load = os.getloadavg()[0]
    verdict = 'within' if abs(off) <= LIMIT else 'NOT within'
    print(f'{date.today()}, {torch.get_num_threads()} threads, load {load:.1f}: the plan is off by {off:+.0%}, '
          f'{verdict} {LIMIT:.0%}')
    return abs(off) > LIMIT


if __name__ == '__main__': raise SystemExit(main())
