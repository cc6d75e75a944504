"""A workspace goes to another machine and its runs come home: nothing more than is needed, nothing changed, nothing
that leaves the folder, and nobody who was removed."""
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import quiet, ROOT, winner
from test_forget import grep
from test_old_workspace import unpack as old_workspace

from hgdpo_curate import (
    forget, freeze_split, load_split, make_card, open_workspace, pack_workspace, train_curriculum, unpack_workspace,
    UserError,
)
from hgdpo_curate.cli import main
from hgdpo_curate.document.removal import REGISTER
from hgdpo_curate.document.search import PLAN
from hgdpo_curate.files import read_json, write_json
from hgdpo_curate.pack import PackInfo


@pytest.fixture
def ws(finished, copy_of): return copy_of(finished, 'people')


def members(file): # path in the pack -> bytes
    with tarfile.open(file) as tar: return {m.name: tar.extractfile(m).read() for m in tar}


def state(folder): # of a folder: what lies in it, but for what machines keep for themselves
    files = (p for p in Path(folder).rglob('*') if p.is_file() and p.name != '.lock' and 'cache' not in p.parts)
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


def hidden(folder): return [p.name for p in Path(folder).iterdir() if p.name.startswith('.')]


def pack(ws, purpose='train', **how): return pack_workspace(ws, purpose, progress=quiet, **how).file


def unpack(*where, **how): return unpack_workspace(*where, progress=quiet, **how)


def short_run(ws, base=None): # the first stage, two steps
    return train_curriculum(
        ws,
        preset='mannequin',
        control='easy_only',
        run='away',
        base=base,
        train_batch_size=2,
        max_train_steps=2,
        progress=quiet,
    )


@pytest.fixture(scope='module')
def away(finished, tmp_path_factory, random_base):
    "Home, packed for training; the other machine, where a run was trained and sampled; the runs packed there."
    from hgdpo_curate import sample_images
    folder = tmp_path_factory.mktemp('away')
    home = open_workspace(shutil.copytree(finished.root, folder/'people'))
    there = unpack(pack(home), folder/'there').ws
    base = shutil.copytree(random_base, folder/'base on the other machine')
    short_run(there, base)
    prompts = load_split(there)['easy'].prompt
    sample_images(there, [prompts[0]], 'away', progress=quiet)
    (there.root/'runs'/'away'/'easy'/'grids').mkdir(exist_ok=True)
    shutil.copy(there.root/load_split(there)['easy'].winner_path[0], there.root/'runs'/'away'/'easy'/'grids'/'grid.png')
    (there.root/'runs'/'away'/'notes.md').write_text('\n'.join(prompts))
    runs = pack(there, 'runs')
    shutil.rmtree(base)
    return dict(home=home, there=there, runs=runs)


@pytest.mark.parametrize('purpose', ['all', 'train'])
def test_a_run_is_named_only_for_a_pack_of_runs(ws, purpose, tmp_path, capsys):
    out = tmp_path/'pack.tar'
    assert main(['pack', '--workspace', str(ws.root), '--for', purpose, '--run', 'nope', '--output', str(out)]) == 2
    said = capsys.readouterr().err
    assert '--for runs' in said and len(said.strip().splitlines()) == 1 and not out.exists()


def test_what_training_needs_and_no_more(ws, tmp_path, random_base):
    file = pack(ws)
    packed, split = members(file), load_split(ws)
    info = PackInfo.of(packed.pop('pack.json').decode())
    listed = [json.loads(line) for line in packed.pop('manifest.jsonl').decode().splitlines()]
    assert [(p, s, h) for p, s, h in listed] == [
        (p, len(data), hashlib.sha256(data).hexdigest()) for p, data in packed.items()
    ]
    stages = [df for name, df in split.items() if name not in ('test', 'info')]
    named = {p for df in stages for c in ('winner_path', 'loser_path') for p in df[c]}
    assert {p for p in packed if p.startswith('images/')} == named and info.files == len(packed)
    assert len(named) < len(ws.table('images'))
    # nothing that says where it lay or whom to ask
    everything = b''.join(packed.values())
    for secret in (str(tmp_path), str(random_base)): assert secret.encode() not in everything, secret
    there = unpack(file, tmp_path/'there').ws
    assert not there.table('photo_facts').original_path.notna().any()
    assert not (there.root/'salt').exists() and not len(there.table('reviews'))
    assert load_split(there, verify=True)['hard'].equals(split['hard'])
    with pytest.raises(UserError): short_run(there)                        # the base lies elsewhere
    assert (short_run(there, random_base)/'easy'/'done.json').exists()


