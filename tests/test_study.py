"""A blind study in a real browser.

Keys, shuffled sides, a break, several raters, what the page may know, and the results.
"""
import json
import os
import re
import threading
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from test_browser import CHROMIUM

from hgdpo_curate import UsageError, UserError, create_workspace
from hgdpo_curate.cli import main
from hgdpo_curate.evaluate.study import results_markdown, Session, study_pairs, study_results, study_server

GREEN, RED = (40, 160, 60), (170, 50, 40)


@pytest.fixture
def world(tmp_path):
    "A workspace and two arms: every image of `hard` is drawn in green, every one of `base` in red."
    from PIL import Image
    from hgdpo_curate.toy.drawings import draw_person
    ws = create_workspace(tmp_path/'ws', resolution='40x56')
    def row(arm, i):
        image = Image.blend(draw_person([81, i]).pil(), Image.new('RGB', (40, 56), GREEN if arm == 'hard' else RED), .5)
        return ws.save_image(
            image,
            'evaluation',
            f'{arm}{i:012x}',
            prompt_id=f'p{i // 2}',
            seed=i,
        ) | dict(prompt=draw_person([81, i // 2]).prompt + (' <img src=x onerror="window.broken=1">' if i < 2 else ''))
    arms = {a: pd.DataFrame([row(a, i) for i in range(8)]) for a in ('base', 'hard')}
    return ws, arms


def serve(ws, arms, rater, question='preference'):
    server = study_server(Session(ws, study_pairs(arms['base'], arms['hard'], ['base', 'hard'], question), rater), 0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


@pytest.fixture(scope='module')
def browser():
    if CHROMIUM is None:
        pytest.skip('no Chromium here; install it (apt-get install chromium) to test the study in a browser')
    from playwright.sync_api import sync_playwright
    with sync_playwright() as p:
        b = p.chromium.launch(executable_path=CHROMIUM, args=['--no-sandbox'])
        yield b
        b.close()


GREENER = '''() => {
    const greenness = image => {
        const canvas = document.createElement('canvas')
        canvas.width = image.naturalWidth
        canvas.height = image.naturalHeight
        const context = canvas.getContext('2d')
        context.drawImage(image, 0, 0)
        const pixels = context.getImageData(0, 0, canvas.width, canvas.height).data
        let sum = 0
        for (let k = 0; k < pixels.length; k += 4) sum += pixels[k + 1] - pixels[k]
        return sum
    }
    const left = greenness(document.getElementById('left'))
    return left > greenness(document.getElementById('right')) ? 'ArrowLeft' : 'ArrowRight' }'''


def at(page, n):
    """Wait until the n-th pair is shown.

    By looking again and again, since the page's own policy forbids scripts from outside.
    """
    for _ in range(200):
        if page.evaluate(
            f'document.getElementById("note").textContent.startsWith("{n} of") && '
            '[...document.querySelectorAll("figure img")].every(i => i.complete && i.naturalWidth && '
            f'i.src.includes("/{n - 1}/"))'
        ):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f'the page does not show pair {n}')


def test_a_rater_answers_by_keys_stops_and_goes_on(world, browser):
    ws, arms = world
    asked, sides, page = [], [], browser.new_page(viewport=dict(width=1200, height=860))
    page.on('request', lambda r: asked.append(r.url))
    # a break after three: another process would do the same
    for first, last in ((1, 3), (4, 8)):
        server = serve(ws, arms, 'ann')
        page.goto(server.url)
        for n in range(first, last + 1):
            # the second time it begins with the fourth pair
            at(page, n)
            key = page.evaluate(GREENER)
            sides.append(key)
            if n == 2:
                shots = Path(os.environ.get('HGDPO_SCREENSHOTS', ROOT/'screenshots'))
                shots.mkdir(exist_ok=True)
                page.screenshot(path=shots/'study.png')
            page.keyboard.press('Space' if n == 8 else key)
        if last == 8:
            page.wait_for_selector('#done:visible')
            # nothing to go back to once all is said: the page thanks
            page.keyboard.press('Backspace')
        # nothing is asked of anybody else
        assert not [u for u in asked if not u.startswith(server.url.split('?')[0])]
        assert not [u for u in asked if 'base' in u or 'hard' in u] and not page.evaluate('window.broken')
        page.goto('about:blank')
        page.wait_for_timeout(200)                 # what it was loading ahead is cut off
        asked.clear()
        server.shutdown()
        server.server_close()
    page.close()
    told = ws.table('study')
    assert (
        len(told) == 8
        and (told.choice == 'b').sum() == 7
        and (told.choice == 'tie').sum() == 1
        and set(told.rater) == {'ann'}
        and (told.seconds > 0).all()
    )
    # the better model did not always stand on one side
    assert {'ArrowLeft', 'ArrowRight'} == set(sides)


def test_anatomy_marks_faulty_bodies_and_back_changes_an_answer(world, browser):
    ws, arms = world
    server, page = serve(ws, arms, 'ben', 'anatomy'), browser.new_page()
    page.goto(server.url)
    for n in range(1, 9):
        at(page, n)
        key = page.evaluate(GREENER)
        page.keyboard.press('2' if key == 'ArrowLeft' else '1')              # the red one is faulty
        page.keyboard.press(key)
        if n == 1:
            at(page, 2)
            page.keyboard.press('Backspace')
            at(page, 1)
            page.keyboard.press('Space')
            at(page, 2)
    page.wait_for_selector('#done:visible')
    page.close()
    server.shutdown()
    server.server_close()
    rates = study_results(ws)['rates'].set_index('rater')
    assert (
        rates.wins_b['ben'] == 7
        and rates.ties['ben'] == 1
        and rates.faulty_a['ben'] == 7 / 8
        and rates.faulty_b['ben'] == 0
    )
    assert len(ws.table('study', history=True)) == 9 and len(ws.table('study')) == 8


def test_only_the_page_with_the_token_is_answered_and_only_by_the_local_host(world):
    ws, arms = world
    server = serve(ws, arms, 'cat')
    base, token = server.url.split('?token=')
    def code(url, body=None, **headers):
        try:
            return urllib.request.urlopen(
                urllib.request.Request(url, body and json.dumps(body).encode(), headers), timeout=5
            ).status
        except urllib.error.HTTPError as e: return e.code
    answer = dict(token=token, n=0, choice='left')
    assert (
        server.server_address[0] == '127.0.0.1'
        and code(server.url) == 200
        and code(base) == 403
        and code(f'{base}?token=guess') == 403
    )
    assert (
        code(server.url, Host='evil.example') == 403
        and code(base + 'answer', answer | dict(token='guess')) == 403
        and code(base + 'answer', answer, Host='evil.example') == 403
    )
    assert (
        code(f'{base}image/0/../../workspace.toml?token={token}') == 404
        and code(f'{base}image/99/left?token={token}') == 404
    )
    for wrong in (dict(n=99), dict(choice='base'), dict(n='x'), dict(faults=['base'])):
        assert code(base + 'answer', answer | wrong) == 400
    assert not len(ws.table('study')) and code(base + 'answer', answer) == 200 and len(ws.table('study')) == 1
    state = urllib.request.urlopen(f'{base}state?token={token}', timeout=5).read().decode()
    assert 'hard' not in state and 'base' not in state and 'evaluation' not in state         # blind: no names, no files
    with pytest.raises(UserError, match='--port'):
        study_server(Session(ws, study_pairs(arms['base'], arms['hard'], ['base', 'hard']), 'dan'), server.server_port)
    server.shutdown()
    server.server_close()


def test_results_name_raters_majority_and_agreement(world, capsys):
    ws, arms = world
    assert (
        main(['study', '--workspace', str(ws.root), '--results']) == 1
        and 'Nobody has answered' in capsys.readouterr().err
    )
    pairs = study_pairs(arms['base'], arms['hard'], ['base', 'hard'])
    for rater, says in (('ann', 'bbbbbbaa'), ('ben', 'bbbbbbab'), ('cat', 'bbbbaaat')):
        s = Session(ws, pairs, rater)
        for n, row in s.pairs.iterrows():
            word = says[list(pairs.pair_id).index(row.pair_id)]
            s.answer(n, 'tie' if word == 't' else 'left' if row.left == word else 'right')
    found = study_results(ws)
    rates = found['rates'].set_index('rater')
    assert rates.wins_b['by majority'] == 6 and rates.wins_a['by majority'] == 1 and rates.ties['by majority'] == 1
    assert (
        found['agreement'].statistic[0] == 'Fleiss' and 0 < found['agreement'].kappa[0] < 1 and len(found['pairs']) == 8
    )
    assert main(['study', '--workspace', str(ws.root), '--results']) == 0
    said = capsys.readouterr().out
    # every pair's answers
    assert "Fleiss's kappa" in said and '| p3 | first | ' in said and len(re.findall(r'\| p\d \|', said)) == 8
    low, high = rates.low['ann'], rates.high['ann']                          # 6 of 8, by the exact interval's tables
    assert abs(low - .3491) < 1e-3 and abs(high - .9681) < 1e-3


def test_the_same_stage_of_two_runs_makes_two_studies(world):
    ws, arms = world
    one, other = (arms['hard'].assign(model=m, image_id=arms['hard'].image_id + m) for m in ('x', 'y'))
    for hard, side in ((one, 'b'), (other, 'a')):
        s = Session(ws, study_pairs(arms['base'].assign(model='base'), hard, ['base', 'hard'], 'anatomy'), 'ann')
        for n, row in s.pairs.iterrows(): s.answer(n, 'left' if row.left == side else 'right', ['left'])
    rates = study_results(ws)['rates'].query("rater == 'ann'")
    assert len(rates) == 2 and set(rates.rate) == {0., 1.} and all(s.startswith('base / hard (') for s in rates.study)
    assert '| first called faulty |' in results_markdown(study_results(ws))


def test_wrong_use_of_a_study_is_one_sentence(world, finished, capsys):
    ws, arms = world
    assert (
        main(['study', '--workspace', str(finished.root), '--runs', 'base']) == 2
        and 'two models' in capsys.readouterr().err
    )
    assert (
        main(['study', '--workspace', str(finished.root), '--runs', 'base,hard']) == 1
        and 'hgdpo train' in capsys.readouterr().err
    )
    with pytest.raises(UsageError, match='--rater'):
        Session(ws, study_pairs(arms['base'], arms['hard'], ['base', 'hard']), ' ')
    with pytest.raises(UserError, match='share no image'):
        study_pairs(arms['base'], arms['hard'].assign(seed=lambda d: d.seed + 99), ['base', 'hard'])


def test_sides_are_balanced_and_tell_nothing_of_the_model(world):
    ws, arms = world
    left = [
        Session(ws, study_pairs(arms['base'], arms['hard'], ['base', 'hard']), f'rater {i}').pairs.left.eq('a').mean()
        for i in range(20)
    ]
    assert set(left) == {.5}
    firsts = [
        Session(ws, study_pairs(arms['base'], arms['hard'], ['base', 'hard']), f'rater {i}').pairs.left[0]
        for i in range(40)
    ]
    assert .2 < np.mean([f == 'a' for f in firsts]) < .8
