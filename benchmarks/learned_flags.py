"""How many looks a learned flag saves: drawn people with planted faults, a reviewer who knows the truth.

A pool of drawn people. Of nine kinds of fault the package's detector knows (its rules propose them), of four it knows
nothing. The reviewer looks at one image after another, confirms its fault, clears wrong proposals, or says `ok`. Each
order is asked: after how many looks are 90% of all faults flagged, by the reviewer or by a proposal that stands, with
no more than 10% of the flags wrong?

    python benchmarks/learned_flags.py --seeds 21 22 23 24 25 --folder bench-learned
    python benchmarks/learned_flags.py --seeds 21 22 23 24 25 --folder bench-learned --write

What a seed found is kept as JSON in the folder, so that a run that was stopped goes on. `--write` puts the curves into
benchmarks/tables and the picture beside it.
"""
import argparse
import json
import time
from collections import Counter
from pathlib import Path

import numpy as np

IMAGES, EVERY, RECALL, PRECISION = 1000, 50, .9, .9
KNOWN, NEW = .15, .30           # shares of images with a fault that rules know, and with one that they do not
UNKNOWN = ('bad_hand', 'bad_foot', 'merged_bodies', 'duplicate_person')
ORDERS = {
    'random': 'random order',
    'rules': 'rules first',
    'score': 'score order',
    'learned': 'learned, uncertain first',
}
PLAIN = ('random', 'rules', 'score')


# --- the world

def disc(pixels, centre, radius, colour):
    y, x = np.mgrid[:pixels.shape[0], :pixels.shape[1]] + .5
    alpha = np.clip(radius + .5 - np.hypot(x - centre[0], y - centre[1]), 0, 1)[..., None]
    return pixels + alpha*(np.asarray(colour, float) - pixels)


def bad_hand(d, other, rng):
    "A palm and five fingers, too large."
    from hgdpo_curate.toy.bodies import KEYPOINTS
    at, out = d.keypoints[KEYPOINTS.index(f'{rng.choice(["left", "right"])}_wrist')], d.image.astype(float)
    x, y = np.clip(np.round(at).astype(int), 0, [39, 55])
    colour = out[y, x]
    for angle in rng.uniform(0, 2*np.pi, 5):
        out = disc(out, at + 4.2*np.array([np.cos(angle), np.sin(angle)]), 1.2, colour)
    return disc(out, at, 2.6, colour)


def bad_foot(d, other, rng):
    "A swollen foot."
    from hgdpo_curate.toy.bodies import KEYPOINTS
    at = d.keypoints[KEYPOINTS.index(f'{rng.choice(["left", "right"])}_ankle')]
    return disc(d.image.astype(float), at + [rng.uniform(-1, 1), 1], 4., (40, 30, 25))


def merged_bodies(d, other, rng):
    "One person on the left, another on the right."
    right = np.clip((np.arange(40) + .5 - 20 + rng.uniform(-2, 2))/2 + .5, 0, 1)[None, :, None]
    return d.image*(1 - right) + other.image*right


