"""Curation across rooms.

Reviews reach the pairs, several people share a database, and neither a crash nor a careless hand loses a decision.
"""
import os
import subprocess
import sys

import pytest
from conftest import a_flag, plain

from hgdpo_curate import UserError, load_split, make_card
from hgdpo_curate.curate.splits import pairs_of
from hgdpo_curate.curate.reviews import decide, flag_images_by_hand, last_words, undo

mongo = pytest.mark.usefixtures('mongo')


@pytest.fixture
def ws(finished, copy_of): return copy_of(finished)


@pytest.fixture
def built(ws, mongo):
    from hgdpo_curate.curate.dataset import build_dataset
    from hgdpo_curate.curate.samples import dataset_name
    import fiftyone as fo
    yield build_dataset(ws)
    if fo.dataset_exists(dataset_name(ws)): fo.delete_dataset(dataset_name(ws))


def test_reviews_change_the_pairs_and_the_off_switches_give_the_papers_rule(ws):
    plainly = pairs_of(ws, 'chance')
    rows = list(plainly['easy'].itertuples(index=False, name=None))
    flag_images_by_hand(
        ws,
        [rows[0][1]],
        'extra_limb',
        'arm',
        'left',
        'anna',
    )
    photo = ws.table('prompts').set_index('prompt_id').real_image_id
    decide(ws, [photo[rows[1][0]]], 'reject', 'anna')
    reviewed = pairs_of(ws, 'chance')
    assert reviewed['easy'].winner_id[0] != rows[0][1] and rows[1][0] not in set(reviewed['easy'].prompt_id)
    reasons = [d['reason'] for d in reviewed['easy'].attrs['dropped']]
    assert (
        any('must not win: confirmed extra_limb' in r for r in reasons) and 'photo rejected or a duplicate' in reasons
    )
    off = pairs_of(ws, 'chance', use_flags=False, use_reviews=False)
    for s in plainly: assert off[s].equals(plainly[s])


def test_a_confirmed_fault_can_be_the_preferred_loser(ws):
    pool = (
        ws.table('images')
        .query("domain == 'generated'")
        .merge(ws.table('scores').query("scorer == 'chance'")[['image_id', 'score']], on='image_id')
        .sort_values('score')
    )
    middle = pool.groupby('prompt_id').image_id.nth(1)
    flag_images_by_hand(ws, middle, 'bad_hand', reviewer='anna')
    assert not set(pairs_of(ws, 'chance')['easy'].loser_id) & set(middle)
    assert set(pairs_of(ws, 'chance', prefer_flagged_losers=True)['easy'].loser_id) <= set(middle)


def test_strict_mode_takes_approved_photos_only_and_counts_the_others(ws):
    train = ws.table('prompts').query("fold == 'train'")
    decide(ws, train.real_image_id[:2], 'approve', 'anna')
    decide(ws, train.real_image_id[:1], 'undecided', 'ben')                    # the last word counts, whoever says it
    easy = pairs_of(ws, 'chance', approved_only=True)['easy']
    assert easy.prompt_id.tolist() == [train.prompt_id.iloc[1]]
    assert [d['reason'] for d in easy.attrs['dropped']].count('photo not approved') == len(train) - 1


@mongo
def test_only_what_changed_is_written_again(ws, built, monkeypatch):
    from hgdpo_curate.curate import app
    before = dict(zip(*built.values(['image_id', 'last_modified_at'])))
    photo = built.load_saved_view('real: to review').first()
    built.match({'image_id': photo.image_id}).tag_samples('my own tag')
    decide(ws, [photo.image_id], 'approve', 'anna')
    ds = app.build_dataset(ws)
    after = dict(zip(*ds.values(['image_id', 'last_modified_at'])))
    touched = {i for i in before if after[i] != before[i]}
    assert photo.image_id in touched and touched == set(
        ws.table('images').query('prompt_id == @photo.prompt_id').image_id
    )
    assert set(ds[photo.id].tags) == {'approve', 'my own tag'}                  # tags of one's own survive
    whole = app.build_dataset(ws, fresh=True)
    assert set(whole[photo.id].tags) == {'approve', 'my own tag'}