def test_what_was_generated_anew_for_local_pairs_goes_along_without_names(ws, tmp_path):
    from conftest import a_part_anew
    from hgdpo_curate.document.facts import split_facts
    photos = ws.table('prompts').query("fold == 'train'").real_image_id
    made = [a_part_anew(ws, photos[0], drawn_by='person:anna'), a_part_anew(ws, photos[1], 'foot', drawn_by='hands')]
    a_part_anew(ws, photos[2], score=2.)                                   # no pair, so it stays at home
    freeze_split(ws, 'local', 'chance')
    file = pack(ws, split='local')
    there = unpack(file, tmp_path/'there').ws
    assert sorted(there.table('redrawn').image_id) == sorted(made)
    assert b'anna' not in b''.join(members(file).values())
    counts = [tuple(r.values()) for r in split_facts(there, 'local').redrawn]
    assert counts == [('foot', 'hands', 1, 1), ('hand', 'a person', 1, 1)]


def test_a_photo_goes_along_only_where_it_wins(ws, tmp_path):
    freeze_split(ws, 'photos', 'chance', real_winner=True)
    photos = {p for p in members(pack(ws, split='photos')) if p.startswith('images/real')}
    assert photos == {p for p in load_split(ws, 'photos')['hard'].winner_path if 'real' in p} != set()


def test_nobody_who_was_excluded_goes_along(ws, tmp_path):
    test = ws.table('prompts').query("fold == 'test'").iloc[0]
    facts = ws.table('photo_facts').query('image_id == @test.real_image_id')
    ws.append('photo_facts', facts.drop(columns='written_at').assign(consent='withdrawn'))
    packed = members(pack(ws))
    assert not any(test.real_image_id.encode() in data or test.prompt.encode() in data for data in packed.values())
    there = unpack(tmp_path/'people-train.tar', tmp_path/'there').ws
    assert test.prompt_id not in set(load_split(there)['test'].prompt_id)
    # whoever is in a pair makes the split unusable
    own = ws.table('prompts').query("fold == 'train'").real_image_id.iloc[0]
    facts = ws.table('photo_facts').query('image_id == @own')
    ws.append('photo_facts', facts.drop(columns='written_at').assign(consent='no'))
    with pytest.raises(UserError, match='may no longer be used'): pack(ws, output=tmp_path/'b.tar')
    assert not (tmp_path/'b.tar').exists() and not hidden(tmp_path)
    # of the whole workspace: no picture of them, but the row that excludes them
    packed = pack_workspace(ws, 'all', progress=quiet)
    names = members(packed.file)
    assert not [n for n in names if own in n or test.real_image_id in n] and 'excluded' in ' '.join(packed.notes)
    there = unpack(packed.file, tmp_path/'all').ws
    assert set(there.table('photo_facts').consent) >= {'no', 'withdrawn'}
    # no row there names a picture that did not come along
    assert all((there.root/p).is_file() for p in there.table('images').path) and len(there.table('images'))
    assert len(ws.table('images')) > len(there.table('images'))


def test_the_whole_workspace_there_and_on(ws, tmp_path):
    file = pack(ws, 'all')
    there = unpack(file, tmp_path/'there').ws
    for table in ('images', 'scores', 'prompts', 'photo_facts'): assert there.table(table).equals(ws.table(table))
    assert load_split(there, verify=True)['easy'].equals(load_split(ws)['easy'])
    assert all((there.root/p).exists() for p in there.table('images').path)
    assert (there.root/'salt').read_text() == (ws.root/'salt').read_text()
    assert (there.root/'salt').stat().st_mode & 0o777 == 0o600


