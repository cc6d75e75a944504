"""How the App's dataset behaves at size, beside FiftyOne's plain `add_samples`.

Build, bring up to date, first page of every view, a review's way to the table, memory.

    python benchmarks/curate.py 1000 10000 100000
"""
import argparse
import os
import statistics
import tempfile
import time
from datetime import date
from pathlib import Path

import numpy as np

os.environ.update(FIFTYONE_DO_NOT_TRACK='true', FIFTYONE_DATABASE_VALIDATION='false')
PER_PROMPT = 24      # a photo, 20 pool images, 3 reconstructions


def fill(ws, n):
    "Rows of `n` images with scores, flags and keypoints; all files hold one tiny picture."
    import pandas as pd
    from PIL import Image
    rng, prompts = np.random.default_rng(0), max(1, n//PER_PROMPT)
    seed = ws.root/'images'/'tiny.png'
    seed.parent.mkdir(parents=True, exist_ok=True)
    Image.new('RGB', (40, 56)).save(seed)
    picture = seed.read_bytes()
    images = []
    for p in range(prompts):
        for k in range(PER_PROMPT):
            domain = 'real' if k == 0 else 'generated' if k <= 20 else 'intermediate'
            iid = f'{p:08x}{k:08x}'
            path = ws.image_file(domain, iid)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(picture)
            images.append(
                dict(
                    image_id=iid,
                    prompt_id=f'{p:016x}',
                    domain=domain,
                    path=str(path.relative_to(ws.root)),
                    sha256='0' * 64,
                    width=40,
                    height=56,
                    seed=k,
                    timestep={21: 100, 22: 400, 23: 600}.get(k),
                    model='m',
                    guidance=5.0,
                    steps=10,
                )
            )
    im = pd.DataFrame(images)
    im['timestep'] = im.timestep.astype('Int64')
    ws.append('images', im)
    ws.append(
        'prompts',
        [
            dict(
                prompt_id=f'{p:016x}',
                prompt=f'a photo of person {p}',
                real_image_id=f'{p:08x}{0:08x}',
                fold='train',
            )
            for p in range(prompts)
        ],
    )
    ws.append(
        'photo_facts',
        [
            dict(
                image_id=f'{p:08x}{0:08x}',
                consent='yes',
                minors='no',
                licence='CC0-1.0',
            )
            for p in range(prompts)
        ],
    )
    ws.append(
        'scores',
        pd.DataFrame(
            dict(
                image_id=im.image_id,
                scorer='smallscore',
                scorer_version='x',
                score=rng.normal(size=len(im)),
            )
        ),
    )
    bad = im[(im.domain == 'generated') & (rng.random(len(im)) < .2)]
    ws.append(
        'flags',
        pd.DataFrame(
            dict(
                image_id=bad.image_id,
                flag=rng.choice(['extra_limb', 'bad_hand', 'bad_proportion'], len(bad)),
                status='proposed',
                source='rule',
                part='',
                side='',
                confidence=0.8,
                reason='a benchmark',
            )
        ),
    )
    return im


def add_keypoints(ws, im):
    import pandas as pd
    points = np.random.default_rng(1).uniform(5, 40, (len(im), 17, 3)).round(1)
    for i in range(0, len(im), 2048):                                        # as a detector writes them
        some, at = im.image_id[i:i+2048], points[i:i+2048]
        ws.append(
            'detections',
            pd.DataFrame(
                dict(
                    image_id=some,
                    detector='vitpose',
                    detector_version='x',
                    kind='person',
                    index=0,
                    box=[[4.0, 4.0, 30.0, 48.0]] * len(some),
                    keypoints=list(at.tolist()),
                    confidence=0.9,
                )
            ),
        )


def change(ws, im, every):
    "New scores for every n-th prompt; how many images those are."
    few = im[im.prompt_id.isin(im.prompt_id.unique()[::every])].image_id
    ws.append(
        'scores',
        [
            dict(
                image_id=i,
                scorer='smallscore',
                scorer_version='x',
                score=9.0 + every,
            )
            for i in few
        ],
    )
    return len(few)


def timed(do):
    began = time.perf_counter()
    result = do()
    return time.perf_counter() - began, result


def plain_way(ws, keypoints):
    "What one would write without us: a `Sample` object each, and `add_samples`."
    import fiftyone as fo
    from hgdpo_curate.curate.reviews import sample_rows
    rows = sample_rows(ws)
    ds = fo.Dataset(f'plain-{time.time_ns()}')
    points = {d.image_id: d.keypoints for d in ws.table('detections').itertuples()} if keypoints else {}
    fields = [
        c
        for c in (
            'image_id',
            'prompt_id',
            'prompt',
            'domain',
            'fold',
            'score',
            'flags',
            'anatomy_failure',
            'easy',
            'normal',
            'hard',
            'consent',
            'licence',
        )
        if c in rows
    ]
    empty = lambda v: None if v is None or (isinstance(v, float) and v != v) else v
    def sample(r):
        s = fo.Sample(filepath=str(ws.root/r['path']), **{f: empty(r[f]) for f in fields})
        if r['image_id'] in points:
            s['people'] = fo.Keypoints(
                keypoints=[
                    fo.Keypoint(
                        label='person',
                        points=[(x / 40, y / 56) for x, y, _ in points[r['image_id']]],
                        confidence=[c for *_, c in points[r['image_id']]],
                    )
                ]
            )
        return s
    seconds, _ = timed(lambda: ds.add_samples([sample(r) for r in rows.to_dict('records')], progress=False))
    ds.delete()
    return seconds


def views_of(ds):
    "Milliseconds for the count and the first 50 samples of every saved view; the middle of five tries."
    from hgdpo_curate.curate.samples import VIEWS
    out = {}
    for name in VIEWS:
        view = ds.load_saved_view(name)
        count = statistics.median(timed(lambda v=view: len(v))[0] for _ in range(5))
        page = statistics.median(timed(lambda v=view: v.limit(50).values('filepath'))[0] for _ in range(5))
        out[name] = count*1000, page*1000
    return out


def measure_rows(ws, im, out):
    "Without keypoints: build, bring up to date, decide, look. Gives the dataset and its views' milliseconds."
    from hgdpo_curate.curate.app import read_reviews
    from hgdpo_curate.curate.dataset import build_dataset
    from hgdpo_curate.curate.operators import decide_samples
    out['build'], ds = timed(lambda: build_dataset(ws))
    out['plain add_samples'] = plain_way(ws, False)
    out['nothing changed'], ds = timed(lambda: build_dataset(ws))
    for label, every in (('0.1%', 1000), ('1%', 100), ('10%', 10)):
        out[f'images of {label} of the prompts'] = change(ws, im, every)
        out[f'{label} changed'], ds = timed(lambda: build_dataset(ws))
    tagged = ds.match({'domain': 'generated'}).limit(len(im)//100)
    tagged.tag_samples('flag:bad_hand')
    out['1% tagged, read back'], (read, _) = timed(lambda: read_reviews(ws))
    out['1% tagged, shown'], ds = timed(lambda: build_dataset(ws))
    assert read == len(tagged)
    reals = ds.match({'domain': 'real'}).limit(20).values('id')
    out['a review (ms)'] = 1000 * statistics.median(
        timed(lambda r=r: decide_samples(ds, [r], 'approve', 'anna'))[0] for r in reals
    )
    return ds, views_of(ds)


def measure_keypoints(ws, im, out):
    "The same rows with a skeleton each."
    from hgdpo_curate.curate.dataset import build_dataset
    add_keypoints(ws, im)
    out['build with keypoints'], ds = timed(lambda: build_dataset(ws, fresh=True))
    change(ws, im, 100)
    out['1% changed, with keypoints'], ds = timed(lambda: build_dataset(ws))
    out['nothing changed, with keypoints'], ds = timed(lambda: build_dataset(ws))
    out['plain with keypoints'] = plain_way(ws, True)
    return ds


def measure(n, folder, mongod, parts):
    import psutil
    from hgdpo_curate.workspace import create_workspace
    ws, views = create_workspace(folder/f'ws{n}', resolution='40x56'), {}
    im = fill(ws, n)
    out = dict(images=len(im))
    if 'rows' in parts: ds, views = measure_rows(ws, im, out)
    if 'keypoints' in parts: ds = measure_keypoints(ws, im, out)
    out['mongod (MiB)'], out['python (MiB)'] = mongod.memory_info().rss/2**20, psutil.Process().memory_info().rss/2**20
    ds.delete()
    return out, views


def shown(name, value):
    if name.startswith('images of'): return f'{value:,}'
    return f'{value:.1f}' if '(' in name else f'{value:.2f} s' if value < 10 else f'{value:.1f} s'


def main():
    import psutil
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument(
        'sizes',
        nargs='*',
        type=int,
        default=[1000, 10_000],
        help='how many images',
    )
    p.add_argument(
        '--parts',
        nargs='+',
        default=['rows', 'keypoints'],
        choices=['rows', 'keypoints'],
        help='what to measure; at 100,000 images keypoints take most of the time',
    )
    sizes, parts = (a := p.parse_args()).sizes, a.parts
    from hgdpo_curate.curate.database import start_database
    with tempfile.TemporaryDirectory() as d:
        process = start_database(Path(d)/'db')
        mongod, found = psutil.Process(process.pid), []
        for n in sizes: found.append(measure(n, Path(d), mongod, parts))
        print(f'\n{date.today()}, {psutil.cpu_count()} cores, {psutil.virtual_memory().total/2**30:.0f} GiB\n')
        keys = list(found[0][0])
        print('| | ' + ' | '.join(f'{o["images"]:,} images' for o, _ in found) + ' |\n|' + '---|'*(len(found) + 1))
        for k in keys[1:]: print(f'| {k} | ' + ' | '.join(f'{shown(k, o[k])}' for o, _ in found) + ' |')
        for a, b in (('plain add_samples', 'build'), ('plain with keypoints', 'build with keypoints')):
            if b in keys: print(f'| {a} : {b} | ' + ' | '.join(f'{o[a]/o[b]:.1f} times' for o, _ in found) + ' |')
        for v in found[0][1]:
            print(
                f'| `{v}`: count, first 50 (ms) | '
                + ' | '.join(f'{views[v][0]:.0f}, {views[v][1]:.0f}' for _, views in found)
                + ' |'
            )
        process.terminate()


if __name__ == '__main__': main()
