"""How often the rules for hands and feet are wrong about real people, and what they see of faults made on purpose.

    python benchmarks/hands.py [--folder build/hands] [--photos 1034] [--faults 200]

Needs `photos/street`, `photos/scenes` and `models/*.task` in the folder that HGDPO_TEST_DATA names. What was looked at
is kept in the folder as lines of JSON; stopped and run again, it goes on. A changed rule needs no new look.
"""
import argparse
import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from tqdm import tqdm

from hgdpo_curate.evaluate.results import markdown_table
from hgdpo_curate.judge.detectors import load_detector
from hgdpo_curate.judge.hand_faults import HAND_FAULTS, spoil_hand
from hgdpo_curate.judge.hand_rules import HAND_RULES, HAND_THRESHOLDS
from hgdpo_curate.judge.hands import BODY, is_in_sight, wrists_of
from hgdpo_curate.judge.rules import apply_rules, Detections, joints_of, real_proportions
from hgdpo_curate.train.small_models import wilson

SET_ON = 200        # the thresholds were set on the first photographs; the others are new to them


def photographs(data, most=None) -> list:
    "Files of both sets; fewer of them are spread evenly."
    files = sorted((data/'photos'/'street').glob('*.jpg')) + sorted((data/'photos'/'scenes').glob('*.jpg'))
    return files if not most or most >= len(files) else [files[i*len(files)//most] for i in range(most)]


def kept(file) -> dict:
    "Lines of JSON by their key. A line that was cut off by a kill is left out."
    out = {}
    for line in file.read_text().splitlines() if file.exists() else ():
        try: row = json.loads(line)
        except ValueError: continue
        out[row['key']] = row
    return out


def look_at_photographs(detector, files, file) -> dict:
    "What the detector sees in each photograph."
    done = kept(file)
    with open(file, 'a') as f:
        for path in tqdm([p for p in files if p.name not in done], 'photographs'):
            im = Image.open(path).convert('RGB')
            row = dict(
                key=path.name,
                of=path.parent.name,
                size=im.size,
                items=detector.detect([im])[0],
            )
            f.write(json.dumps(row) + '\n')
            f.flush()
            done[path.name] = row
    return {p.name: done[p.name] for p in files}


def best_hand(row):
    "The surest hand of the first person, with what a fault needs: side, points, elbow, middle of the trunk."
    people = [d for d in row['items'] if d['kind'] == 'person']
    hands = [d for d in row['items'] if d['kind'] == 'hand' and d['keypoints'] and d['side']]
    hands = [d for d in hands if d['confidence'] >= .6 and d['joint'] >= HAND_THRESHOLDS['wrist']]
    if len(people) != 1 or not hands: return None
    hand, body = max(hands, key=lambda d: d['confidence']), dict(zip(BODY, people[0]['keypoints']))
    trunk = np.mean([body[f'{side}_{j}'][:2] for side in ('left', 'right') for j in ('shoulder', 'hip')], axis=0)
    return hand['side'], np.array(hand['keypoints']), body[f'{hand["side"]}_elbow'][:2], trunk


def look_at_faults(detector, files, seen, file, most) -> dict:
    "What the detector sees after one hand of a photograph was spoiled, each way."
    done, some = kept(file), [p for p in files if best_hand(seen[p.name])]
    some = some if most >= len(some) else [some[i*len(some)//most] for i in range(most)]
    out = {}
    with open(file, 'a') as f:
        for path, kind in tqdm([(p, k) for p in some for k in HAND_FAULTS], 'faults'):
            key = f'{path.name} {kind}'
            if key not in done:
                side, *where = best_hand(seen[path.name])
                points, elbow, trunk = where
                pixels = spoil_hand(np.asarray(Image.open(path).convert('RGB')), points, kind, elbow, trunk)
                row = dict(
                    key=key,
                    photo=path.name,
                    kind=kind,
                    side=side,
                    items=detector.detect([Image.fromarray(pixels)])[0],
                )
                f.write(json.dumps(row) + '\n')
                f.flush()
                done[key] = row
            out[key] = done[key]
    return out


def proposals(row, size, proportions=None) -> list:
    "What the rules propose on what was seen."
    return apply_rules(Detections('hands', tuple(size), row['items'], proportions or {}), HAND_RULES)


def hands_in_sight(row) -> list:
    "Sides of the wrists that are visible, and large enough for a look."
    bodies = [dict(zip(BODY, d['keypoints'])) for d in row['items'] if d['kind'] == 'person']
    return [w['side'] for w in wrists_of(bodies, bodies_agree(bodies)) if is_in_sight(w, row['size'])]


def bodies_agree(bodies): return [dict.fromkeys(BODY, 1.) for _ in bodies]


def about_hands(p): return p['part'] == 'hand' or p['flag'] == 'extra_limb'


def rule_of(p): return p['rule_version'].split('/')[0]


def alarms(seen) -> pd.DataFrame:
    "A row per hand in sight and per proposal about hands. All the people are real, so every proposal is a false alarm."
    rows = []
    for row in seen.values():
        found = [p for p in proposals(row, row['size']) if about_hands(p)]
        sides = hands_in_sight(row)
        about = row['key'], row['of']
        rows += [(*about, 1, '') for _ in sides] + [(*about, 0, rule_of(p)) for p in found]
    return pd.DataFrame(rows, columns=['photo', 'of', 'hands', 'rule'])


def share(k, n):
    "A share with its 95% interval (Wilson), in words."
    if not n: return 'none'
    value, low, high = wilson([1]*k + [0]*(n - k))
    return f'{value:.1%} [{low:.1%}, {high:.1%}] of {n}'


def hits(faults, seen) -> pd.DataFrame:
    "Per spoiled hand: whether something about it is proposed that was not proposed before, and by which rules."
    rows = []
    for row in faults.values():
        size, side = seen[row['photo']]['size'], row['side']
        def of(r):
            return {rule_of(p) for p in proposals(r, size) if about_hands(p) and p['side'] in (side, '')}
        before, after = of(seen[row['photo']]), of(row)
        rows.append((row['kind'], row['photo'], bool(after - before), sorted(after - before)))
    return pd.DataFrame(rows, columns=['kind', 'photo', 'hit', 'rules'])


def wrist_curve(seen, limits) -> list:
    "False alarms per hand when a wrist must be as sure as each limit before a missing hand is proposed."
    hands = [d for row in seen.values() for d in row['items'] if d['kind'] == 'hand' and d['side']]
    n = sum(len(hands_in_sight(row)) for row in seen.values())
    return [sum(d['confidence'] == 0 and d['joint'] >= limit for d in hands)/n for limit in limits]


def hand_curve(seen, faults, limits) -> tuple:
    "False alarms per hand, and mirrored hands found, when a hand must be as sure as each limit to be the other one."
    def other(d): return d['kind'] == 'hand' and d['side'] and d['handed'] and d['handed'] != d['side']
    n = sum(len(hands_in_sight(row)) for row in seen.values())
    real = [d['confidence'] for row in seen.values() for d in row['items'] if other(d)]
    mirrored = [[d['confidence'] for d in row['items'] if other(d) and d['side'] == row['side']]
                for row in faults.values() if row['kind'] == 'hand mirrored']
    alarm = [sum(c >= limit for c in real)/n for limit in limits]
    return alarm, [np.mean([any(c >= limit for c in m) for m in mirrored]) for limit in limits]


def draw_curves(seen, faults, found, file):
    "Three panels, no photograph: alarms against both thresholds, and what is found of each fault."
    import matplotlib
    matplotlib.use('agg')
    import matplotlib.pyplot as plt
    limits = np.linspace(.5, .99, 50)
    fig, (a, b, c) = plt.subplots(1, 3, figsize=(13, 3.6), layout='constrained')
    a.plot(limits, wrist_curve(seen, limits), color='#c0392b')
    a.axvline(HAND_THRESHOLDS['sure_wrist'], color='#888888', lw=.8)
    a.axhline(.1, color='#888888', lw=.8, ls=':')
    a.set(title='no hand found', xlabel='how sure the wrist must be', ylabel='false alarms per hand', ylim=0)
    alarm, right = hand_curve(seen, faults, limits)
    b.plot(limits, alarm, color='#c0392b', label='false alarms per hand')
    b.plot(limits, right, color='#2a9d5c', label='mirrored hands found')
    b.axvline(HAND_THRESHOLDS['sure_hand'], color='#888888', lw=.8)
    b.set(title='looks like the other hand', xlabel='how sure the hand must be', ylim=(0, 1))
    b.legend(frameon=False)
    for n, (_, g) in enumerate(found.groupby('kind', sort=False)):
        value, low, high = wilson(g.hit)
        c.errorbar(value, -n, xerr=[[value - low], [high - value]], fmt='o', color='#2f6690', capsize=3)
    c.set(title='faults made on purpose', xlabel='share proposed', xlim=(0, 1))
    c.set_yticks([-n for n in range(found.kind.nunique())], found.kind.unique())
    fig.savefig(file, dpi=110)


def tables(seen, faults) -> str:
    "What `RESULTS.md` shows."
    rows = alarms(seen)
    first = set(list(seen)[:SET_ON])
    parts = {'all': rows, 'street': rows[rows.of == 'street'], 'scenes': rows[rows.of == 'scenes'],
             f'all but the first {SET_ON}, on which thresholds were set': rows[~rows.photo.isin(first)]}
    rules = sorted({*rows.rule} - {''})
    head = ['photographs', 'hands', 'false alarms per hand', *rules]
    body = [[name, str(int(r.hands.sum())), share(int((r.hands == 0).sum()), int(r.hands.sum())),
             *(str(int((r.rule == rule).sum())) for rule in rules)] for name, r in parts.items()]
    feet = [d for row in seen.values() for d in row['items'] if d['kind'] == 'foot']
    bad = [p for row in seen.values() for p in proposals(row, row['size']) if p['flag'] == 'bad_foot']
    found, out = hits(faults, seen), [markdown_table(head, body)]
    out.append(f'Feet: `bad_foot` on {share(len(bad), len(feet))}.')
    bones = shapes(seen)
    others = pd.Series([p['flag'] for row in seen.values() for p in proposals(row, row['size'], bones)
                        if not about_hands(p) and p['flag'] != 'bad_foot'])
    out.append(f'Other rules on the same {len(seen)} photographs: '
               + ', '.join(f'{flag} {n}' for flag, n in others.value_counts().items()) + '.')
    def by(g): return ', '.join(f'{rule} {n}' for rule, n in g.rules.explode().value_counts().items())
    each = [[kind, share(int(g.hit.sum()), len(g)), by(g)] for kind, g in found.groupby('kind', sort=False)]
    out.append(markdown_table(['fault', 'proposed that was not before', 'by'], each))
    return '\n\n'.join(out)


def shapes(seen) -> dict:
    "Bones of all people that are seen whole."
    return real_proportions([joints_of(d, 'hands') for row in seen.values() for d in row['items']
                             if d['kind'] == 'person' and d['confidence'] >= .6])


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--folder', type=Path, default=Path('build/hands'))
    parser.add_argument('--photos', type=int, default=0, help='0: all')
    parser.add_argument('--faults', type=int, default=200, help='photographs that are spoiled')
    args = parser.parse_args()
    data = Path(os.environ.get('HGDPO_TEST_DATA', Path(__file__).parents[2]/'shared'))
    args.folder.mkdir(parents=True, exist_ok=True)
    files, detector = photographs(data, args.photos), load_detector('hands', data/'models')
    seen = look_at_photographs(detector, files, args.folder/'photographs.jsonl')
    faults = look_at_faults(detector, files, seen, args.folder/'faults.jsonl', args.faults)
    found = hits(faults, seen)
    print(tables(seen, faults))
    draw_curves(seen, faults, found, Path(__file__).parent/'hands.png')