def test_a_copy_has_an_id_of_its_own_and_knows_where_it_came_from(ws, tmp_path):
    one = unpack(pack(ws), tmp_path/'one').ws
    two = unpack(tmp_path/'people-train.tar', tmp_path/'two').ws
    three = unpack(pack(one, 'all'), tmp_path/'three').ws
    ids = [w.id for w in (ws, one, two, three)]
    assert len({*ids}) == 4 and [open_workspace(w.root).id for w in (ws, one, two, three)] == ids
    assert one.config['packed_from'] == two.config['packed_from'] == [ws.id]
    assert three.config['packed_from'] == [one.id, ws.id]
    moved = open_workspace(shutil.move(one.root, tmp_path/'moved'))
    assert moved.id == one.id


def test_runs_come_home_once_and_to_no_other_workspace(away, copy_of, tmp_path, random_base, finished):
    home = copy_of(away['home'], 'people')
    with pytest.raises(UserError, match='another workspace'): unpack(away['runs'], into=home.root)     # a copy of it
    home = away['home']
    came = unpack(away['runs'], into=home.root)
    assert came.runs == ['away'] and came.samples == 1 and not came.removed
    same = state(away['there'].root/'runs'/'away')
    here = state(home.root/'runs'/'away')
    assert here.keys() == same.keys() and all(here[f] == same[f] for f in here if f != 'config.json')
    # the base lay in a folder of the other machine
    assert read_json(home.root/'runs'/'away'/'config.json')['base'] == home.config['base_model']
    assert unpack(away['runs'], into=home.root).there == ['away'] and state(home.root/'runs'/'away') == here
    with pytest.raises(UserError, match='--into'): unpack(away['runs'], tmp_path/'new')
    with pytest.raises(UserError, match='for train'): unpack(home.root.parent/'people-train.tar', into=home.root)
    weights = home.root/'runs'/'away'/'easy'/'pytorch_lora_weights.safetensors'
    weights.write_bytes(weights.read_bytes()[:-1] + b'x')
    with pytest.raises(UserError, match='away.*differs'): unpack(away['runs'], into=home.root)
    shutil.rmtree(home.root/'runs')
    shutil.rmtree(home.root/'samples')


def test_an_evaluation_where_it_was_trained_comes_home_with_the_run(ws, tmp_path, random_base):
    "The pack for training holds no photographs of test prompts, so distances to photographs are not measured there."
    from conftest import Chance

    from hgdpo_curate import evaluate_runs, write_model_card
    there = unpack(pack(ws), tmp_path/'there').ws
    short_run(there, random_base)
    table = evaluate_runs(there, 'away', per_prompt=1, scorer=Chance(), progress=quiet)
    def measured(metric): return table[table.metric == metric].value.notna().all()
    assert len(table) and measured('score') and not table[table.metric.isin(['frechet', 'kid'])].value.notna().any()
    unpack(pack(there, 'runs', output=tmp_path/'runs.tar'), into=ws.root)
    card = write_model_card(ws, 'away').path.read_text()
    assert f"| easy | {table[(table.arm == 'easy') & (table.metric == 'score')].value.iloc[0]:.3g}" in card
    assert pd.read_parquet(ws.root/'runs'/'away'/'evaluation'/'table.parquet').equals(table)


def test_packed_then_forgotten(ws, tmp_path, capsys):
    pack(ws)
    one = winner(ws)
    dry = forget(ws, one['photo'], dry_run=True, app=False, progress=quiet)
    gone = forget(ws, one['photo'], app=False, progress=quiet)
    for removal in (dry, gone):
        assert 'people-train.tar' in str(removal) and 'delete it, its copies' in str(removal)
    assert grep(ws.root, one['photo'], one['prompt'], one['winner'], one['sha']) == []
    # a pack of one who was not in it is not named
    ws.append('packs', [dict(manifest='m', file='other.tar', purpose='train', split='v1', photos=0, subjects=[])])
    other = ws.table('prompts').query("fold == 'train'").real_image_id.iloc[0]
    assert 'other.tar' not in str(forget(ws, other, app=False, progress=quiet))


