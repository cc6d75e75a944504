"""A notebook run as a person would run it: in JupyterLab, in a browser, by *Restart Kernel and Run All Cells*.

    HGDPO_SCREENSHOTS=screenshots python tests/lab.py nbs/tutorials/curate.ipynb
"""
import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

CHROMIUM = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
KERNEL = '.jp-NotebookPanel-toolbar .jp-Notebook-ExecutionIndicator'


@dataclass
class LabRun:
    "What a person would have seen."
    seconds: float                                    # from *Run All* to the last cell
    cells: int                                        # code cells
    finished: int                                     # of these ran to their end
    errors: list = field(default_factory=list)        # (number of the cell, last line of the traceback)
    warnings: list = field(default_factory=list)      # (number of the cell, text on stderr)
    console: list = field(default_factory=list)       # errors in the browser's console
    outside: list = field(default_factory=list)       # hosts other than this machine that the page asked
    shots: list = field(default_factory=list)         # screenshots, top to bottom
    asked_for_kernel: bool = False                    # Lab did not know which kernel to start


@contextlib.contextmanager
def jupyter_lab(folder, **env): # the folder that Lab shows; further environment of its kernels
    "JupyterLab on 127.0.0.1 with a token, in a folder of its own for settings; yields (address, token)."
    token = secrets.token_hex(16)
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    with tempfile.TemporaryDirectory() as own:
        kept = {
            k: f'{own}/{k.lower()}'
            for k in (
                'JUPYTER_CONFIG_DIR',
                'JUPYTER_DATA_DIR',
                'JUPYTER_RUNTIME_DIR',
                'JUPYTERLAB_SETTINGS_DIR',
                'JUPYTERLAB_WORKSPACES_DIR',
            )
        }
        log = open(f'{own}/lab.log', 'wb')
        lab = subprocess.Popen(
            [
                sys.executable,
                '-m',
                'jupyterlab',
                '--no-browser',
                '--ip=127.0.0.1',
                f'--port={port}',
                '--ServerApp.port_retries=0',
                f'--IdentityProvider.token={token}',
                '--allow-root',
                '--LabApp.news_url=',
                '--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate',
                f'--ServerApp.root_dir={folder}',
            ],
            # the kernel draws inline
            env={k: v for k, v in os.environ.items() if k != 'MPLBACKEND'} | kept | env,
            stdout=log,
            stderr=log,
        )
        try:
            _wait_for(f'http://127.0.0.1:{port}/api?token={token}', lab, log.name)
            yield f'http://127.0.0.1:{port}', token
        finally:
            lab.terminate()
            try: lab.wait(20)
            except subprocess.TimeoutExpired:
                lab.kill()
                lab.wait()


def _wait_for(address, process, log, seconds=60):
    for _ in range(seconds*5):
        if process.poll() is not None: break
        with contextlib.suppress(OSError):
            urllib.request.urlopen(address, timeout=2).close()
            return
        time.sleep(.2)
    raise RuntimeError(f'JupyterLab did not answer:\n{Path(log).read_text()[-3000:]}')


def run_in_lab(notebook,       # a copy of it is run, the file stays as it is
               shots=None,     # folder for screenshots; None: none are made
               seconds=600,    # how long it may take
               **env           # further environment of the kernel
              ) -> LabRun:
    """Open a notebook in JupyterLab, restart and run all, wait for the end, and tell what was seen.

    Raises `TimeoutError`.
    """
    from playwright.sync_api import sync_playwright
    notebook = Path(notebook).resolve()
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as p:
        copy = Path(folder)/notebook.name
        copy.write_text(notebook.read_text(encoding='utf-8').replace('../../docs/', 'docs/'), encoding='utf-8')
        # the pictures that its text shows, the figures that it reads
        for beside in ('docs', 'benchmarks'):
            if (notebook.parents[2]/beside).is_dir(): shutil.copytree(notebook.parents[2]/beside, Path(folder)/beside)
        with jupyter_lab(
            folder,
            PYTHONPATH=os.pathsep.join(filter(None, [str(Path(__file__).parents[1]), os.environ.get('PYTHONPATH')])),
            **env,
        ) as (address, token):
            browser = p.chromium.launch(executable_path=CHROMIUM, args=['--no-sandbox'])
            try:
                return _run(
                    browser.new_page(viewport=dict(width=1300, height=1000)),
                    address,
                    token,
                    copy,
                    shots,
                    seconds,
                )
            finally: browser.close()


