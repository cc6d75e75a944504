"""What tables cost at size: freezing a split, looking at a workspace, appending, asking, beside plain pandas.

Synthetic rows only, no image file. A prompt has a photo, 20 images of the pool and 5 reconstructions; one image in
twenty has a proposed fault, one in a hundred a confirmed one. Each size runs in a process of its own, so that its peak
memory is its own. `plain` reads the tables `images` and `scores` and groups the scores by prompt, with pandas alone.

    python benchmarks/size.py 40 400 4000 20000 300000 --figure benchmarks/size.png
"""
import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

POOL, LEVELS = 20, (100, 400, 500, 600, 700)
ROWS = 40_000        # prompts of one part while the tables are written


def ids(kind, numbers):
    "16 hex digits that look like hashes: in no order."
    import numpy as np
    mixed = (numbers.astype(np.uint64)*np.uint64(8) + np.uint64(kind))*np.uint64(0x9E3779B97F4A7C15)
    return [f'{n:016x}' for n in mixed.tolist()]


def write_prompts(ws, begin, end, rng):
    import numpy as np
    import pandas as pd
    n, k = np.arange(begin, end), end - begin
    prompts, photos = ids(0, n), ids(1, n)
    words = rng.choice(['street', 'park', 'beach', 'studio', 'garden'], k)
    texts = [f'a photograph of person {i} in a {w}, full body' for i, w in zip(n, words)]
    fold = np.where(rng.random(k) < .05, 'test', 'train')
    ws.append('prompts', pd.DataFrame(dict(prompt_id=prompts, prompt=texts, real_image_id=photos, fold=fold)))
    ws.append('photo_facts', pd.DataFrame(dict(image_id=photos, consent='yes', minors='no', licence='CC0-1.0')))
    return prompts, photos


def write_images(ws, begin, end, rng):
    "Photos, pool and reconstructions of some prompts, with their scores and flags."
    import numpy as np
    import pandas as pd
    prompts, photos = write_prompts(ws, begin, end, rng)
    k, each = end - begin, POOL + len(LEVELS)
    made = ids(2, np.arange(begin*each, end*each))
    image_id = np.concatenate([np.array(photos, object), np.array(made, object)])
    of = np.concatenate([np.arange(k), np.repeat(np.arange(k), each)])
    timestep = np.concatenate([np.zeros(k), np.tile(np.r_[np.zeros(POOL), LEVELS], k)])
    domain = np.where(timestep > 0, 'intermediate', 'generated').astype(object)
    domain[:k] = 'real'
    paths = [f'images/{d}/{i[:2]}/{i}.png' for d, i in zip(domain, image_id)]
    images = pd.DataFrame(
        dict(
            image_id=image_id,
            prompt_id=np.array(prompts, object)[of],
            domain=domain,
            path=paths,
            sha256=[i*4 for i in image_id],
            bytes=400_000,
            width=512,
            height=512,
            model='0123456789abcdef',
            seed=rng.integers(0, 2**31, len(of)),
            timestep=pd.array(timestep, 'Int64'),
            guidance=5.0,
            steps=50,
        )
    )
    images['timestep'] = images.timestep.where(images.timestep > 0)
    ws.append('images', images)
    score = np.where(domain == 'intermediate', .5, 0) + rng.normal(size=len(of))
    ws.append('scores', pd.DataFrame(dict(image_id=image_id, scorer='smallscore', scorer_version='x', score=score)))
    drawn = rng.random(len(of))
    status = np.where(drawn < .01, 'confirmed', 'proposed')[drawn < .06]
    flags = dict(image_id=image_id[drawn < .06], flag='bad_hand', status=status, confidence=.9, part='', side='')
    source = np.where(status == 'confirmed', 'human', 'rule')
    ws.append('flags', pd.DataFrame(flags).assign(source=source, reason='a benchmark', reviewer='anna'))


def write(folder, prompts):
    "A workspace of so many prompts."
    import numpy as np
    from hgdpo_curate import create_workspace
    ws, rng = create_workspace(folder, base_model='none'), np.random.default_rng(0)
    for begin in range(0, prompts, ROWS): write_images(ws, begin, min(prompts, begin + ROWS), rng)


def timed(do):
    wall, cpu = time.perf_counter(), time.process_time()
    result = do()
    return dict(wall=time.perf_counter() - wall, cpu=time.process_time() - cpu), result


def plain(ws):
    "What a freeze costs at the very least: both tables read, and the best score of every prompt."
    import pandas as pd
    def table(name, columns):
        return pd.concat([pd.read_parquet(p, columns=columns) for p in ws.parts(name)], ignore_index=True)
    images = table('images', None)
    scores = table('scores', None)
    joined = images[['image_id', 'prompt_id', 'domain']].merge(scores[['image_id', 'score']], on='image_id')
    return joined[joined.domain == 'generated'].groupby('prompt_id').score.agg(['max', 'min'])