def test_forgotten_then_packed(ws, tmp_path):
    one = winner(ws)
    forget(ws, one['photo'], app=False, progress=quiet)
    with pytest.raises(UserError, match='broken by removal'): pack(ws)
    freeze_split(ws, 'v2', 'chance')
    for file in (pack(ws, split='v2'), pack(ws, 'all')):
        data = b''.join(members(file).values())
        for trace in (one['photo'], one['prompt'], one['winner']): assert trace.encode() not in data
        rows = unpack(file, tmp_path/file.stem).ws.root
        assert grep(rows, one['photo'], one['prompt'], one['winner'], one['sha']) == []
    assert str(forget(ws, winner_of(ws, 'v2'), app=False, progress=quiet)).count('.tar') == 2


def winner_of(ws, split):
    prompt = load_split(ws, split)['easy'].prompt_id[0]
    return ws.table('prompts').set_index('prompt_id').real_image_id[prompt]


def test_a_removal_that_was_interrupted_comes_first(ws, tmp_path):
    write_json(ws.root/PLAN, dict(traces={}))
    for purpose in ('all', 'train'):
        with pytest.raises(UserError, match='forget'): pack(ws, purpose)
    assert not len(ws.table('packs')) and not hidden(tmp_path)


def test_forgotten_while_it_is_packed(ws, tmp_path, monkeypatch):
    import hgdpo_curate.pack as module
    record, one = module._record, winner(ws)
    def and_forget(*given):
        record(*given)
        assert 'people-train.tar' in str(forget(ws, one['photo'], app=False, progress=quiet))
    monkeypatch.setattr(module, '_record', and_forget)
    with pytest.raises(UserError, match='removal'): pack(ws)
    assert not list(tmp_path.glob('*.tar')) and not hidden(tmp_path)


def test_a_forgotten_photo_does_not_come_home(away, tmp_path):
    "Packed, trained there, forgotten at home, then the runs come home: weights do, and nothing that shows or names it."
    home = open_workspace(shutil.copytree(away['home'].root, tmp_path/'people'))
    toml = home.root/'workspace.toml'                # the home workspace itself, moved here
    toml.write_text(toml.read_text().replace(home.id, away['home'].id))
    shutil.move(away['home'].root/'workspace.toml', tmp_path/'kept.toml')
    try:
        home = open_workspace(home.root)
        one = winner(home)
        needles = one['photo'], one['prompt'], one['winner'], one['sha'], one['pair']
        gone = forget(home, one['photo'], app=False, progress=quiet)
        assert 'people-train.tar' in str(gone)
        came = unpack(away['runs'], into=home.root)
    finally: shutil.move(tmp_path/'kept.toml', away['home'].root/'workspace.toml')
    assert came.runs == ['away'] and came.removed == 1 and came.samples == 0
    assert {'runs/away/notes.md', 'runs/away/easy/grids/grid.png'} < {*came.left_out}
    assert grep(home.root, *needles) == []
    assert (home.root/'runs'/'away'/'easy'/'pytorch_lora_weights.safetensors').exists()
    left = {p.suffix for p in (home.root/'runs').rglob('*') if p.is_file()}
    assert left <= {'.safetensors', '.json', '.parquet', '.png'} and not list(home.root.rglob('grid.png'))
    assert not (home.root/'samples').exists() or not list((home.root/'samples').iterdir())
    entry = [e for e in read_json(home.root/REGISTER) if 'away' in e['runs']]
    assert [e['runs']['away'] for e in entry] == ['trained on it'] and 'removal' in str(came)
    assert unpack(away['runs'], into=home.root).there == ['away']


