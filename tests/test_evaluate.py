"""Evaluation says what it measured, and says *not measured* of the rest; compares like with like.

Refuses what would mislead.
"""
import re

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from conftest import Chance, nothing_seen, quiet, seen_alone

from hgdpo_curate import Candidate, UserError, compare_arms
from hgdpo_curate.cli import main


def test_photographs_without_an_evaluator_of_their_own_get_no_anatomy_rate(finished, copy_of):
    from hgdpo_curate import evaluate_runs, train_curriculum
    ws = copy_of(finished)
    ws.append('photo_facts', ws.table('photo_facts').drop(columns='written_at').assign(source='a camera'))
    run = train_curriculum(
        ws,
        preset='mannequin',
        run='r',
        progress=quiet,
        max_train_steps=1,
        train_batch_size=2,
    )
    table = (
        evaluate_runs(
            ws,
            'r',
            ('easy', 'base'),
            per_prompt=2,
            scorer=Chance(),
            progress=quiet,
        )
        .set_index(['arm', 'metric'])
        .value
    )
    for metric in ('anatomy_failures', 'prompt_accuracy', 'frechet', 'detail'):
        assert table['base', metric] != table['base', metric]
    for metric in ('score', 'sharpness', 'hue_distance'): assert table['easy', metric] == table['easy', metric]
    assert table['base', 'hue_distance'] == 0
    text = (run/'evaluation'/'table.md').read_text()
    # base first, whatever the order asked for
    assert 'not measured' in text and text.index('| base') < text.index('| easy')
    tall = Image.open(run/'evaluation'/'grid.png').height
    evaluate_runs(
        ws,
        'r',
        ('easy', 'base'),
        per_prompt=2,
        scorer=Chance(),
        with_photos=True,
        progress=quiet,
    )
    # a row of photographs only where somebody asks for it
    assert Image.open(run/'evaluation'/'grid.png').height == tall*3//2
    # one prompt shows nothing
    assert 'too few for a verdict' in text and 'shown' not in text and 'reversed' not in text


class Green:
    "Scores how green a picture is; the arms below paint it."
    name, version = 'green', '1'
    def score(self, images, prompts): return np.array([i.getpixel((0, 0))[1]/255 for i in images])


def painter(colour, calls=None, stop=None):
    "Draws every picture in one colour with a dot whose place is the seed's; raises after `stop` batches."
    from PIL import Image
    def draw(prompts, seeds):
        if calls is not None:
            calls.append(len(seeds))
            if stop is not None and len(calls) > stop: raise KeyboardInterrupt
        out = [Image.new('RGB', (40, 56), colour) for _ in seeds]
        for im, s in zip(out, seeds): im.putpixel((1 + s % 38, 5 + s % 50), (255, 255, 255))
        return out
    return draw


def everything(ws): return ws.table('prompts').head(6)


def test_an_interrupted_evaluation_draws_nothing_twice(finished, copy_of):
    ws, calls = copy_of(finished), []
    with pytest.raises(KeyboardInterrupt):
        compare_arms(
            ws,
            dict(base=Candidate(painter((60, 60, 60)), 'g'), easy=Candidate(painter((30, 200, 30), calls, 1), 'e')),
            everything(ws),
            scorers=[Green()],
            batch=4,
            progress=quiet,
        )
    # base, and the first batch of easy
    assert len(ws.table('images').query("domain == 'evaluation'")) == 12 + 4
    calls.clear()
    found = compare_arms(
        ws,
        dict(base=Candidate(painter((60, 60, 60), calls, 0), 'g'), easy=Candidate(painter((30, 200, 30), calls), 'e')),
        everything(ws),
        scorers=[Green()],
        batch=4,
        progress=quiet,
    )
    assert calls == [4, 4] and found.table.set_index(['arm', 'metric']).images['easy', 'score'] == 12