@mongo
def test_a_dataset_edited_by_hand_is_built_anew_and_nothing_is_lost(ws, built):
    from hgdpo_curate.curate import app
    n, photo = len(built), built.load_saved_view('real: to review').first()
    photo.tags = ['reject']
    photo.save()
    built.delete_samples(built.match({'domain': 'generated'}).limit(3))
    again = app.build_dataset(ws)
    assert len(again) == n and again[photo.id].decision == 'reject'
    again.rename_sample_field('decision', 'verdict')
    # the tables say what the lost field said
    assert app.read_reviews(ws) == (0, {})
    assert len(app.build_dataset(ws)) == n and app.build_dataset(ws)[photo.id].decision == 'reject'


@mongo
def test_an_image_deleted_under_the_app_is_named_and_the_rest_goes_on(ws, built):
    from hgdpo_curate import freeze_split
    from hgdpo_curate.curate import app, operators
    winner = built.load_saved_view('pool: winners').first()
    path = ws.root/ws.table('images').set_index('image_id').path[winner.image_id]
    path.unlink()
    operators.flag_samples(built, [winner.id], 'unsure', reviewer='anna')            # deciding does not need the file
    assert len(app.build_dataset(ws)) == len(ws.table('images'))
    freeze_split(ws, 'v2', 'chance')
    with pytest.raises(UserError, match=f'{path.name}.*is missing'): load_split(ws, 'v2')


@mongo
def test_two_people_review_one_workspace_from_two_processes(ws, built):
    photo = built.load_saved_view('real: to review').first()
    code = ('import sys, fiftyone as fo\nfrom hgdpo_curate.curate.operators import decide_samples\n'
            'decide_samples(fo.load_dataset(sys.argv[1]), [sys.argv[2]], sys.argv[3])')
    both = [
        subprocess.Popen(
            [sys.executable, '-c', code, built.name, photo.id, d], env=os.environ | dict(HGDPO_REVIEWER=who)
        )
        for who, d in (('anna', 'approve'), ('ben', 'reject'))
    ]
    assert [p.wait() for p in both] == [0, 0]
    words = last_words(ws, [photo.image_id])
    assert words.contested[photo.image_id] and sorted(words.said[photo.image_id]) == ['anna: approve', 'ben: reject']
    from hgdpo_curate.curate.dataset import build_dataset
    assert build_dataset(ws).load_saved_view('reviewers: differ').values('image_id') == [photo.image_id]


def test_a_crash_of_mongod_loses_nothing_that_was_confirmed(ws, tmp_path):
    """In a process of its own, with a database of its own that is killed between two decisions, and while the samples
    of a dataset are written."""
    # before the operators, which import fiftyone
    code = (
        'import sys\nfrom hgdpo_curate.curate import database\nmongod = database.start_database(sys.argv[2])\n'
        'from hgdpo_curate.curate import app, dataset, operators\nfrom hgdpo_curate import open_workspace, UserError\n'
        'ws = open_workspace(sys.argv[1])\nds = app.build_dataset(ws)\n'
        'photos = ds.load_saved_view("real: to review").values("id")\noperators.decide_samples(ds, photos[:2], '
        '"approve", "anna")\nds.select(photos[2]).tag_samples("reject")\n'
        'def dying(*a):\n    mongod.kill(); mongod.wait()\n    insert(*a)\n'
        'insert, dataset.merge_samples = dataset.merge_samples, dying\n'
        'try: app.build_dataset(ws)\nexcept UserError as e: print(e, flush=True)\n'
        # FiftyOne would wait half a minute for its database
        'import os\nos._exit(0)\n'
    )
    env = {k: v for k, v in os.environ.items() if k != 'FIFTYONE_DATABASE_URI'}
    done = subprocess.run(
        [sys.executable, '-c', code, str(ws.root), str(tmp_path / 'db')],
        capture_output=True,
        text=True,
        timeout=240,
        env=env,
    )
    assert 'no longer answers' in done.stdout, done.stderr[-2000:]
    # the tables never depended on the database; the tag was read before its sample was touched
    assert sorted(ws.table('reviews').decision) == ['approve', 'approve', 'reject']
    again = (
        'import sys\nfrom hgdpo_curate.curate import app, database\nfrom hgdpo_curate import '
        'open_workspace\nmongod = database.start_database(sys.argv[2])\n'
        'ds = app.build_dataset(open_workspace(sys.argv[1]))\nprint(len(ds), '
        'ds.count_values("decision")["approve"], ds.count_values("decision")["reject"])\nmongod.terminate()\n'
    )
    done = subprocess.run(
        [sys.executable, '-c', again, str(ws.root), str(tmp_path / 'db')],
        capture_output=True,
        text=True,
        timeout=180,
        env=env,
    )
    # at its end FiftyOne may complain of the database that goes down with it
    assert f'{len(ws.table("images"))} 2 1' in done.stdout.splitlines(), done.stdout + done.stderr[-2000:]


