"""What `hgdpo plan` says is ahead is what the commands then do, and nothing is made by asking."""
import re

import pytest
from conftest import Chance, quiet

from hgdpo_curate import create_workspace, generate_pool, plan_workspace, reconstruct, UserError
from hgdpo_curate.cli import main
from hgdpo_curate.plan import Work
from hgdpo_curate.speed import Speed

GIVEN = dict(images_per_second=2., pairs_per_second=4.)
TIMED = ['--images_per_second', '2', '--pairs_per_second', '4']


def of_thousand(folder, **config): # rows of prompts alone: a plan needs no more
    ws = create_workspace(folder, base_model='owner/base', **config)
    ws.append(
        'prompts',
        [
            dict(prompt_id=f'{i:016x}', prompt=f'a {i}', real_image_id=f'{i:015x}f', fold='train' if i % 20 else 'test')
            for i in range(1000)
        ],
    )
    return ws


def steps_of(plan): return {w.step: w for w in plan.work}


def test_counts_are_those_of_the_recipe(tmp_path):
    steps = steps_of(plan_workspace(of_thousand(tmp_path/'ws'), 'sd15-24gb', **GIVEN))
    assert (steps['pool'].count, steps['pool'].forwards) == (950*20, 950*20*50*2)
    assert steps['reconstructions'].count == 950*5
    assert steps['reconstructions'].forwards == pytest.approx(950*50*2*(.1 + .4 + .5 + .6 + .7))
    assert steps['training easy'].count == 20_000*16 and steps['training normal'].count == 5000*16
    # base, the stages before the last, the combined one, and that with the text encoder
    assert steps['evaluation'].count == 5*50*2 and steps['caching'].count == 4*950
    assert steps['pool'].seconds == 950*20/2 and steps['training easy'].seconds == 20_000*16/4
    assert steps['scoring'].seconds is None


def test_it_is_what_the_pool_announces(finished, capfd, tmp_path, copy_of):
    ws = copy_of(finished)
    steps = steps_of(plan_workspace(ws, 'mannequin', n=5, **GIVEN))
    generate_pool(ws, 5, ws.base_model)
    reconstruct(ws, [200, 300])
    said = ''.join(capfd.readouterr())
    pool = re.search(r'image pool: ([\d,]+) images .*about ([\d,]+) U-Net', said)
    assert [int(x.replace(',', '')) for x in pool.groups()] == [steps['pool'].count, steps['pool'].forwards]


def test_what_is_there_is_not_planned_again(finished):
    done = steps_of(plan_workspace(finished, 'mannequin', n=3, scorer='chance', **GIVEN))
    assert done['pool'].count == done['reconstructions'].count == done['scoring'].count == 0
    more = steps_of(plan_workspace(finished, 'mannequin', n=4, scorer='chance', **GIVEN))
    assert more['pool'].count == len(finished.table('prompts').query("fold == 'train'"))


def test_what_hangs_on_an_earlier_caption_is_planned_again(finished, copy_of):
    from hgdpo_curate.prompts import change_captions
    ws = copy_of(finished)
    photos = ws.table('prompts').query("fold == 'train'").real_image_id
    change_captions(ws, [dict(image_id=i, prompt=f'somebody else, number {n}') for n, i in enumerate(photos)])
    due = steps_of(plan_workspace(ws, 'mannequin', n=3, scorer='chance', **GIVEN))
    assert due['pool'].count == 3*len(photos) and due['reconstructions'].count > 0
    made = due['pool'].count + due['reconstructions'].count
    assert due['scoring'].count == made + len(photos)                  # the photos' scores were of the earlier captions


def test_images_of_rejected_photos_and_of_other_settings_are_not_what_is_wanted(finished, copy_of):
    from hgdpo_curate import score_images
    from hgdpo_curate.workspace import set_sampling
    ws, levels = copy_of(finished), [200, 300]
    photos = ws.table('prompts').query("fold == 'train'").real_image_id
    ws.append('reviews', [dict(subject_id=i, decision='reject', reviewer='a', note='') for i in photos[:2]])
    left = len(photos) - 2
    def due(): return steps_of(plan_workspace(ws, 'mannequin', n=4, levels=levels, scorer='chance', **GIVEN))
    assert due()['pool'].count == left == generate_pool(ws, 4, ws.base_model, progress=quiet)
    set_sampling(ws, ws.config['steps'] + 1, ws.config['guidance'])
    assert due()['pool'].count == 4*left and due()['reconstructions'].count == 2*left
    assert generate_pool(ws, 4, ws.base_model, progress=quiet) == 4*left
    assert reconstruct(ws, levels, progress=quiet) == 2*left
    assert due()['pool'].count == due()['reconstructions'].count == 0
    assert due()['scoring'].count == 6*left
    score_images(ws, Chance(), progress=quiet)
    assert due()['scoring'].count == 0


