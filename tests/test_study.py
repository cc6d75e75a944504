"""A blind study in a real browser.

Keys, shuffled sides, a break, several raters, what the page may know, and the results.
"""
import json
import os
import re
import socket
import threading
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from reviewer import CHROMIUM

from hgdpo_curate import UsageError, UserError, create_workspace
from hgdpo_curate.cli import main
from hgdpo_curate.evaluate.study import (
    rater_link, results_markdown, Session, Study, study_pairs, study_results, study_server,
)

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


@pytest.mark.parametrize('image_format', ['png', 'jpeg', 'webp'])
def test_pictures_are_sent_as_what_they_are(image_format, tmp_path):
    from PIL import Image
    ws = create_workspace(tmp_path/'ws', resolution='40x56', image_format=image_format)
    arms = {
        arm: pd.DataFrame([
            ws.save_image(Image.new('RGB', (40, 56)), 'evaluation', f'{n:016x}', prompt_id='p', seed=0)
            | dict(prompt='a person')
        ])
        for n, arm in enumerate(('base', 'hard'))
    }
    server = serve(ws, arms, 'cat')
    base, token = server.url.split('?token=')
    answer = urllib.request.urlopen(f'{base}image/0/left?token={token}', timeout=5)
    assert answer.headers['Content-Type'] == f'image/{image_format}'
    server.shutdown()
    server.server_close()


def raw(server, request): # -> status of the answer to bytes that no client library would send
    with socket.create_connection(server.server_address[:2], timeout=5) as s:
        s.sendall(request)
        return int(s.recv(100).split()[1])


def test_odd_tokens_paths_and_answers_are_refused_and_leave_no_traceback(world, capfd):
    ws, arms = world
    server = serve(ws, arms, 'cat')
    token, host = server.token.encode(), b'Host: 127.0.0.1:%d\r\n' % server.server_port
    def get(target): return raw(server, b'GET ' + target + b' HTTP/1.1\r\n' + host + b'Connection: close\r\n\r\n')
    odd_tokens = (
        b'/?token=\xc3\xa9',
        b'/?token=%C3%A9',
        b'/?token=',
        b'/?token=%ff%00',
        b'/?' + token,
        b'/state?token=\xff',
    )
    for odd in odd_tokens: assert get(odd) == 403, odd
    for odd in ('/image/²/left', '/image/-1/left', '/image/99999999999999999999/left', '/image/0/up', '/image//left',
                '/image/0/left/', '/..%2f..%2fworkspace.toml', '/favicon.ico', '/image/%C2%B2/left'):
        assert get(odd.encode() + b'?token=' + token) == 404, odd
    def post(body, length=None):
        length = b'%d' % len(body) if length is None else length
        return raw(server, b'POST /answer HTTP/1.1\r\n' + host + b'Content-Length: ' + length + b'\r\n\r\n' + body)
    assert post(b'{"token": "\\ud800"}') == 403 and post('{"token": "é"}'.encode()) == 403
    begin = b'{"token": "' + token + b'", "choice": "left", "n": '
    for odd in (b'1e400}', b'true}', b'1.5}', b'"0"}', b'0, "faults": 3}', b'0, "rater": "%s"}' % (b'a'*61)):
        assert post(begin + odd) == 400, odd
    assert post(b'['*9000) == 400 and post(b'\xff') == 400 and post(b'{}', b'-5') == 400 and post(b'{}', b'x') == 400
    assert not len(ws.table('study')) and post(begin + b'0}') == 200
    server.shutdown()
    server.server_close()
    assert 'Traceback' not in ''.join(capfd.readouterr())