@mongo
def test_a_taken_port_and_a_plugin_folder_that_cannot_be_written_are_named(ws, tmp_path, monkeypatch):
    import socket
    from hgdpo_curate.curate import app
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        s.listen()
        with pytest.raises(UserError, match='in use'): app.open_app(ws, port=s.getsockname()[1])
    (tmp_path/'file').write_text('')
    monkeypatch.setenv('FIFTYONE_PLUGINS_DIR', str(tmp_path/'file'/'plugins'))
    with pytest.raises(UserError, match='cannot be written'): app.install_plugin()
    monkeypatch.setenv('FIFTYONE_PLUGINS_DIR', str(tmp_path/'mine'))
    # beside the user's own plugins
    assert app.install_plugin() == tmp_path/'mine' and (tmp_path/'mine'/'hgdpo'/'fiftyone.yml').exists()
    assert app.install_plugin() == tmp_path/'mine'


@mongo
def test_a_database_of_another_version_is_named(monkeypatch):
    from hgdpo_curate.curate.database import import_fiftyone
    import fiftyone as fo
    def newer(): raise OSError('You must have fiftyone>=99 installed in order to access the database at version 99')
    monkeypatch.setattr(fo, 'list_datasets', newer)
    with pytest.raises(UserError, match='another version.*nothing is lost'): import_fiftyone()


def test_photos_of_a_datasets_folder_come_in_with_their_captions(tmp_path):
    "The layout that Hugging Face `datasets` writes with save_to_disk: Arrow streams with the photos' bytes inside."
    import json
    import pyarrow as pa
    from hgdpo_curate import create_workspace, import_photos
    from hgdpo_curate.toy.drawings import export_photos
    photos = export_photos(tmp_path/'photos', 4, seed=9)
    rows = [json.loads(x) for x in (photos/'metadata.jsonl').read_text().splitlines()]
    table = pa.table(
        dict(
            image=[dict(bytes=(photos / r['file_name']).read_bytes(), path=r['file_name']) for r in rows],
            text=[r['text'] for r in rows],
            consent=['yes'] * 4,
        )
    )
    part = tmp_path/'saved'/'train'
    part.mkdir(parents=True)
    with pa.OSFile(str(part/'data-00000-of-00001.arrow'), 'wb') as f, pa.ipc.new_stream(f, table.schema) as out:
        out.write_table(table)
    (part/'state.json').write_text(json.dumps(dict(_data_files=[dict(filename='data-00000-of-00001.arrow')])))
    (tmp_path/'saved'/'dataset_dict.json').write_text(json.dumps(dict(splits=['train'])))
    ws = create_workspace(tmp_path/'ws', resolution='40x56')
    report = import_photos(ws, tmp_path/'saved', everywhere=dict(licence='CC0-1.0'), progress=plain)
    assert report.imported == 4 and set(ws.table('prompts').prompt) == {r['text'] for r in rows}
    facts = ws.table('photo_facts')
    assert set(facts.consent) == {'yes'} and set(facts.licence) == {'CC0-1.0'} and (facts.sharpness > 0).all()
    again = import_photos(create_workspace(tmp_path/'files', resolution='40x56'), photos, progress=plain)
    assert again.imported == 4