def test_cost_and_shares_add_up_within_a_hundred_columns(tmp_path):
    plan = plan_workspace(of_thousand(tmp_path/'ws', resolution='704x1024'), 'sd15-paper', **GIVEN, price=2.5)
    text = str(plan)
    assert max(map(len, text.splitlines())) <= 100
    for words in ('pool', 'training easy', '704 x 1024', 'not measured', 'at least', 'cost'): assert words in text
    total = float(re.search(r'^all .* ([\d,.]+)$', text, re.M)[1].replace(',', ''))
    assert total == pytest.approx(plan.seconds/3600*2.5, abs=.01)
    page = plan._repr_html_()
    assert page.count('<tr>') == len(plan.work) + 2 and 'training easy' in page
    webp = plan_workspace(of_thousand(tmp_path/'webp', image_format='webp'), 'sd15-24gb', **GIVEN)
    png = plan_workspace(of_thousand(tmp_path/'png'), 'sd15-24gb', **GIVEN)
    assert steps_of(webp)['pool'].disk < steps_of(png)['pool'].disk/3


def test_few_photos_are_told_how_many_steps_suit_them(tmp_path):
    ws = of_thousand(tmp_path/'ws')
    told = ' '.join(plan_workspace(ws, 'sd15-24gb', **GIVEN).fits)
    assert '--max_train_steps 5938' in told                                 # 950 photos 100 times, 16 a step
    assert '--max_train_steps' not in ' '.join(plan_workspace(ws, 'sd15-24gb', max_train_steps=5938, **GIVEN).fits)


@pytest.mark.parametrize('flags, words', [
    (['--gpu', 'H100'], ['no measured figures', 'images_per_second']),
    (['--images_per_second', '2'], ['both']),
    (['--images_per_second', '2', '--pairs_per_second', '0'], ['above 0']),
    (['--preset', 'none'], ['none', 'sd15-paper']),
    *(([*TIMED, '--price', x], ['price', 'at least 0', x]) for x in ('-3', 'nan', 'inf')),
    *((['--images_per_second', x, '--pairs_per_second', '4'], ['above 0']) for x in ('inf', 'nan', '-2', '0')),
    *((['--images_per_second', '2', '--pairs_per_second', x], ['above 0']) for x in ('inf', 'nan', '-4')),
    ([*TIMED, '--levels', '100', '2000'], ['noise level', '1000', '2000']),
    ([*TIMED, '--scorer', 'nonsense'], ['nonsense', 'smallscore', 'pickscore']),
])
def test_wrong_use_is_one_sentence(flags, words, tmp_path, capsys):
    ws = of_thousand(tmp_path/'ws')
    argv = ['plan', '--workspace', str(ws.root), '--preset', 'sd15-24gb', *flags]
    assert main(argv) == 2
    said = capsys.readouterr().err
    assert all(w in said for w in words) and len(said.strip().splitlines()) == 1


def test_a_workspace_without_photos_is_told_what_to_do(tmp_path):
    with pytest.raises(UserError, match='hgdpo photos'):
        plan_workspace(create_workspace(tmp_path/'ws', base_model='owner/base'), 'sd15-24gb', **GIVEN)


def test_measured_here_every_step_has_a_time_and_nothing_is_left(finished, random_base, capsys):
    before = {p for p in finished.root.rglob('*') if 'cache' not in p.parts and p.name != '.lock'}
    argv = ['plan', '--workspace', str(finished.root), '--preset', 'mannequin', '--n', '4', '--seconds', '2']
    assert main([*argv, '--pretrained_model_name_or_path', str(random_base)]) == 0
    told = capsys.readouterr().out
    assert 'measured here, cpu' in told and re.search(r'^all ', told, re.M)
    assert {p for p in finished.root.rglob('*') if 'cache' not in p.parts and p.name != '.lock'} == before
    assert not len(finished.table('packs'))


def test_a_speed_knows_what_was_not_measured():
    speed = Speed(forward=.5, image=.1, pair=dict(unet=2.))
    assert speed.of(Work('pool', 3, 'images', 30), '') == pytest.approx(15.3)
    assert speed.of(Work('training easy', 3, 'pairs'), 'unet') == 6.
    assert speed.of(Work('training x', 3, 'pairs'), '') is None
    assert speed.of(Work('scoring', 3, 'images'), '') is None and speed.of(Work('scoring', 0, 'images'), '') == 0.