def test_raters_with_a_name_each_answer_one_study_by_link_or_are_asked_once(world, browser):
    ws, arms = world
    pairs = study_pairs(arms['base'], arms['hard'], ['base', 'hard'])
    server = study_server(Study(ws, pairs, suggested='me'), 0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    anna, ben = browser.new_page(), browser.new_page()
    anna.goto(rater_link(server, 'anna | é'))
    at(anna, 1)                                              # her link has the name
    ben.goto(server.url)
    ben.wait_for_selector('#who:visible')
    assert ben.input_value('#name') == 'me' and not ben.is_visible('#work')
    ben.fill('#name', 'ben')
    ben.keyboard.press('Enter')
    for n in range(1, 4):
        for page in (anna, ben):
            at(page, n)
            page.keyboard.press(page.evaluate(GREENER))
    at(ben, 4)
    assert ben.text_content('#progress') == 'ben: 3 of 8 answered'
    ben.reload()
    at(ben, 4)                                               # not asked again
    assert server.study.progress() == 'anna | é: 3 of 8, ben: 3 of 8' and not server.open_to_network
    for page in (anna, ben): page.close()
    server.shutdown()
    server.server_close()
    answers = ws.table('study')
    assert answers.groupby('rater').size().to_dict() == {'anna | é': 3, 'ben': 3} and set(answers.choice) == {'b'}


def test_the_local_network_is_served_only_when_asked_and_only_with_the_token(world):
    ws, arms = world
    pairs = study_pairs(arms['base'], arms['hard'], ['base', 'hard'])
    assert study_server(Study(ws, pairs), 0).server_address[0] == '127.0.0.1'
    server = study_server(Study(ws, pairs), 0, '0.0.0.0')
    threading.Thread(target=server.serve_forever, daemon=True).start()
    def code(query): # as another machine would name this one
        address = f'http://127.0.0.1:{server.server_port}/state{query}'
        request = urllib.request.Request(address, headers=dict(Host='lab-pc'))
        try: return urllib.request.urlopen(request, timeout=5).status
        except urllib.error.HTTPError as e: return e.code
    assert code('') == code('?token=guess') == 403 and code(f'?token={server.token}&rater=anna') == 200
    assert '0.0.0.0' not in server.url and server.open_to_network
    server.shutdown()
    server.server_close()
    with pytest.raises(UserError, match='--host'): study_server(Study(ws, pairs), 0, 'no such host')


def test_raters_named_like_columns_or_with_a_bar_keep_the_tables_whole(world):
    ws, arms = world
    names = ['majority', 'prompt_id', 'prompt', 'by majority', 'a|b', 'x\\']
    for question in ('preference', 'anatomy'):
        pairs = study_pairs(arms['base'], arms['hard'], ['base', 'h|d'], question)
        for name in names: Session(ws, pairs, name).answer(0, 'left', ['right'] if question == 'anatomy' else ())
    results = study_results(ws)
    assert len(results['rates']) == 2*7 and results['rates'].all_raters.sum() == 2
    text = results_markdown(results)
    columns, widths = lambda line: len(re.findall(r'(?<!\\)(?:\\\\)*\|', line)), []
    for block in re.split(r'\n\n+', text):
        lines = [line for line in block.splitlines() if line.startswith('|')]
        assert len({columns(line) for line in lines}) <= 1, block
        widths += [columns(lines[0])] if lines else []
    assert widths[-1] == 3 + 6 + 1 + 1


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
    assert "Fleiss's kappa" in said and len(re.findall(r' p\d \([12] of 2\) ', said)) == 8
    ws.append('prompts', [dict(prompt_id='p3', prompt='a person | in\nrain', fold='test')])
    ws.append('prompts', [dict(prompt_id='p2', prompt='a woman in a red coat, ' + 'very detailed, '*9, fold='test')])
    assert main(['study', '--workspace', str(ws.root), '--results']) == 0
    said = capsys.readouterr().out
    # by the prompt's text, each pair once, within the width of a terminal
    assert len(re.findall(r' a person \| in rain \([12] of 2\) ', said)) == 2 == said.count('a woman in a red coat')
    assert max(map(len, said.splitlines())) <= 100
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