def test_a_licence_that_nobody_stated_reads_unknown_as_consent_does(ws):
    from hgdpo_curate.curate.reviews import sample_rows
    bare = ws.table('photo_facts').head(1).drop(columns='written_at').assign(licence=None, consent='unknown')
    ws.append('photo_facts', bare)
    rows = sample_rows(ws, 'chance').set_index('image_id')
    assert tuple(rows.loc[bare.image_id.iloc[0], ['licence', 'consent']]) == ('unknown', 'unknown')
    assert (
        rows[rows.domain != 'real'].licence.isna().all()
        and (rows[rows.domain == 'real'].licence == 'unknown').sum() == 1
    )


def test_the_split_lists_every_exclusion_with_its_reason(ws):
    from hgdpo_curate import freeze_split
    one, held = (ws.table('prompts').query(f"fold == '{fold}'").iloc[0] for fold in ('train', 'test'))
    ws.append(
        'photo_facts',
        ws.table('photo_facts')[lambda t: t.image_id.isin([one.real_image_id, held.real_image_id])]
        .drop(columns='written_at')
        .assign(consent='withdrawn'),
    )
    freeze_split(ws, 'v2', 'chance')
    dropped = load_split(ws, 'v2').info.dropped
    for fold, p in (('easy', one), ('test', held)):
        assert (
            dict(prompt_id=p.prompt_id, image_id=p.real_image_id, reason='consent of the photo: withdrawn')
            in dropped[fold]
        )
    assert '| test | consent of the photo: withdrawn | 1 |' in make_card(ws, 'v2').path.read_text()


@mongo
def test_views_stay_when_every_prompt_changed(ws, built):
    from hgdpo_curate.curate.dataset import build_dataset
    from hgdpo_curate.curate.samples import VIEWS
    from hgdpo_curate.curate.operators import decide_samples
    ws.append('flags', [a_flag(i, confidence=.9, reason='a test') for i in ws.table('images').image_id])
    ds = build_dataset(ws)
    assert (
        set(ds.list_saved_views()) == set(VIEWS)
        and len(ds.load_saved_view('pool: anatomy failures')) == (ws.table('images').domain == 'generated').sum()
    )
    decide_samples(ds, [ds.first().id], 'approve', 'anna')
    fresh = build_dataset(ws, fresh=True)
    fields = ['image_id', 'disagreement', 'flags', 'decision', 'easy', 'rank', 'tags']
    # brought up to date = built anew
    assert sorted(zip(*fresh.values(fields)), key=str) == sorted(zip(*build_dataset(ws).values(fields)), key=str)


def test_a_swap_cannot_make_a_confirmed_fault_win(ws):
    from hgdpo_curate.files import short_id
    first = pairs_of(ws, 'chance')['easy'].iloc[0]
    decide(
        ws,
        [
            short_id(
                'pair',
                'easy',
                first.prompt_id,
                first.winner_id,
                first.loser_id,
            )
        ],
        'swap',
        'anna',
    )
    assert pairs_of(ws, 'chance')['easy'].winner_id[0] == first.loser_id
    flag_images_by_hand(ws, [first.loser_id], 'extra_limb', reviewer='ben')
    easy = pairs_of(ws, 'chance')['easy']
    assert first.loser_id not in set(easy.winner_id) and any(
        d['image_id'] == first.loser_id for d in easy.attrs['dropped']
    )


