"""Which shapes the street photographs take, what each of them loses, and whether its person stays whole.

    python benchmarks/shapes.py

Needs `photos/street` in the folder that HGDPO_TEST_DATA names.
"""
import json
import os
from collections import defaultdict
from pathlib import Path
from statistics import median

from PIL import Image

from hgdpo_curate.images.decode import fit_window, lost_parts
from hgdpo_curate.shapes import bucket_shapes, nearest_shape, share_lost

STREET = Path(os.environ.get('HGDPO_TEST_DATA', Path(__file__).parents[2]/'shared'))/'photos'/'street'


def main():
    shapes = {f'shapes of {n} x {n}': bucket_shapes(n*n) for n in (512, 1024)}
    shapes |= {'one shape': ((512, 512),), 'one shape, 512 x 768': ((512, 768),)}
    rows = [json.loads(line) for line in (STREET/'metadata.jsonl').read_text().splitlines()]
    for row in rows:
        with Image.open(STREET/row['file_name']) as im: row['size'] = im.size
    print('| choice | shape | photographs | lost, median | lost, most | people who lose something |')
    print('|---'*6 + '|')
    for choice, among in shapes.items():
        taken = defaultdict(list)
        for row in rows: taken[nearest_shape(*row['size'], among)].append(row)
        for shape, of in sorted(taken.items(), key=lambda t: -len(t[1])):
            lost = [share_lost(row['size'], shape) for row in of]
            windows = [(fit_window(*r['size'], shape, r['person_box']), r['size'], r['person_box']) for r in of]
            cut = sum(bool(lost_parts(*w)) for w in windows)
            w, h = shape
            print(f'| {choice} | {w} x {h} | {len(of)} | {median(lost):.1%} | {max(lost):.2%} | {cut} |')


if __name__ == '__main__': main()