@pytest.mark.parametrize('at', [.02, .3, .6, .97])
def test_a_cut_pack_is_refused_and_leaves_nothing(ws, tmp_path, at):
    file = pack(ws)
    data = file.read_bytes()
    file.write_bytes(data[:int(len(data)*at)//512*512 + 100])
    with pytest.raises(UserError, match='copy it again'): unpack(file, tmp_path/'there')
    assert not (tmp_path/'there').exists() and not hidden(tmp_path)


def test_a_changed_byte_anywhere_is_refused_and_names_the_file(ws, tmp_path):
    file = pack(ws)
    data = file.read_bytes()
    with tarfile.open(file) as tar: places = {m.name: (m.offset, m.offset_data, m.size) for m in tar}
    image = next(n for n in places if n.startswith('images/'))
    inside = (image, 'splits/v1/easy.parquet', 'workspace.toml', 'manifest.jsonl')
    for name, byte in [*((name, 1) for name in inside), (image, 0)]:
        header, begin, size = places[name]
        spoiled = bytearray(data)
        spoiled[begin + size//2 if byte else header + 3] ^= 1          # of its content, or of its header
        file.write_bytes(spoiled)
        with pytest.raises(UserError, match=name if byte else 'copy it again'): unpack(file, tmp_path/'there')
        assert not (tmp_path/'there').exists() and not hidden(tmp_path)


def rewritten(file, change): # tarinfo, data -> the same, or None to leave it out
    out = io.BytesIO()
    with tarfile.open(file) as old, tarfile.open(fileobj=out, mode='w') as new:
        for m in old:
            data = old.extractfile(m).read()
            m, data = change(m, data)
            new.addfile(m, io.BytesIO(data) if m.isreg() else None)
    file.write_bytes(out.getvalue())


@pytest.mark.parametrize('kind', ['parent', 'absolute', 'symlink', 'hardlink', 'device', 'folder', 'appended'])
def test_what_would_leave_the_folder_is_refused(kind, ws, tmp_path):
    file = pack(ws)
    def change(m, data):
        if m.name != 'workspace.toml': return m, data
        if kind == 'parent': m.name = '../workspace.toml'
        if kind == 'absolute': m.name = str(tmp_path/'evil.toml')
        if kind == 'symlink': m.type, m.linkname, m.size = tarfile.SYMTYPE, '/etc/passwd', 0
        if kind == 'hardlink': m.type, m.linkname, m.size = tarfile.LNKTYPE, 'pack.json', 0
        if kind == 'device': m.type, m.size = tarfile.CHRTYPE, 0
        if kind == 'folder': m.type, m.size = tarfile.DIRTYPE, 0
        return m, data
    rewritten(file, change)
    if kind == 'appended':
        with tarfile.open(file, 'a') as tar: tar.addfile(tarfile.TarInfo('more'))
    with pytest.raises(UserError, match='do not use it|not in its manifest'): unpack(file, tmp_path/'there')
    assert not (tmp_path/'there').exists() and not hidden(tmp_path) and not (tmp_path/'evil.toml').exists()


def forged(file, lines=lambda lines: lines, **contents): # contents: path -> bytes; the hashes are right again
    "A pack as somebody writes it by hand."
    there = members(file)
    info, _ = json.loads(there.pop('pack.json')), there.pop('manifest.jsonl')
    there |= contents.pop('files', {})
    listed = lines([[path, len(data), hashlib.sha256(data).hexdigest()] for path, data in there.items()])
    manifest = b''.join(line if isinstance(line, bytes) else json.dumps(line).encode() + b'\n' for line in listed)
    info |= dict(manifest=hashlib.sha256(manifest).hexdigest(), files=len(listed)) | contents
    known = [line for line in listed if isinstance(line, list) and line[0] in there]
    parts = [('pack.json', json.dumps(info).encode()), ('manifest.jsonl', manifest)]
    parts += [(path, there[path]) for path, *_ in known]
    with tarfile.open(file, 'w') as tar:
        for name, data in parts:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return file


def settings_with(file, old, new):
    return dict(files={'workspace.toml': members(file)['workspace.toml'].replace(old, new)})


@pytest.mark.parametrize('kind, words', [
    ('line', 'holds a manifest whose line 2 is not a path'),
    ('size', 'holds a manifest whose line 1 is not a path'),
    ('twice', 'twice, or as a file and a folder'),
    ('bytes', 'is not a pack of hgdpo'),
    ('photos', 'is not a pack of hgdpo'),
    ('format', 'is not a pack of hgdpo'),
    ('steps', "holds a workspace.toml in which steps is 'two'; it must be a whole number"),
    ('toml', 'holds no workspace.toml that can be read'),
])
def test_a_pack_written_by_hand_is_refused_in_one_sentence(kind, words, ws, tmp_path, capsys):
    file = pack(ws)
    how = dict(
        line=dict(lines=lambda lines: [lines[0], b'{"path": \n', *lines[1:]]),
        size=dict(lines=lambda lines: [[lines[0][0], 'many', lines[0][2]], *lines[1:]]),
        twice=dict(lines=lambda lines: [*lines, lines[0]]),
        bytes=dict(bytes='many'),
        photos=dict(photos=[1]),
        format=dict(format='1'),
        steps=settings_with(file, b'steps = ', b'steps = "two" # '),
        toml=settings_with(file, b'steps = ', b'steps '),
    )[kind]
    forged(file, **how)
    assert main(['unpack', str(file), '--output', str(tmp_path/'there')]) == 1
    said = capsys.readouterr().err.strip().split('\r')[-1].splitlines()[-1]
    assert words in said and file.name in said and 'unexpected' not in said
    assert not (tmp_path/'there').exists() and not hidden(tmp_path)


@pytest.mark.parametrize('text', [b'{"base": ', b'{"base": 3}', b'[]'])
def test_a_run_with_a_broken_configuration_does_not_come_home(text, ws, tmp_path):
    there = unpack(pack(ws), tmp_path/'there').ws
    run = there.root/'runs'/'away'
    (run/'easy').mkdir(parents=True)
    (run/'easy'/'metrics.parquet').write_bytes(b'1')
    (run/'config.json').write_text('{}')
    before, file = state(ws.root), pack(there, 'runs')
    forged(file, files={'runs/away/config.json': text})
    with pytest.raises(UserError, match=f'{file.name} holds a config.json .* run away'): unpack(file, into=ws.root)
    assert state(ws.root) == before


def test_a_full_disk_is_said_before_and_while_unpacking(ws, tmp_path, monkeypatch, capsys):
    import hgdpo_curate.unpack as module
    file = pack(ws)
    command = ['unpack', str(file), '--output', str(tmp_path/'there')]
    def said(): return capsys.readouterr().err.strip().split('\r')[-1].splitlines()[-1]
    with monkeypatch.context() as m:
        m.setattr(shutil, 'disk_usage', lambda _: shutil._ntuple_diskusage(10**9, 10**9 - 5000, 5000))
        assert main(command) == 1 and 'The pack takes' in (words := said()) and 'free some first' in words
    with monkeypatch.context() as m:
        new = module._new_file                             # the kernel's own error, as of a disk that filled up
        m.setattr(module, '_new_file', lambda path: open('/dev/full', 'wb') if path.suffix == '.png' else new(path))
        assert main(command) == 1 and 'The disk is full' in (words := said()) and '.png' in words
    assert not (tmp_path/'there').exists() and not hidden(tmp_path)
    assert main(command) == 0


def test_what_is_no_pack(tmp_path, capsys):
    (tmp_path/'a.tar').write_text('nothing of the kind')
    with tarfile.open(tmp_path/'b.tar', 'w') as tar: tar.add(tmp_path/'a.tar', 'a.txt')
    for name in ('a.tar', 'b.tar', 'none.tar'):
        assert main(['unpack', str(tmp_path/name), '--output', str(tmp_path/'there')]) == 1
        said = capsys.readouterr().err
        assert name in said and len(said.strip().splitlines()) == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ['a.tar', 'b.tar']


def test_a_folder_that_is_taken(ws, tmp_path):
    file = pack(ws)
    unpack(file, tmp_path/'there')
    before = state(tmp_path/'there')
    with pytest.raises(UserError, match='already unpacked'): unpack(file, tmp_path/'there')
    with pytest.raises(UserError, match='another workspace'): unpack(file, ws.root)
    with pytest.raises(UserError, match='inside the workspace'): unpack(file, ws.root/'within')
    (tmp_path/'mine').mkdir()
    (tmp_path/'empty').mkdir()
    (tmp_path/'mine'/'a.txt').write_text('mine')
    with pytest.raises(UserError, match='not a workspace'): unpack(file, tmp_path/'mine')
    assert unpack(file, tmp_path/'empty').ws.table('images').image_id.notna().all()
    assert state(tmp_path/'there') == before and not hidden(tmp_path)
    with pytest.raises(UserError, match='exists'): pack(ws)
    with pytest.raises(UserError, match='in the workspace'): pack(ws, output=ws.root/'x.tar')
    with pytest.raises(UserError, match='.tar'): pack(ws, output=tmp_path/'x.zip')


def killed(code): # in a process of its own, at the n-th block
    done = subprocess.run([sys.executable, '-c', code], env=os.environ | dict(PYTHONPATH=str(ROOT)))
    assert done.returncode == -signal.SIGKILL


SLOWLY = '''import os, signal
import hgdpo_curate.pack as pack, hgdpo_curate.unpack as unpack
real, n = pack.Hashed.read, 0
def read(self, size=-1):
    global n
    n += 1
    if n == {at}: os.kill(os.getpid(), signal.SIGKILL)
    return real(self, size)
pack.Hashed.read = read
quiet = lambda total, label: lambda n: None
'''


def test_killed_while_packing_and_while_unpacking(ws, tmp_path):
    killed(SLOWLY.format(at=20) + f'pack.pack_workspace({str(ws.root)!r}, "train", progress=quiet)')
    assert not list(tmp_path.glob('[!.]*.tar')) and hidden(tmp_path)      # nothing that looks like a pack
    file = pack(ws)
    assert not hidden(tmp_path)                                            # what the dead process left is gone
    killed(SLOWLY.format(at=20) + f'unpack.unpack_workspace({str(file)!r}, {str(tmp_path/"there")!r}, progress=quiet)')
    assert not (tmp_path/'there').exists() and hidden(tmp_path)
    assert load_split(unpack(file, tmp_path/'there').ws, verify=True).info.name == 'v1' and not hidden(tmp_path)


def test_a_file_that_changes_meanwhile_stops_the_pack(ws, tmp_path, monkeypatch):
    import hgdpo_curate.pack as module
    path = ws.root/load_split(ws)['easy'].winner_path[0]
    write = module._write_tar
    def and_spoil(*given):
        path.write_bytes(path.read_bytes()[::-1])
        write(*given)
    monkeypatch.setattr(module, '_write_tar', and_spoil)
    with pytest.raises(UserError, match=path.name): pack(ws)
    assert not list(tmp_path.glob('*.tar')) and not hidden(tmp_path) and not len(ws.table('packs'))


def test_a_workspace_of_the_first_version_is_packed_and_a_pack_of_older_tables_is_read(tmp_path):
    old = open_workspace(old_workspace(tmp_path))
    new = unpack(pack(old, 'all'), tmp_path/'new').ws
    assert len(new.table('images')) == len(old.table('images')) and new.names('runs') == ['first']
    # tables as version 2 wrote them, in a pack of this one
    part = old.parts('scores')[0]
    table = pq.read_table(part)
    names = pa.array(['tiny']*len(table))
    pq.write_table(table.set_column(table.column_names.index('scorer'), 'scorer', names), part)
    toml = old.root/'workspace.toml'
    toml.write_text(toml.read_text().replace('format = 3', 'format = 2'))
    file = tmp_path/'second.tar'
    import hgdpo_curate.pack as module
    module.pack_workspace(_as_it_lies(old), 'all', output=file, progress=quiet)
    later = unpack(file, tmp_path/'later').ws
    assert set(later.table('scores').scorer) == {'smallscore'} and later.config['format'] == 3
    info = members(file)
    rewritten(file, lambda m, data: (_sized(m, later_format(data)) if m.name == 'pack.json' else (m, data)))
    assert info
    with pytest.raises(UserError, match='later version'): unpack(file, tmp_path/'never')


def _as_it_lies(ws): # opened before its settings were spoiled
    ws.config['format'] = 2
    return ws


def later_format(data): return json.dumps(json.loads(data) | dict(format=99)).encode()


def _sized(m, data):
    m.size = len(data)
    return m, data


def test_the_data_card_lists_packs_and_what_was_removed_since(ws, tmp_path):
    pack(ws)
    text = make_card(ws).path.read_text()
    row = ws.table('packs').iloc[0]
    assert 'people-train.tar' in text and row.manifest in text and row.host == ''
    assert row.photos == len(row.subjects) == 8
    forget(ws, winner(ws)['photo'], app=False, progress=quiet)
    facts = read_json(make_card(ws).path.with_name('facts.json'))
    assert [(p['name'], p['photos'], p['removed']) for p in facts['packs']] == [('people-train.tar', 8, 1)]


def test_on_the_command_line(ws, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(['pack', '--help']) == 0
    told = capsys.readouterr().out
    for words in ('--for', 'all', 'train', 'runs', '--split', '--output', 'recorded', 'unpack'): assert words in told
    assert main(['unpack', '--help']) == 0
    told = capsys.readouterr().out
    assert '--into' in told and '--output' in told and '--workspace' not in told
    assert main(['pack', '--workspace', str(ws.root), '--for', 'train', '--split', 'v1', '--output', 'x.tar']) == 0
    told = capsys.readouterr().out
    assert 'manifest' in told and 'hgdpo unpack x.tar' in told
    assert main(['unpack', 'x.tar', '--output', 'there']) == 0
    assert 'hgdpo train' in capsys.readouterr().out and load_split(tmp_path/'there')['easy'].shape[0]
    assert main(['pack', '--workspace', str(ws.root), '--for', 'fun']) == 2
    assert main(['pack', '--workspace', str(ws.root), '--for', 'runs']) == 1
    assert 'hgdpo train' in capsys.readouterr().err
    assert main(['unpack', 'x.tar', '--output', 'a', '--into', 'b']) == 2


def test_memory_does_not_grow_with_the_files(ws, tmp_path):
    "A file of 200 MB goes through in blocks."
    big = ws.root/'models'/'big.bin'
    big.parent.mkdir()
    with open(big, 'wb') as f: f.truncate(200*2**20)
    code = f'''import resource
from hgdpo_curate.pack import pack_workspace
from hgdpo_curate.unpack import unpack_workspace
quiet = lambda total, label: lambda n: None
import hgdpo_curate.curate.splits, hgdpo_curate.document.search
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
file = pack_workspace({str(ws.root)!r}, 'all', progress=quiet).file
unpack_workspace(file, {str(tmp_path/"there")!r}, progress=quiet)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)//1024)'''
    done = subprocess.run(
        [sys.executable, '-c', code], env=os.environ | dict(PYTHONPATH=str(ROOT)), capture_output=True, text=True,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) < 150 and (tmp_path/'there'/'models'/'big.bin').stat().st_size == 200*2**20


def test_the_pack_tells_how_long_it_takes(ws, capfd):
    pack_workspace(ws, 'train')
    told = ''.join(capfd.readouterr())
    assert 'to send' in told and 'packing, MB' in told
    assert isinstance(pd.Timestamp(ws.table('packs').written_at[0]), pd.Timestamp)