def test_of_several_words_on_a_fault_the_last_counts_and_none_is_lost(ws):
    from hgdpo_curate.curate.reviews import clear_flags
    from hgdpo_curate.judge.anatomy import open_flags
    one = ws.table('images').image_id[0]
    def stands(): return set(open_flags(ws, [one]).flag)
    flag_images_by_hand(
        ws,
        [one],
        'bad_hand',
        'hand',
        'left',
        'anna',
    )
    clear_flags(ws, [one], reviewer='ben')
    assert not stands() and set(ws.table('flags', only=('image_id', [one])).reviewer) == {'anna', 'ben'}
    ws.compact('flags')
    # both words are still there
    assert set(ws.table('flags', only=('image_id', [one])).status) == {'confirmed', 'cleared'}
    flag_images_by_hand(
        ws,
        [one],
        'bad_hand',
        'hand',
        'left',
        'anna',
    )
    flag_images_by_hand(
        ws,
        [one],
        'bad_hand',
        'hand',
        'right',
        'anna',
    )
    assert stands() == {'bad_hand'}
    flag_images_by_hand(ws, [one], 'ok', reviewer='ben')
    # answers what was said before it
    assert stands() == {'ok'}
    flag_images_by_hand(ws, [one], 'bad_foot', reviewer='anna')
    assert stands() == {'bad_foot'}
    clear_flags(ws, [one], reviewer='ben')
    assert not stands()