def duplicate_person(d, other, rng):
    "Two people side by side."
    from PIL import Image
    left = int(rng.integers(11, 15))
    both = np.concatenate([d.image[:, left - 4:20 + left//2 + 3], other.image[:, 20 - left//2 - 3:]], 1)
    return np.asarray(Image.fromarray(both).resize((40, 56)), float)


def drawn(seed, i, kind):
    "A drawing and its pixels; `kind` is '', a fault of the package, or one of `UNKNOWN`."
    from hgdpo_curate.toy.drawings import draw_person
    if kind not in UNKNOWN: return (d := draw_person([seed, i], fault=kind)), d.image
    d, rng = draw_person([seed, i]), np.random.default_rng([seed, i, 1])
    same = dict(place=d.attributes['place'], pose=d.attributes['pose'])
    pixels = globals()[kind](d, draw_person([seed, i, 2], same), rng)
    return d, np.clip(pixels, 0, 255).astype(np.uint8)


def part_boxes_of(d, rng):
    "Face, hands and feet where a detector without a fault of its own would see them, a pixel off."
    from hgdpo_curate.toy.bodies import KEYPOINTS
    kinds = dict(head='face', left_wrist='hand', right_wrist='hand', left_ankle='foot', right_ankle='foot')
    out = []
    for joint, kind in kinds.items():
        x, y = d.keypoints[KEYPOINTS.index(joint)] + rng.normal(0, 1, 2)
        out.append((kind, f'{x - 5:.1f} {y - 5:.1f} 10.0 10.0'))
    return out


def world(seed):
    "Images with their truth, rules' proposals, scores and features, all as the package computes them."
    from PIL import Image
    from hgdpo_curate.toy.bodies import FAULTS
    rng = np.random.default_rng([seed, 77])
    draws, kinds = rng.random(IMAGES), []
    for u in draws:
        names = UNKNOWN if u < NEW else tuple(FAULTS) if u < NEW + KNOWN else ('',)
        kinds.append(str(rng.choice(names)))
    made = [drawn(seed, i, k) for i, k in enumerate(kinds)]
    pictures = [Image.fromarray(p) for _, p in made]
    truth = [FAULTS.get(k, k) for k in kinds]
    return dict(truth=truth, **measured(pictures, [d for d, _ in made], rng))


def measured(pictures, drawings, rng):
    from hgdpo_curate.evaluate.features import EvaluatorLayers
    from hgdpo_curate.judge.detectors import load_detector
    from hgdpo_curate.judge.flag_features import crop_part
    from hgdpo_curate.judge.rules import apply_rules, Detections
    from hgdpo_curate.judge.scores import load_scorer
    from hgdpo_curate.pipelines import assets_folder
    from hgdpo_curate.toy.networks import load_network
    seen = load_detector('drawn_faults').detect(pictures)
    rules = [
        {p['flag']: p['confidence'] for p in apply_rules(Detections('drawn_faults', (40, 56), items))} for items in seen
    ]
    kinds = sorted({i['kind'] for items in seen for i in items})
    figures = [[max((i['confidence'] for i in items if i['kind'] == k), default=0) for k in kinds] for items in seen]
    net = EvaluatorLayers(load_network(assets_folder(), 'evaluator'), '')
    def described(images): return np.concatenate([net.extract(images[i:i + 128]) for i in range(0, len(images), 128)])
    blocks, boxes = [described(pictures)], [part_boxes_of(d, rng) for d in drawings]
    for part in ('face', 'hand', 'foot'):
        each = [[crop_part(im, b, 40) for k, b in own if k == part] for im, own in zip(pictures, boxes)]
        per = len(each[0])
        blocks.append(described([c for own in each for c in own]).reshape(len(pictures), per, -1).mean(1))
    score = load_scorer('smallscore').score(pictures, [d.prompt for d in drawings])
    return dict(rules=rules, score=score, features=np.concatenate([*blocks, np.array(figures)], 1).astype(np.float32))


# --- the reviewer

class Review:
    "What people said so far, what stands, and what has been learned from it."
    def __init__(self, w, learns):
        self.w, self.learns, self.n = w, learns, len(w['truth'])
        self.looked, self.said, self.models = np.zeros(self.n, bool), {}, {}   # (image, flag) -> wrong
        self.flags = sorted({*w['truth']} - {'', 'ok'})

    def proposals(self, i):
        "Flags that stand proposed on an image that nobody looked at."
        from hgdpo_curate.judge.learned_flags import SURE
        return {*self.w['rules'][i]} | {f for f, p in self.models.items() if p[i] >= SURE}

    def look(self, i):
        "Confirm the fault, clear what is proposed wrongly; a sound image is `ok`."
        fault = self.w['truth'][i]
        if fault: self.said[i, fault] = True
        for f in self.proposals(i) - {fault}: self.said[i, f] = False
        if not fault:
            for f in self.flags: self.said[i, f] = False
        self.looked[i] = True

    def train(self):
        from hgdpo_curate.judge.learned_flags import fit_classifier, for_the_rest, refusal
        for f in self.flags:
            ids = [i for i, g in self.said if g == f]
            wrong = np.array([self.said[i, f] for i in ids], bool)
            if refusal(f, wrong.sum(), (~wrong).sum()): continue
            classifier, _ = fit_classifier(self.w['features'][ids], wrong)
            p = self.models[f] = classifier.probability(self.w['features'])
            p[~self.looked] = for_the_rest(p[~self.looked], wrong.mean())

    def order(self, kind, rng):
        "The images that nobody looked at, in the order in which to look."
        from hgdpo_curate.judge.learned_flags import look_order
        rest = np.flatnonzero(~self.looked)
        score = self.w['score'][rest]
        if kind == 'random': return rng.permutation(rest)
        if kind == 'score': return rest[np.argsort(score, kind='stable')]
        if kind == 'rules':
            sure = np.array([max(self.w['rules'][i].values(), default=0) for i in rest])
            return rest[np.lexsort([score, -sure])]
        rest = rng.permutation(rest)
        confirmed, used = self.confirmed(), {f for (_, f), wrong in self.said.items() if wrong}
        p = np.array([[self.chance(i, f, confirmed.get(f, 0)) for f in self.flags] for i in rest])
        return rest[look_order(p, self.w['score'][rest], explore=not used or bool(used - {*self.models}))]

    def confirmed(self):
        return Counter(f for (_, f), wrong in self.said.items() if wrong)

    def chance(self, i, f, confirmed): # as the package's order has it: what rules propose is uncertain at first
        from hgdpo_curate.judge.learned_flags import EXAMPLES_NEEDED
        if f in self.models: return self.models[f][i]
        return (.5 if confirmed < EXAMPLES_NEEDED else .9) if f in self.w['rules'][i] else np.nan

    def standing(self):
        "Precision and recall of all flags that stand, by flag too; and faults found by looking."
        pairs = {(i, f) for (i, f), wrong in self.said.items() if wrong}
        found = len(pairs)
        pairs |= {(i, f) for i in np.flatnonzero(~self.looked) for f in self.proposals(i)}
        true = {(i, f) for i, f in enumerate(self.w['truth']) if f}
        hits = pairs & true
        def share(f, of): return sum(g == f for _, g in hits)/max(1, sum(g == f for _, g in of))
        by = {f: [share(f, true), share(f, pairs) if any(g == f for _, g in pairs) else 1.] for f in self.flags}
        return dict(
            looks=int(self.looked.sum()),
            found=found,
            recall=len(hits)/len(true),
            precision=len(hits)/max(1, len(pairs)),
            learned=len(self.models),
            by_flag=by,
        )


def reviewed(w, kind, seed):
    "One order: what stands after each `EVERY` looks, until every flag is where it should be."
    review, rng = Review(w, kind.startswith('learned')), np.random.default_rng([seed, 5])
    out = [review.standing()]
    while not review.looked.all() and not (reached(out[-1]) and all(reached(out[-1], f) for f in review.flags)):
        for i in review.order(kind, rng)[:EVERY]: review.look(i)
        if review.learns: review.train()
        out.append(review.standing())
    return out


# --- figures

def reached(p, flag=None):
    recall, precision = p['by_flag'][flag] if flag else (p['recall'], p['precision'])
    return recall >= RECALL and precision >= PRECISION


def looks_needed(curve, flag=None):
    "Looks until recall and precision are reached and stay so, of all flags together or of one."
    good = [reached(p, flag) for p in curve]
    first = max((n + 1 for n, g in enumerate(good) if not g), default=0)
    return curve[min(first, len(curve) - 1)]['looks']


def per_hundred(curve, looks=400):
    "Faults found per 100 looks, over the first `looks`."
    return next(p['found'] for p in curve if p['looks'] >= looks)*100/looks


def one_seed(seed, folder, orders):
    file = folder/f'{seed}.json'
    kept = json.loads(file.read_text()) if file.exists() else {}
    if {*orders} <= {*kept}: return kept
    begun, w = time.process_time(), world(seed)
    print(f'seed {seed}: world in {time.process_time() - begun:.0f} s of computing', flush=True)
    for kind in [k for k in orders if k not in kept]:
        begun = time.process_time()
        kept[kind] = reviewed(w, kind, seed)
        file.write_text(json.dumps(kept))
        print(
            f'seed {seed} {ORDERS[kind]}: {looks_needed(kept[kind])} looks, {per_hundred(kept[kind]):.0f} per 100, '
            f'{time.process_time() - begun:.0f} s',
            flush=True,
        )
    return kept


def spread(values):
    "Median, and Student's 95% interval of the mean."
    from scipy.stats import t
    v = np.array(values, float)
    half = t.ppf(.975, len(v) - 1)*v.std(ddof=1)/np.sqrt(len(v)) if len(v) > 1 else np.nan
    return np.median(v), v.mean() - half, v.mean() + half


def table(found, orders):
    print('| order | looks to recall .9 at precision .9 | per seed | faults per 100 of the first 400 looks |')
    print('|---|---|---|---|')
    for kind in orders:
        looks, hits = ([f(c[kind]) for c in found.values()] for f in (looks_needed, per_hundred))
        a, b = spread(looks), spread(hits)
        print(
            f'| {ORDERS[kind]} | {a[0]:.0f} [{a[1]:.0f}, {a[2]:.0f}] | {", ".join(map(str, looks))} | '
            f'{b[0]:.1f} [{b[1]:.1f}, {b[2]:.1f}] |'
        )
    best = [min(looks_needed(c[k]) for k in PLAIN) for c in found.values()]
    for kind in [k for k in orders if k not in PLAIN]:
        ratio = spread([looks_needed(c[kind])/b for c, b in zip(found.values(), best)])
        print(f'\n{ORDERS[kind]} : best plain order of the seed = {ratio[0]:.2f} [{ratio[1]:.2f}, {ratio[2]:.2f}]\n')
    print('| flag | ' + ' | '.join(ORDERS[k] for k in orders) + ' | learned : best plain |')
    print('|---'*(len(orders) + 2) + '|')
    for flag in next(iter(found.values()))[orders[0]][0]['by_flag']:
        cells = [f'{np.median([looks_needed(c[k], flag) for c in found.values()]):.0f}' for k in orders]
        best = [max(1, min(looks_needed(c[k], flag) for k in PLAIN)) for c in found.values()]
        ratio = spread([looks_needed(c['learned'], flag)/b for c, b in zip(found.values(), best)])
        few = max(best) <= EVERY
        last = 'none needed' if few else f'{ratio[0]:.2f} [{ratio[1]:.2f}, {ratio[2]:.2f}]'
        print(f'| `{flag}` | ' + ' | '.join(cells) + f' | {last} |')


def write(found, folder):
    "The curves as a table, and as a picture."
    import pandas as pd
    rows = [
        dict(seed=int(s), order=k, **{c: p[c] for c in ('looks', 'found', 'recall', 'precision', 'learned')})
        | {f'{what}_{f}': v for f, pair in p['by_flag'].items() for what, v in zip(('recall', 'precision'), pair)}
        for s, curves in found.items() for k, curve in curves.items() for p in curve
    ]
    df = pd.DataFrame(rows).round(4)
    df.to_csv(folder/'tables'/'learned_flags.csv', index=False)
    picture(df, folder/'learned_flags.png')


def picture(df, file):
    "Mean over seeds; where an order was at its end before the others, its last value."
    import matplotlib
    matplotlib.use('agg')
    import matplotlib.pyplot as plt
    at = range(0, int(df.looks.max()) + 1, EVERY)
    def mean(kind, column):
        by = df[df.order == kind].pivot_table(index='looks', columns='seed', values=column).reindex(at).ffill()
        return by.mean(axis=1)
    fig, axes = plt.subplots(1, 3, figsize=(13, 4), layout='constrained')
    kinds = [k for k in ORDERS if k in set(df.order)]
    for kind in kinds:
        for ax, column in zip(axes, ('recall', 'precision')):
            ax.plot(at, mean(kind, column), label=ORDERS[kind], lw=2.5 if kind == 'learned' else 1.3)
    for n, flag in enumerate(UNKNOWN):
        for kind, style in (('score', ':'), ('learned', '-')):
            words = flag.replace('_', ' ') if kind == 'learned' else None
            axes[2].plot(at, mean(kind, f'recall_{flag}'), style, color=f'C{n + 4}', label=words)
    titles = ('recall of all flags', 'precision of all flags', 'recall by flag: learned, score order dotted')
    for ax, words in zip(axes, titles):
        ax.set(xlabel='looks', title=words)
        ax.axhline(.9, color='gray', lw=.7, ls=':')
    axes[1].set_ylim(.5, 1.01)
    for ax in (axes[0], axes[2]): ax.legend(fontsize=8)
    fig.savefig(file, dpi=100)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--seeds', nargs='+', type=int, default=[21, 22, 23, 24, 25])
    p.add_argument('--folder', default='bench-learned', help='what a seed found is kept here')
    p.add_argument('--orders', nargs='+', default=list(ORDERS), choices=list(ORDERS))
    p.add_argument('--write', action='store_true', help='write the table and the picture of benchmarks/RESULTS.md')
    a = p.parse_args()
    folder = Path(a.folder)
    folder.mkdir(parents=True, exist_ok=True)
    found = {s: one_seed(s, folder, a.orders) for s in a.seeds}
    table(found, a.orders)
    if a.write: write(found, Path(__file__).parent)


if __name__ == '__main__': main()