def test_every_model_gets_the_same_prompts_and_seeds_or_is_refused(finished, copy_of):
    ws = copy_of(finished)
    found = compare_arms(
        ws,
        dict(
            base=Candidate(painter((60, 60, 60)), 'g', 'one base'),
            easy=Candidate(painter((30, 200, 30)), 'e', 'one base'),
        ),
        everything(ws),
        scorers=[Green()],
        progress=quiet,
    )
    assert list(found.rows['base'].seed) == list(found.rows['easy'].seed)
    # six prompts show nothing, whatever they say
    assert (
        found.gain('score', 'easy', 'base')[0] > 0
        and found.verdict('score', 'easy', 'base') == found.verdict('score', 'base', 'easy') == 'not shown'
    )
    assert found.verdict('anatomy_failures', 'no such', 'base') == 'not measured'
    assert found.wins()[['arm', 'against', 'rate']].values.tolist() == [['easy', 'base', 1.]]
    for arms, word in (
        (dict(a=found.rows['base'], b=found.rows['easy'].iloc[:-1]), 'same prompts and seeds'),
        (dict(a=found.rows['base'], b=found.rows['easy'].assign(seed=lambda d: d.seed + 1)), 'same prompts and seeds'),
        (
            dict(a=Candidate(painter((60, 60, 60)), 'g', 'base 1'), b=Candidate(painter((30, 200, 30)), 'e', 'base 2')),
            'different base models',
        ),
    ):
        with pytest.raises(UserError, match=word):
            compare_arms(
                ws,
                arms,
                everything(ws),
                scorers=[Green()],
                progress=quiet,
            )


def test_few_images_get_a_warning_with_the_number_needed_and_kid_beside(finished, copy_of):
    ws = copy_of(finished)
    found = compare_arms(
        ws,
        dict(base=Candidate(painter((60, 60, 60)), 'g')),
        everything(ws),
        scorers=[Green()],
        chose='green',
        progress=quiet,
    )
    assert any('640' in n and '12 images' in n and 'KID' in n for n in found.notes) and any(
        'green also chose' in n for n in found.notes
    )
    value = found.table.set_index('metric').value
    assert (
        np.isfinite(value[['frechet', 'kid', 'diversity', 'diversity_prompt', 'rgb_distance']].astype(float)).all()
        and value['flagged'] != value['flagged']
    )


def test_prompts_without_photos_are_measured_and_said(finished, copy_of):
    ws = copy_of(finished)
    bare = dict(
        prompt_id='f' * 16,
        prompt='a photo of nobody yet',
        real_image_id='',
        fold='test',
    )
    ws.append('prompts', [bare])
    prompts = pd.concat([everything(ws), pd.DataFrame([bare])])
    found = compare_arms(
        ws,
        dict(base=Candidate(painter((60, 60, 60)), 'g')),
        prompts,
        scorers=[Green()],
        progress=quiet,
    )
    assert any('1 of 7 prompts have no photo' in n for n in found.notes) and len(found.groups) == 14
    from hgdpo_curate.evaluate.report import write_report
    from hgdpo_curate.evaluate.results import model_grid
    assert model_grid(ws, found).width > 0 and 'no photo' in write_report(ws, found, ws.root/'r.html').read_text()
    ws.append(
        'photo_facts',
        [dict(image_id=i, consent='withdrawn') for i in ws.table('images').query("domain == 'real'").image_id],
    )
    none = compare_arms(
        ws,
        dict(base=Candidate(painter((60, 60, 60)), 'g')),
        prompts,
        scorers=[Green()],
        progress=quiet,
    )
    assert (
        not len(none.photos)
        and any('no reference photos' in n for n in none.notes)
        and np.isnan(none.table.set_index('metric').value['frechet'])
    )
    assert 'Not measured' in write_report(ws, none, ws.root/'r.html').read_text()


def test_features_without_weights_are_asked_for_by_file(finished, copy_of):
    ws = copy_of(finished)
    with pytest.raises(UserError, match='weights-inception-2015-12-05-6726825d.pth.*--extractor_path'):
        compare_arms(
            ws,
            dict(base=Candidate(painter((60, 60, 60)), 'g')),
            everything(ws),
            scorers=[Green()],
            extractor='inception',
            progress=quiet,
        )


def test_a_nan_score_ends_the_evaluation_with_the_image(finished, copy_of):
    class Broken(Green):
        name = 'broken'
        def score(self, images, prompts): return np.full(len(images), np.nan)
    ws = copy_of(finished)
    with pytest.raises(UserError, match=r'broken gave nan for .*evaluation.*png'):
        compare_arms(
            ws,
            dict(base=Candidate(painter((60, 60, 60)), 'g')),
            everything(ws),
            scorers=[Broken()],
            progress=quiet,
        )


