"""Why naive training does not collapse on drawn people, and why fine-tuning harms.

Guesses tried on a development seed that no table reports.

    python benchmarks/guesses.py guesses      # a folder for the world; stopped and run again, it goes on

The recipe of the tables stays as it is; what differs per arm stands beside it."""
import argparse

from hgdpo_curate.evaluate.measures import label
from hgdpo_curate.evaluate.candidates import run_arm
from hgdpo_curate.evaluate.compare import compare_arms
from hgdpo_curate.evaluate.reproduce import make_world, TABLE_SIZES
from hgdpo_curate.evaluate.candidates import frozen_test_prompts
from hgdpo_curate.evaluate.results import to_markdown
from hgdpo_curate.show import Steps
from hgdpo_curate.train.curriculum import train_curriculum

SEED = 101                                    # drawings 7101, far from those of the tables
SHOWN = 'score anatomy_failures prompt_accuracy frechet detail sharpness kid rgb_distance'.split()
ARMS = {'naive': ('naive', {}),
        'naive without statistics matching': ('dpo_real', {}),
        'the same, three times the steps': ('dpo_real', {'dpo_real.max_train_steps': 660}),
        'base + SFT': ('sft_after_base', {}),
        'base + SFT, a tenth of the captions dropped': ('sft_after_base', {'sft.caption_dropout': .1})}

PAIRS = [
    ('naive', 'naive without statistics matching'),
    ('the same, three times the steps', 'naive without statistics matching'),
    ('base + SFT, a tenth of the captions dropped', 'base + SFT'),
]


def run_name(arm): return arm.replace(' ', '-').replace(',', '').replace('+-', '')


def main(folder):
    say = Steps(
        dict.fromkeys(['photos', 'base', 'image pool', 'reconstructions', 'scores', *ARMS, 'evaluation'], 1), 'guesses'
    )
    ws = make_world(folder, SEED, TABLE_SIZES['full'], say)
    for arm, (control, fields) in ARMS.items():
        say(arm)
        train_curriculum(
            ws,
            'v1',
            'mannequin',
            run_name(arm),
            control=control,
            seed=SEED,
            reuse=True,
            report_to='none',
            **fields,
        )
    say('evaluation')
    arms = {'base': run_arm(ws, 'naive', 'base')} | {arm: run_arm(ws, run_name(arm), 'hard') for arm in ARMS}
    found = compare_arms(
        ws,
        arms,
        frozen_test_prompts(ws, 'v1'),
        1,
        ('smallscore',),
        chose='smallscore',
        extractor='evaluator',
        batch=32,
    )
    print(to_markdown(found.table, float(found.photo_measurements['sharpness'].mean()), {m: label(m) for m in SHOWN}))
    for better, worse in PAIRS:
        gains = {
            m: found.gain(m, better, worse)
            for m in ('score', 'anatomy_failures', 'prompt_accuracy', 'frechet', 'detail')
        }
        print(
            f'{better} over {worse}: '
            + ', '.join(
                f'{m.replace("_", " ")} {v:+.3g} [{low:.3g}, {high:.3g}]' for m, (v, low, high) in gains.items()
            )
        )
    print('\n'.join(found.notes))


if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('folder', help='where the world and the runs are kept')
    main(p.parse_args().folder)