@mongo
def test_two_processes_that_build_at_once_leave_one_whole_dataset(ws, built):
    code = ('import sys\nfrom hgdpo_curate.curate.app import build_dataset\nprint(len(build_dataset(sys.argv[1], '
            'fresh=True)))')
    both = [
        subprocess.Popen([sys.executable, '-c', code, str(ws.root)], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    assert [p.communicate()[0].strip().splitlines()[-1] for p in both] == [str(len(ws.table('images')))]*2


FIELDS = [
    'image_id',
    'disagreement',
    'flags',
    'decision',
    'easy',
    'rank',
    'tags',
    'look_alikes',
    'duplicate',
    'score',
    'confirmed',
]
def shown(ds): return sorted(zip(*ds.values(FIELDS)), key=lambda r: r[0])


@mongo
def test_what_is_brought_up_to_date_is_what_would_be_built_anew(ws, built):
    from hgdpo_curate.curate.dataset import build_dataset
    real, one = (
        ws.table('images').query("domain == 'real'").image_id.tolist(),
        ws.table('images').query("domain == 'generated'").image_id.iloc[0],
    )
    ws.append(
        'duplicates',
        [
            dict(
                image_id=real[1],
                other_id=real[2],
                kind='near',
                distance=1.0,
            )
        ],
    )
    build_dataset(ws)
    # joins the third, which no new row names
    ws.append(
        'duplicates',
        [
            dict(
                image_id=real[0],
                other_id=real[1],
                kind='near',
                distance=1.0,
            )
        ],
    )
    # the first: now every loser without one is clean
    ws.append('flags', [a_flag(one, confidence=.9, reason='a test')])
    ds = build_dataset(ws)
    assert set(ds.match({'look_alikes': min(real[:3])}).values('image_id')) == set(real[:3]) and any(
        ds.values('disagreement')
    )
    updated = shown(ds)
    assert updated == shown(build_dataset(ws, fresh=True))


@mongo
def test_a_tag_is_read_whatever_the_clock_of_its_machine_says(ws, built):
    from hgdpo_curate.curate import app
    photo = built.load_saved_view('real: to review').first()
    # as a machine writes it whose clock is far behind
    built._sample_collection.update_one({'_id': photo._id}, {'$set': {'tags': ['approve']}})
    app.build_dataset(ws)
    assert last_words(ws).decision.to_dict() == {photo.image_id: 'approve'}


@mongo
def test_what_people_say_while_the_dataset_is_built_anew_is_kept(ws, built, monkeypatch):
    from hgdpo_curate.curate import app, dataset
    photo, other, third = built.load_saved_view('real: to review').limit(3)
    insert = dataset.merge_samples
    def slowly(*a):
        insert(*a)
        if len(ws.table('reviews')): return
        # in the App, which still shows the old one
        photo.tags = ['reject', 'blurred']
        photo.save()
        decide(ws, [other.image_id], 'approve', 'ben')                          # by an operator
    monkeypatch.setattr(dataset, 'merge_samples', slowly)
    ds = app.build_dataset(ws, fresh=True)
    assert (ds[photo.id].decision, set(ds[photo.id].tags), ds[other.id].decision, ds[third.id].decision) == (
        'reject',
        {'reject', 'blurred'},
        'approve',
        None,
    )


@mongo
def test_a_table_compacted_or_thinned_between_two_openings_is_shown_as_it_is(ws, built):
    import pyarrow.parquet as pq
    from hgdpo_curate.curate.dataset import build_dataset
    real = ws.table('images').query("domain == 'real'").image_id.tolist()
    for d in ('approve', 'reject'): decide(ws, real[:2], d, 'anna')
    build_dataset(ws)
    # in the part that the compaction swallows
    decide(ws, real[2:3], 'approve', 'ben')
    ws.compact('reviews')
    ds = build_dataset(ws)
    assert (
        sorted(ds.load_saved_view('real: approved').values('image_id')) == real[2:3]
        and len(ds.match({'decision': 'reject'})) == 2
    )
    for part in ws.parts('images'):                                           # somebody is removed from the tables
        rows = pq.read_table(part)
        part.rename(part.with_name(part.name.replace('part-0', 'gone-0')))
        pq.write_table(
            rows.filter(__import__('pyarrow.compute').compute.not_equal(rows['image_id'], real[0])),
            part.with_name(part.stem + '-without.parquet'),
        )
    assert real[0] not in build_dataset(ws).values('image_id')


def test_what_was_decided_before_a_table_was_compacted_is_taken_back(ws, monkeypatch):
    from hgdpo_curate.parts import Table
    monkeypatch.setattr(Table, 'most_parts', 4)
    photos = ws.table('images').query("domain == 'real'").image_id.tolist()
    said = [(photos[n % 2], ('approve', 'reject')[n // 2 % 2]) for n in range(10)]
    for photo, decision in said: decide(ws, [photo], decision, 'anna')
    assert len(ws.parts('reviews')) < len(said)
    for photo, decision in reversed(said):
        assert undo(ws, 'anna') == dict(what=decision, subjects=[photo])
    with pytest.raises(UserError, match='nothing that anna'): undo(ws, 'anna')
    assert set(ws.table('reviews').decision) == {'taken back'}


@mongo
def test_hundreds_of_decisions_are_compacted_and_none_is_forgotten(ws, built, monkeypatch):
    from hgdpo_curate.curate import app, dataset
    from hgdpo_curate.parts import Table
    monkeypatch.setattr(Table, 'most_parts', 1000)                            # as of a version that left them alone
    photos = ws.table('images').query("domain == 'real'").image_id.tolist()
    for n in range(210): decide(ws, photos[:1], ('approve', 'reject')[n % 2], 'anna')
    write = dataset.write_prompts
    def meanwhile(*a):
        write(*a)
        # written by another process while this one writes samples
        if len(ws.parts('reviews')) == 210: decide(ws, photos[1:2], 'approve', 'ben')
    monkeypatch.setattr(dataset, 'write_prompts', meanwhile)
    ds = app.build_dataset(ws)
    assert len(ws.parts('reviews')) == 2 and ds.match({'image_id': photos[0]}).values('decision') == ['reject']
    before = ds.match({'image_id': photos[0]}).values('last_modified_at')
    ds = app.build_dataset(ws)
    assert ds.load_saved_view('real: approved').values('image_id') == photos[1:2]
    # what was compacted is not written again
    assert ds.match({'image_id': photos[0]}).values('last_modified_at') == before


@mongo
def test_decisions_put_together_by_whoever_appends_are_not_written_again(ws, built, monkeypatch):
    from hgdpo_curate.curate import app
    from hgdpo_curate.parts import Table
    photos = ws.table('images').query("domain == 'real'").image_id.tolist()
    monkeypatch.setattr(Table, 'most_parts', 4)
    for n in range(4): decide(ws, photos[:1], ('approve', 'reject')[n % 2], 'anna')
    ds = app.build_dataset(ws)
    before = ds.match({'image_id': photos[0]}).values('last_modified_at')
    with monkeypatch.context() as m:                                          # all that is shown, in one part
        m.setattr(Table, 'most_parts', 1)
        ws.compact('reviews')
    assert len(ws.parts('reviews')) == 1 and len(ws.table('reviews', history=True)) >= 4
    decide(ws, photos[1:2], 'approve', 'ben')
    ds = app.build_dataset(ws)
    assert ds.load_saved_view('real: approved').values('image_id') == photos[1:2]
    assert ds.match({'image_id': photos[0]}).values('last_modified_at') == before


def test_a_part_is_a_condition_in_sql_whatever_its_case_and_its_opposite_is_the_rest(ws):
    from hgdpo_curate.curate.reviews import chosen_images, sample_rows
    images, easy = ws.table('images'), pairs_of(ws, 'chance')['easy']
    pool = set(images.image_id[images.domain == 'generated'])
    faulty = {easy.winner_id[0], easy.loser_id[1]}
    flag_images_by_hand(ws, sorted(faulty), 'extra_limb', 'arm', 'left', 'anna')
    def part(where): return set(chosen_images(ws, where, dict(scorer='chance')).image_id) & pool
    for where in ('flagged', 'FLAGGED', 'Flagged = true'): assert part(where) == faulty
    for where in ('not flagged', 'NOT FLAGGED', 'flagged = false'): assert part(where) == pool - faulty
    rows = sample_rows(ws, 'chance')
    odd = set(rows.image_id[rows.disagreement]) & pool
    assert easy.loser_id[1] not in odd and odd
    for where in ('disagrees', 'Disagrees', 'disagreements', 'DISAGREEMENTS'): assert part(where) == odd
    for where in ('not disagrees', 'disagrees is false'): assert part(where) == pool - odd
    assert part('flagged and not Disagrees') == faulty - odd and part('flagged or not flagged') == pool


def test_the_best_and_the_worst_are_two_of_each_pool_beside_the_photo(ws):
    from hgdpo_curate.curate.reviews import chosen_images
    def at(n): return (
        f'select image_id from images join scores using (image_id) where domain = \'generated\' '
        f'qualify row_number() over (partition by prompt_id order by score {n}) = 1'
    )
    images = ws.table('images')
    assert {'intermediate', 'generated', 'real'} <= set(images.domain)
    expected = {*ws.sql(at('desc')).image_id, *ws.sql(at('asc')).image_id}
    prompts = images.prompt_id[images.image_id.isin(expected)].nunique()
    chosen = chosen_images(ws, 'best_and_worst', dict(scorer='chance'))
    assert len(expected) == 2*prompts
    assert set(chosen.image_id) == expected | set(images.image_id[images.domain == 'real'])


@mongo
def test_the_app_shows_a_part_and_then_all_again(ws, built):
    from hgdpo_curate.curate.dataset import build_dataset
    def shown(**part): return set(build_dataset(ws, **part).values('image_id'))
    everything, images = shown(), ws.table('images')
    photos = set(images.image_id[images.domain == 'real'])
    best = ws.sql(
        "select arg_max(image_id, score) as image_id from images join scores using (image_id) "
        "where domain = 'generated' and scorer = 'smallscore' group by prompt_id"
    )
    part = shown(where='best_and_worst')
    assert part <= everything and set(best.image_id) <= part
    assert shown(where="domain = 'real'") == photos and shown() == everything
    with pytest.raises(UserError, match='colour'): build_dataset(ws, where='colour = 3')