def test_rules_flags_are_a_rate_only_when_every_image_was_looked_at(finished, copy_of):
    ws = copy_of(finished)
    found = compare_arms(
        ws,
        dict(base=Candidate(painter((60, 60, 60)), 'g')),
        everything(ws),
        scorers=[Green()],
        progress=quiet,
    )
    rows, rate = (
        found.rows['base'],
        lambda: (
            compare_arms(
                ws,
                dict(base=found.rows['base']),
                everything(ws),
                scorers=[Green()],
                progress=quiet,
            )
            .table.set_index('metric')
            .value['flagged']
        ),
    )
    ws.append(
        'flags',
        [
            dict(
                image_id=i,
                flag='extra_limb',
                status='confirmed',
                source='human',
                part='',
                side='',
                reviewer='ann',
            )
            for i in rows.image_id[:3]
        ],
    )
    assert np.isnan(rate())
    ws.append('detections', [nothing_seen(i) for i in rows.image_id])
    assert rate() == 3/12
    from hgdpo_curate.evaluate.report import faults_section
    again = compare_arms(
        ws,
        dict(base=rows),
        everything(ws),
        scorers=[Green()],
        progress=quiet,
    )
    assert faults_section(ws, again).count('extra limb') == 3


def test_identity_is_a_distance_to_the_photo_of_the_same_prompt(finished, copy_of):
    class Eye:
        name, version = 'eye', '1'
        def embed(self, images): return np.stack([np.asarray(i.resize((4, 4)), float).ravel() for i in images])
    class Blind: # sees no face
        name, version = 'blind', '2'
        def embed(self, images): return np.full((len(images), 1), np.nan)
    ws = copy_of(finished)
    photo = ws.table('images').query("domain == 'real'").set_index('prompt_id').path
    def copied(prompts, seeds):
        return [ws.open_image(photo[ws.table('prompts').set_index('prompt').prompt_id[p]]) for p in prompts]
    found = compare_arms(
        ws,
        dict(base=Candidate(painter((60, 60, 60)), 'g'), memory=Candidate(copied, 'm')),
        everything(ws),
        scorers=[Green()],
        recognisers=[Eye(), Blind()],
        progress=quiet,
    )
    value = found.table.set_index(['arm', 'metric']).value
    assert abs(value['memory', 'identity, eye']) < 1e-9 < value['base', 'identity, eye'] and np.isnan(
        value['memory', 'identity, blind']
    )
    from hgdpo_curate.evaluate.report import figures_section, nearest_section, provenance_section
    # who saw no face has no figure
    assert 'face distance to the photo, eye' in figures_section(found) and 'blind' not in figures_section(found)
    made = provenance_section(ws, found, 'hgdpo evaluate')
    assert (
        all(f'<td>recogniser</td><td>{n}</td>' in made for n in ('eye', 'blind'))
        and '<td>scorer</td><td>green</td>' in made
    )
    # the report's memorisation check finds the copies too, and of which model they are
    page = nearest_section(ws, found, True)
    assert 'The nearest of <b>memory</b>: check these; they may be memorised photos' in page and re.search(
        r'<td>base</td><td class=num>12</td><td class=num>[^<]+</td><td class=num><b class=good>0</b>', page
    )


def test_the_report_embeds_no_photograph_of_a_person_unasked_and_no_address(finished, copy_of):
    from hgdpo_curate.evaluate.report import write_report
    ws = copy_of(finished)
    ws.append(
        'prompts',
        ws.table('prompts').drop(columns='written_at').assign(prompt=lambda d: d.prompt + ' <script>alert(1)</script>'),
    )
    # real people from now on
    ws.append('photo_facts', ws.table('photo_facts').drop(columns='written_at').assign(source='a camera'))
    class Colours:
        name, version = 'colours', '1'
        def extract(self, images): return np.stack([np.asarray(i.resize((2, 2)), float).ravel() for i in images])
    found = compare_arms(
        ws,
        dict(base=Candidate(painter((60, 60, 60)), 'g'), easy=Candidate(painter((30, 200, 30)), 'e')),
        everything(ws),
        scorers=[Green()],
        extractor=Colours(),
        progress=quiet,
    )
    plain, shown = (
        write_report(
            ws,
            found,
            ws.root / f'{n}.html',
            with_photos=n,
            command='hgdpo evaluate',
        ).read_text()
        for n in (False, True)
    )
    assert '<script' not in plain and not re.findall(r'(?:src|href)="(?!data:)|https?://(?!www.w3.org)', plain)
    assert (
        shown.count('data:image') > plain.count('data:image')
        and 'without --with_photos' in plain
        and 'distance' in plain
    )
    for n in (False, True): seen_alone(ws.root/f'{n}.html', (1300,))


