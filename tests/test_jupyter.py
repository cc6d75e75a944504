"""`open_app` in a real JupyterLab in a real browser: the App stands below the cell, and its address is printed.

Screenshots are kept in screenshots/ (or HGDPO_SCREENSHOTS).
"""
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from conftest import ROOT
from reviewer import CHROMIUM, make_world

# FiftyOne gives its server one minute to start, which a busy machine does not keep: run this on a machine with a free
# core, where it passes
pytestmark = [
    pytest.mark.skipif(
        not os.environ.get('HGDPO_TEST_JUPYTER'),
        reason='needs a machine with a free core; set HGDPO_TEST_JUPYTER=1 there',
    ),
    pytest.mark.usefixtures('mongo'),
    pytest.mark.skipif(
        CHROMIUM is None, reason='no Chromium here; install it (apt-get install chromium) to test the App in a notebook'
    ),
]


def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


@pytest.fixture(scope='module')
def lab(tmp_path_factory):
    "JupyterLab on 127.0.0.1 with nobody's settings, in a folder with a workspace; gives the folder and the address."
    folder, port = tmp_path_factory.mktemp('lab'), free_port()
    make_world(folder/'people')
    env = (
        {k: v for k, v in os.environ.items() if k != 'FIFTYONE_CONTEXT'}
        | {f'JUPYTER_{k}_DIR': str(folder / '.jupyter' / k.lower()) for k in ('CONFIG', 'DATA', 'RUNTIME')}
        | dict(IPYTHONDIR=str(folder / '.ipython'), PYTHONPATH=str(ROOT))
    )
    log = open(folder/'lab.log', 'wb')
    process = subprocess.Popen(
        [
            sys.executable,
            '-m',
            'jupyterlab',
            '--no-browser',
            '--allow-root',
            '--ip=127.0.0.1',
            f'--port={port}',
            '--ServerApp.port_retries=0',
            '--IdentityProvider.token=',
            f'--ServerApp.root_dir={folder}',
        ],
        cwd=folder,
        env=env,
        stdout=log,
        stderr=log,
    )
    address = f'http://127.0.0.1:{port}'
    for _ in range(240):
        assert process.poll() is None, (folder/'lab.log').read_text()[-2000:]
        try:
            urllib.request.urlopen(f'{address}/api/status', timeout=1)
            break
        except OSError: time.sleep(.25)
    yield folder, address
    process.terminate()
    process.wait()


def notebook(folder, name, *cells):
    cell = lambda n, source: dict(
        cell_type='code',
        id=f'cell-{n}',
        execution_count=None,
        metadata={},
        outputs=[],
        source=source,
    )
    Path(folder / name).write_text(
        json.dumps(
            dict(
                cells=[cell(n, s) for n, s in enumerate(cells)],
                metadata=dict(kernelspec=dict(name='python3', display_name='Python 3', language='python')),
                nbformat=4,
                nbformat_minor=5,
            )
        )
    )


def test_the_app_stands_below_the_cell_that_opened_it(lab):
    from playwright.sync_api import sync_playwright
    folder, address = lab
    port = free_port()
    notebook(
        folder,
        'curate.ipynb',
        f"from hgdpo_curate import open_app\nsession = open_app('people', view='real: to review', port={port})",
    )
    shots = Path(os.environ.get('HGDPO_SCREENSHOTS', ROOT/'screenshots'))
    shots.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=['--no-sandbox'])
        page = browser.new_page(viewport=dict(width=1500, height=1000))
        page.route(
            '**/*',
            lambda r: (
                r.continue_() if '127.0.0.1' in r.request.url or not r.request.url.startswith('http') else r.abort()
            ),
        )
        page.goto(f'{address}/lab/tree/curate.ipynb')
        page.locator('.jp-Notebook .jp-CodeCell').first.click(timeout=90_000)
        page.wait_for_function(
            "() => document.querySelector('.jp-Notebook-ExecutionIndicator')?.dataset.status === 'idle'", timeout=90_000
        )
        page.keyboard.press('Control+Enter')
        page.locator('.jp-OutputArea iframe').first.wait_for(timeout=180_000)
        app = page.frame_locator('.jp-OutputArea iframe').first
        app.locator('[data-cy="looker"]').first.wait_for(timeout=120_000)
        # thumbnails are drawn after they are there
        page.wait_for_timeout(2500)
        page.screenshot(path=str(shots/'notebook.png'))
        assert app.locator('[data-cy="looker"]').count() == 12                 # every photo of the view
        said = page.locator('.jp-OutputArea').first.inner_text()
        assert (
            f'http://127.0.0.1:{port}' in said and f'ssh -L {port}:127.0.0.1:{port}' in said and 'Traceback' not in said
        )
        # what FiftyOne mutters meanwhile
        assert 'Could not connect' not in said and 'Session launched' not in said and 'config option' not in said

        page.locator('.jp-Notebook .jp-CodeCell .jp-InputArea-editor').first.click()
        page.keyboard.press('Control+Enter')                                   # a cell is often run twice
        page.locator('.jp-InputPrompt', has_text='[2]:').wait_for(timeout=180_000)
        app.locator('[data-cy="looker"]').first.wait_for(timeout=120_000)
        assert 'is in use' not in page.locator('.jp-OutputArea').first.inner_text()
        browser.close()