def _run(page, address, token, file, shots, seconds):
    from playwright.sync_api import Error
    seen = LabRun(0., 0, 0)
    page.on('console', lambda m: seen.console.append(m.text) if m.type == 'error' else None)
    page.on(
        'request',
        lambda r: (
            seen.outside.append(r.url) if urlsplit(r.url).hostname not in (None, '127.0.0.1', 'localhost') else None
        ),
    )
    page.goto(f'{address}/lab/tree/{file.name}?token={token}&reset')
    page.locator('.jp-Notebook .jp-CodeCell').first.wait_for(timeout=90_000)
    page.wait_for_timeout(2000)
    seen.asked_for_kernel = page.locator('.jp-Dialog .jp-mod-accept').count() > 0
    if seen.asked_for_kernel: page.locator('.jp-Dialog .jp-mod-accept').click()
    page.locator('.jp-NotebookPanel-toolbar').get_by_text('Python 3').wait_for(timeout=60_000)
    # restarted while it starts, a kernel may be waited for without end
    page.locator(f'{KERNEL}[data-status="idle"]').wait_for(timeout=90_000)
    # no news, thank you
    with contextlib.suppress(Error): page.get_by_role('button', name='No', exact=True).click(timeout=3000)
    start = time.time()
    page.get_by_role('menuitem', name='Run', exact=True).click()
    page.locator('.lm-Menu-itemLabel', has_text='Restart Kernel and Run All Cells').click()
    page.locator('.jp-Dialog .jp-mod-accept').click()
    nb = _ran(page, file, start, seconds)
    seen.seconds = time.time() - start
    _tell(seen, nb)
    if shots: seen.shots = _scroll(page, Path(shots), file.stem)
    return seen


def _ran(page, file, start, seconds): # the notebook as saved when nothing runs any more
    "Saves every few seconds; done when every code cell has a number, or one failed and no cell is running."
    while time.time() - start < seconds:
        page.wait_for_timeout(2000)
        page.keyboard.press('Control+s')
        page.wait_for_timeout(500)
        try: nb = json.loads(file.read_text(encoding='utf-8'))
        # Lab writes the file in place, and a large one was half written
        except ValueError: continue
        code = [c for c in nb['cells'] if c['cell_type'] == 'code' and ''.join(c['source']).strip()]
        busy = page.locator('.jp-InputPrompt').filter(has_text='[*]').count()
        # an error is there a moment before its cell has its number
        failed = any(c['execution_count'] and o['output_type'] == 'error' for c in code for o in c['outputs'])
        if not busy and (failed or all(c['execution_count'] for c in code)): return nb
    raise TimeoutError(f'{file.name} was still running after {seconds} s; {_standing(page)}')


def _standing(page): # a sentence
    "What a person would see of a notebook that does not end."
    def texts(where): return [' '.join(t.split()) for t in page.locator(where).all_inner_texts()]
    kernels = [k.get_attribute('data-status') for k in page.locator(KERNEL).all()]
    return (f'kernel {kernels}, prompts {texts(".jp-InputPrompt")}, dialogs {texts(".jp-Dialog")}, messages '
            f'{texts(".jp-toast-message, .Toastify__toast")}')


def _tell(seen, nb):
    code = [c for c in nb['cells'] if c['cell_type'] == 'code' and ''.join(c['source']).strip()]
    seen.cells, seen.finished = len(code), sum(bool(c['execution_count']) for c in code)
    for n, c in enumerate(code):
        for o in c['outputs']:
            if o['output_type'] == 'error': seen.errors.append((n, f'{o["ename"]}: {o["evalue"]}'))
            if o.get('name') == 'stderr': seen.warnings.append((n, ''.join(o['text'])))
    seen.finished -= len(seen.errors)


def _scroll(page, shots, name): # paths
    "Screenshots of the notebook, a screen each."
    shots.mkdir(parents=True, exist_ok=True)
    scroll = '''y => {
        const scrolls = e => e.scrollHeight > e.clientHeight + 40 && /auto|scroll/.test(getComputedStyle(e).overflowY)
        const panes = [...document.querySelectorAll('.jp-NotebookPanel, .jp-NotebookPanel *')].filter(scrolls)
        const pane = panes.sort((a, b) => b.clientHeight - a.clientHeight)[0]
        if (!pane) return 0
        pane.scrollTop = y
        return Math.min(pane.scrollTop + .9*pane.clientHeight, pane.scrollHeight - pane.clientHeight) }'''
    top, last, out = 0, -1, []
    while top > last and len(out) < 40:
        last, top = top, page.evaluate(scroll, top)
        page.wait_for_timeout(700)                                            # cells are drawn when they come into view
        out.append(str(shots/f'lab-{name}-{len(out):02d}.png'))
        page.screenshot(path=out[-1])
    return out


if __name__ == '__main__':
    from hgdpo_curate.curate.database import start_database
    with tempfile.TemporaryDirectory() as folder:
        # an own one: what runs on this machine is left alone
        mongod = None if os.environ.get('FIFTYONE_DATABASE_URI') else start_database(folder)
        try: seen = run_in_lab(sys.argv[1], os.environ.get('HGDPO_SCREENSHOTS', 'screenshots'))
        finally:
            if mongod:
                mongod.terminate()
                mongod.wait()
    print(json.dumps(seen.__dict__, indent=1))
    sys.exit(bool(seen.errors))