def test_runs_of_one_workspace_are_compared_and_reported_from_the_command_line(finished, copy_of, capsys):
    from hgdpo_curate import train_curriculum
    ws = copy_of(finished)
    assert (
        main(['evaluate', '--workspace', str(ws.root), '--runs', 'base,easy']) == 1
        and 'hgdpo train' in capsys.readouterr().err
    )
    for run, rate in (('one', 1e-3), ('two', 1e-2)):
        train_curriculum(
            ws,
            preset='mannequin',
            run=run,
            progress=quiet,
            max_train_steps=1,
            train_batch_size=2,
            learning_rate=rate,
        )
    assert (
        main(
            [
                'evaluate',
                '--workspace',
                str(ws.root),
                '--run',
                'one',
                '--runs',
                'base,easy,two/easy,two',
                '--limit',
                '1',
            ]
        )
        == 0
    )
    said = capsys.readouterr().out
    assert (
        'win rate against base' in said
        and 'two/easy' in said
        and max(map(len, said.splitlines()[:-1])) <= 100
        and (ws.root / 'runs' / 'one' / 'evaluation' / 'report.html').exists()
    )
    from hgdpo_curate import open_study
    # the same images, shown blind
    server = open_study(
        ws,
        ('base', 'two/easy'),
        'ann',
        run='one',
        port=0,
        progress=quiet,
    )
    assert server.url.startswith('http://127.0.0.1:')
    server.server_close()
    for runs, words, code in (
        ('nonsense', 'neither a run', 2),
        ('one/nonsense', 'choose among', 2),
        ('three/easy', 'no run', 1),
    ):
        assert (
            main(['evaluate', '--workspace', str(ws.root), '--runs', runs]) == code and words in capsys.readouterr().err
        )
    config = ws.root/'runs'/'two'/'config.json'
    config.write_text(config.read_text().replace('"split": "v1"', '"split": "v2"'))
    assert (
        main(['evaluate', '--workspace', str(ws.root), '--runs', 'one,two']) == 1
        and 'different splits' in capsys.readouterr().err
    )
    config.write_text(
        re.sub(
            '"base_hash": "[0-9a-f]+"',
            '"base_hash": "0123456789abcdef"',
            config.read_text().replace('"split": "v2"', '"split": "v1"'),
        )
    )
    assert (
        main(['evaluate', '--workspace', str(ws.root), '--runs', 'one,two']) == 1
        and 'other weights' in capsys.readouterr().err
    )


def painted(ws, prompts=12, scorers=None, **models):
    "A comparison of models that paint in one colour each, on so many test prompts."
    extra = [
        dict(
            prompt_id=f'{i:016x}',
            prompt=f'a person of number {i}',
            real_image_id='',
            fold='test',
        )
        for i in range(prompts)
    ]
    ws.append('prompts', extra)
    arms = {n: Candidate(painter(c), n) for n, c in models.items()}
    return compare_arms(
        ws,
        arms,
        pd.DataFrame(extra),
        scorers=scorers or [Green()],
        progress=quiet,
    )


def test_the_report_begins_with_what_improved_then_pictures_then_tables_and_warnings_last(finished, copy_of):
    from hgdpo_curate.evaluate.report import write_report
    from hgdpo_curate.evaluate.results import headline
    ws = copy_of(finished)
    found = painted(ws, base=(60, 60, 60), easy=(30, 200, 30))
    first, *others = headline(found)
    assert first.startswith('easy is better than base in') and 'score (0.235 → 0.784)' in first
    assert any(s.startswith('Certainty: 12 prompts with 2 images each') and '95%' in s for s in others)
    page = write_report(ws, found, ws.root/'r.html').read_text()
    order = [page.index(w) for w in ('class=headline', '<img', 'data:image/svg', '<h2>Figures</h2>', 'class=note')]
    assert order == sorted(order)
    # a small workspace: nothing can be told, why, and what to do
    few = painted(ws, 6, base=(60, 60, 60), easy=(30, 200, 30))
    assert 'No conclusion about easy against base: 6 prompts measured, and a verdict needs 10.' == headline(few)[0]
    assert '--test_share' in headline(few)[1] and any('Too few prompts' in n and '--test_share' in n for n in few.notes)
    # the scorer that chose is no evidence
    from dataclasses import replace
    chosen = headline(replace(found, chose='green'))
    assert 'by the scorer that chose the pairs' in chosen[0]