def measure(folder, what):
    "One measurement in this process, as JSON on the last line."
    from hgdpo_curate import freeze_split, open_workspace, workspace_status
    ws = open_workspace(folder)
    one = [dict(image_id='f'*16, scorer='other', scorer_version='x', score=1.0)]
    steps = dict(
        plain=lambda: plain(ws),
        freeze=lambda: freeze_split(ws, f'v{time.time_ns()}'),
        status=lambda: workspace_status(ws),
        view=lambda: ws._repr_html_(),
        append=lambda: ws.append('scores', one),
        sql=lambda: ws.sql(
            'select prompt_id, max(score) as best from images join scores using (image_id) group by prompt_id limit 10'
        ),
    )
    begun = time.perf_counter()
    spent, _ = timed(steps[what])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/2**20
    print(json.dumps(dict(spent, gib=peak, load=os.getloadavg()[0], since=time.perf_counter() - begun)))


def asked(folder, what):
    done = subprocess.run(
        [sys.executable, __file__, '--measure', what, '--folder', str(folder)], capture_output=True, text=True
    )
    if done.returncode: sys.exit(done.stderr[-3000:])
    return json.loads(done.stdout.splitlines()[-1])


def size(prompts, parent):
    "All measurements of one size."
    folder = Path(parent)/f'ws{prompts}'
    out = dict(prompts=prompts, images=prompts*(1 + POOL + len(LEVELS)))
    out['write'], _ = timed(lambda: write(folder, prompts))
    out['bytes'] = sum(p.stat().st_size for p in folder.rglob('*.parquet'))
    for what in ('plain', 'append', 'status', 'view', 'sql', 'freeze'):
        if what == 'status': out['status, first'] = asked(folder, 'status')
        out[what] = asked(folder, what)
        print(prompts, what, out[what], flush=True)
    return out


LABELS = {
    'plain': 'pandas alone: two tables read, one group-by',
    'freeze': 'a split frozen',
    'status, first': '`status`, first time after a change',
    'status': '`status`',
    'view': "a notebook's view",
    'sql': 'the best score of every prompt, in SQL',
    'append': 'a row appended',
}


def table(found):
    "The figures as Markdown: wall seconds, CPU seconds in brackets."
    print('| | ' + ' | '.join(f'{o["prompts"]:,} prompts, {o["images"]:,} images' for o in found) + ' |')
    print('|---'*(len(found) + 1) + '|')
    for key, label in LABELS.items():
        print(f'| {label} | ' + ' | '.join(f'{o[key]["wall"]:.2f} s ({o[key]["cpu"]:.2f})' for o in found) + ' |')
    print('| peak of freezing | ' + ' | '.join(f'{o["freeze"]["gib"]:.2f} GiB' for o in found) + ' |')
    print('| tables on disk | ' + ' | '.join(f'{o["bytes"]/1e6:,.0f} MB' for o in found) + ' |')
    ratios = (o['freeze']['wall']/o['plain']['wall'] for o in found)
    print('| freezing : pandas alone | ' + ' | '.join(f'{r:.1f} times' for r in ratios) + ' |')
    print('| load of the machine while freezing | ' + ' | '.join(f'{o["freeze"]["load"]:.0f}' for o in found) + ' |')


def figure(found, file):
    "Cost against size, both axes logarithmic."
    import matplotlib
    matplotlib.use('agg')
    import matplotlib.pyplot as plt
    fig, ax = plt.subplots(figsize=(7, 4.5), layout='constrained')
    for key, label in LABELS.items():
        ax.loglog([o['images'] for o in found], [o[key]['wall'] for o in found], 'o-', label=label.replace('`', ''))
    for seconds, words in ((120, '120 s: bar of freezing 300,000 prompts'), (2, '2 s: bar of status')):
        ax.axhline(seconds, color='gray', lw=.7, ls=':')
        ax.annotate(words, (found[-1]['images'], seconds), fontsize=7, va='bottom', ha='right', color='gray')
    ax.set(xlabel='images in the workspace', ylabel='seconds', title='Cost against size')
    ax.legend(fontsize=7)
    fig.savefig(file, dpi=120)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('prompts', nargs='*', type=int, help='how many prompts, 26 images each')
    p.add_argument('--figure', help='a PNG file to write the figure to')
    p.add_argument('--json', help='a file to add what was measured to; what it has is shown too')
    p.add_argument('--folder', help='where to write workspaces; a temporary folder if none is given')
    p.add_argument('--measure', help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.measure: return measure(a.folder, a.measure)
    kept = json.loads(Path(a.json).read_text()) if a.json and Path(a.json).exists() else []
    with tempfile.TemporaryDirectory() as temporary:
        for n in a.prompts:
            kept = [o for o in kept if o['prompts'] != n] + [size(n, a.folder or temporary)]
            if a.json: Path(a.json).write_text(json.dumps(kept, indent=1))
    found = sorted(kept, key=lambda o: o['prompts'])
    table(found)
    if a.figure: figure(found, a.figure)


if __name__ == '__main__': main()
