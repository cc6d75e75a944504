"""Generated images kept as JPEG or WebP: ids, hashes, splits and removal are as with PNG, and photos stay PNG."""
import shutil

import pytest
from conftest import make_workspace, quiet
from PIL import Image

from hgdpo_curate import (
    create_workspace, forget, freeze_split, generate_pool, load_split, make_card, open_workspace, UserError,
)
from hgdpo_curate.cli import main
from hgdpo_curate.files import file_sha256


@pytest.fixture(scope='module')
def webp(tmp_path_factory, random_base):
    "The workspace `finished` again, with WebP."
    ws = make_workspace(
        tmp_path_factory.mktemp('webp')/'ws',
        random_base,
        image_format='webp',
        image_quality=90,
    )
    freeze_split(ws, 'v1', 'chance')
    return ws


def test_the_same_pool_has_the_same_ids_in_every_format(finished, webp):
    png, other = (ws.table('images').set_index('image_id') for ws in (finished, webp))
    assert set(png.index) == set(other.index) and len(png) > 60
    assert (png.seed.dropna() == other.seed.reindex(png.seed.dropna().index)).all()
    suffixes = other.groupby('domain').path.agg(lambda paths: {p.rpartition('.')[2] for p in paths})
    assert dict(suffixes) == dict(real={'png'}, generated={'webp'}, intermediate={'webp'})
    for row in other.itertuples():
        file = webp.root/row.path
        assert (file.stat().st_size, file_sha256(file)) == (row.bytes, row.sha256)
        with Image.open(file) as im: assert im.format == ('PNG' if row.domain == 'real' else 'WEBP')
    assert generate_pool(webp, 3, progress=quiet) == 0


def test_a_split_of_it_verifies_and_a_changed_file_is_named(webp, copy_of):
    ws = copy_of(webp)
    split = load_split(ws, verify=True)
    path = split['easy'].winner_path[0]
    assert path.endswith('.webp')
    data = bytearray((ws.root/path).read_bytes())
    data[-1] ^= 1
    (ws.root/path).write_bytes(data)
    with pytest.raises(UserError, match=path): load_split(ws)


def test_a_removal_finds_every_file(webp, copy_of):
    ws = copy_of(webp)
    photo = ws.table('prompts').query("fold == 'train'").real_image_id.iloc[0]
    prompt = ws.table('prompts').set_index('real_image_id').prompt_id[photo]
    images = ws.table('images')
    paths = images.path[images.prompt_id == prompt]
    assert sum(p.endswith('.webp') for p in paths) == 8 and all((ws.root/p).exists() for p in paths)
    shutil.copy(ws.root/[p for p in paths if p.endswith('.webp')][0], ws.root/'a_copy.webp')
    gone = forget(ws, photo, app=False, progress=quiet)
    assert not any((ws.root/p).exists() for p in paths) and not (ws.root/'a_copy.webp').exists()
    assert not gone.proof.found


def test_the_data_card_states_it_and_training_reads_it(webp, copy_of):
    from hgdpo_curate import train_curriculum
    ws = copy_of(webp)
    assert 'kept as WebP at quality 90, photographs as PNG' in make_card(ws).path.read_text()
    run = train_curriculum(
        ws,
        run='r',
        preset='mannequin',
        train_batch_size=2,
        max_train_steps=1,
        progress=quiet,
    )
    assert (run/'final').is_dir()


def test_jpeg_on_the_command_line(tmp_path, capsys):
    folder = tmp_path/'ws'
    argv = ['init', '--workspace', str(folder), '--image-format', 'jpeg', '--image_quality', '80']
    assert main(argv) == 0 and main(argv) == 0
    ws = open_workspace(folder)
    assert (ws.config['image_format'], ws.config['image_quality']) == ('jpeg', 80)
    row = ws.save_image(Image.new('RGB', (64, 64), 'red'), 'evaluation', 'ab'*8)
    with Image.open(ws.root/row['path']) as im: assert im.format == 'JPEG' and row['path'].endswith('ab.jpg')


@pytest.mark.parametrize('flags, words', [
    (['--image_format', 'gif'], ['gif', 'webp']),
    (['--image_format', 'webp', '--image_quality', '0'], ['image_quality', '1']),
    (['--image_format', 'webp', '--image_quality', '101'], ['image_quality', '100']),
    (['--image_quality', '90'], ['image_quality', 'image_format webp']),
])
def test_a_wrong_format_or_quality_is_refused_in_one_sentence(flags, words, tmp_path, capsys):
    assert main(['init', '--workspace', str(tmp_path/'ws'), *flags]) == 2
    said = capsys.readouterr().err
    assert all(w in said for w in words) and len(said.strip().splitlines()) == 1
    assert not (tmp_path/'ws').exists()


def test_a_workspace_from_before_keeps_png(tmp_path):
    ws = create_workspace(tmp_path/'ws')
    toml = ws.root/'workspace.toml'
    toml.write_text('\n'.join(x for x in toml.read_text().splitlines() if not x.startswith('image_')))
    old = open_workspace(ws.root)
    assert old.save_image(Image.new('RGB', (64, 64)), 'generated', 'ab'*8)['path'].endswith('.png')
    assert 'image_' not in toml.read_text()