def test_hue_that_cannot_be_told_says_so(finished, copy_of):
    from hgdpo_curate.evaluate.report import figures_section
    from hgdpo_curate.evaluate.results import write_results
    ws = copy_of(finished)
    gray = painted(ws, base=(128, 127, 127), easy=(127, 128, 128))
    assert figures_section(gray).count('<i>undefined') == 2
    assert any('hue of base, easy is undefined' in n for n in gray.notes)
    write_results(ws, gray, ws.root/'out')
    assert (ws.root/'out'/'table.md').read_text().count('*undefined*') == 2
    coloured = painted(copy_of(finished, 'coloured'), base=(200, 40, 40), easy=(40, 40, 200))
    assert 'undefined' not in figures_section(coloured)


def test_provenance_lists_only_what_was_compared(finished, copy_of):
    from hgdpo_curate import train_curriculum
    from hgdpo_curate.evaluate.report import report_runs
    ws = copy_of(finished)
    for run in ('one', 'two'):
        train_curriculum(
            ws,
            preset='mannequin',
            run=run,
            progress=quiet,
            max_train_steps=1,
            train_batch_size=2,
        )
    page = report_runs(
        ws,
        'one',
        ('base', 'easy'),
        scorer=Chance(),
        progress=quiet,
        command='x',
    ).read_text()
    listed = re.findall(r'[0-9a-f]{64}  (\S+?)(?=<|\n)', page)
    assert listed == ['runs/one/easy/pytorch_lora_weights.safetensors', 'splits/v1/split.json']


def test_a_full_device_is_not_called_a_broken_weights_file(monkeypatch):
    from hgdpo_curate.evaluate.features import _moved
    class Large:
        def to(self, device): raise RuntimeError('CUDA out of memory. Tried to allocate 2.00 GiB')
    with pytest.raises(UserError, match='out of memory.*--device cpu') as e: _moved(Large(), 'cuda')
    assert 'does not fit' not in str(e.value) and 'fetch' not in str(e.value)


def test_no_images_are_no_key_error_and_no_prompts_are_one_sentence(finished, copy_of):
    from hgdpo_curate.evaluate.measures import measure_images, statistics_of
    ws = copy_of(finished)
    nothing = measure_images(ws, ws.table('images').head(0), None)
    stats = statistics_of(
        nothing,
        [],
        {},
        nothing,
        nothing,
    )
    assert stats['sharpness'] is None and nothing['hue'].shape == (0, 3)
    with pytest.raises(UserError, match='no test prompts.*--test_share'):
        compare_arms(ws, dict(base=Candidate(painter((60, 60, 60)), 'g')), everything(ws).head(0), scorers=[Green()])


def test_nearest_photos_of_few_photos_claim_no_hundredth(finished, copy_of):
    from hgdpo_curate.evaluate.report import nearest_section
    ws = copy_of(finished)
    found = painted(ws, base=(60, 60, 60))
    assert 'no two photos are nearer' in nearest_section(ws, found, False)
    gone = [dict(image_id=i, consent='withdrawn') for i in ws.table('images').query("domain == 'real'").image_id[2:]]
    ws.append('photo_facts', gone)
    assert '2 photos are too few' in nearest_section(ws, found, False)


def test_a_fault_is_named(finished, copy_of):
    from hgdpo_curate.evaluate.report import faults_section, KINDS_OF_FAULT
    from hgdpo_curate.toy.drawings import draw_person
    ws = copy_of(finished)
    def faulty(prompts, seeds): return [draw_person([s], fault='extra_face').pil() for s in seeds]
    found = compare_arms(
        ws,
        dict(base=Candidate(faulty, 'f')),
        everything(ws),
        scorers=[Green()],
        progress=quiet,
    )
    page = faults_section(ws, found)
    assert 'extra face (the evaluator is' in page
    captions = re.findall(r'<figcaption>([^(]+) \(the evaluator', page)
    assert captions and {c.replace(' ', '_') for c in captions} <= set(KINDS_OF_FAULT)
    one = found.rows['base'].image_id.iloc[0]
    two_flags = [
        dict(
            image_id=one,
            flag=f,
            status='confirmed',
            source='human',
            part=p,
            side='left',
            reviewer='ann',
        )
        for f, p in (('bad_hand', 'hand'), ('extra_limb', ''))
    ]
    ws.append('flags', two_flags)
    page = faults_section(ws, found)
    assert 'bad hand (left hand)' in page and 'extra limb' in page


def test_ties_are_labelled(finished, copy_of):
    from hgdpo_curate.evaluate.report import wins_section
    from hgdpo_curate.evaluate.results import wins_markdown
    found = painted(copy_of(finished), base=(60, 60, 60), again=(60, 60, 60))
    assert found.wins().ties.tolist() == [1.] and '100% tied (half a win each)' in wins_markdown(found)
    assert 'A tie counts half a win' in wins_section(found)


def test_a_picture_is_enlarged_by_a_click_and_nothing_sticks_out_of_a_telephone(finished, copy_of):
    from playwright.sync_api import sync_playwright
    from reviewer import CHROMIUM
    from hgdpo_curate.evaluate.report import write_report
    if CHROMIUM is None: pytest.skip('no Chromium to open the page in')
    ws = copy_of(finished)
    models = {n: (30*k, 200, 30) for k, n in enumerate(('base', 'easy', 'normal', 'hard', 'hard + text encoder'))}
    page = write_report(ws, painted(ws, **models), ws.root/'r.html', command='hgdpo evaluate ' + 'x'*300)
    seen_alone(page, (1300, 420))
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=['--no-sandbox'])
        tab = browser.new_page(viewport=dict(width=1300, height=800))
        tab.goto(page.as_uri())
        picture = tab.locator('.zoom img').first
        assert picture.bounding_box()['height'] >= 200
        picture.click()
        assert tab.locator('.zoom img').first.bounding_box() == dict(
            x=0,
            y=0,
            width=1300,
            height=800,
        )
        picture.click()
        assert picture.bounding_box()['height'] < 400
        aligned = "[...document.querySelectorAll('td.num')].every(c => getComputedStyle(c).textAlign == 'right')"
        assert tab.evaluate(aligned) and tab.locator('td.num').count() > 10
        browser.close()


def test_hands_of_generated_people_are_figures_beside_the_photos(finished, copy_of):
    "As in arXiv 2401.15075: how sure the hand network is, and how long fingers are, beside real hands."
    from hgdpo_curate.evaluate.results import to_markdown
    from hgdpo_curate.evaluate.measures import BESIDE
    from hgdpo_curate.judge.detections import detect, seen
    fingers = [[x, -15. - 5*k] for x in (-4, 0, 4, 8) for k in range(4)]
    points = np.array([[0, 0], [-5, -3], [-8, -7], [-10, -10], [-12, -12], *fingers])
    class Hands:
        name, version = 'some_hands', '1'
        def detect(self, images):
            return [[self.hand(np.asarray(im).mean((0, 1))[1] > 150)] for im in images]
        def hand(self, green): # in green pictures a sure one with long fingers, else none is found
            long = points*[1, 1.5] + 40 if green else None
            return seen('hand', .9*green, [20, 10, 9, 9], long, side='left', handed='left', joint=.9)
    ws = copy_of(finished)
    found = painted(ws, base=(60, 60, 60), easy=(30, 200, 30))
    assert not {'hand_confidence', 'hand_ratios'} & set(found.table.metric)          # nobody looked at hands
    detect(ws, Hands(), ('evaluation',), progress=quiet)
    def again():
        prompts = ws.table('prompts').query("real_image_id == ''")
        arms = {n: Candidate(painter(c), n) for n, c in dict(base=(60, 60, 60), easy=(30, 200, 30)).items()}
        return compare_arms(ws, arms, prompts, scorers=[Green()], progress=quiet)
    found = again()
    value = found.table.set_index(['arm', 'metric']).value
    assert value['base', 'hand_confidence'] == 0 and np.isclose(value['easy', 'hand_confidence'], .9)
    assert np.isnan(value['easy', 'hand_ratios']) and any('hgdpo flag --detector hands' in n for n in found.notes)
    class Real(Hands):
        def hand(self, green): return seen('hand', .8, [9]*4, points + 40, side='left', handed='left', joint=.9)
    detect(ws, Real(), ('real',), progress=quiet)
    found = again()
    value = found.table.set_index(['arm', 'metric']).value
    assert value['easy', 'hand_ratios'] > .05 and np.isnan(value['base', 'hand_ratios'])
    assert any('Hand confidence of the photos: 0.80' in n for n in found.notes)
    assert 'hand confidence' in to_markdown(found.table, 1., BESIDE)
    assert found.gain('hand_confidence', 'easy', 'base')[0] > .8
