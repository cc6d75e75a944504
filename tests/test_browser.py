"""The real App in a real browser, used as a reviewer would, from the first photo to the panel.

Each test goes on where the one before left the workspace. Screenshots are kept in screenshots/ (or HGDPO_SCREENSHOTS).
"""
import re

import pytest
from reviewer import app_on, make_world, needs_browser, Reviewer, reviews

pytestmark = needs_browser


@pytest.fixture(scope='module')
def world(tmp_path_factory, mongo):
    ws = make_world(tmp_path_factory.mktemp('world')/'people')
    with app_on(ws) as me: yield ws, me


def test_ten_hasty_keys_are_ten_decisions_and_undo_takes_back(world):
    ws, me = world
    me.see('real-to-review')
    me.open()
    before = me.actions
    for key in 'aaadaaaada':
        me.page.keyboard.press(key)
        me.page.wait_for_timeout(120)
        me.actions += 1
    me.told('10 of 12')
    me.idle()
    me.shoot('reviewing')
    assert me.actions - before == 10                                               # one key per photo
    assert reviews(ws).value_counts().to_dict() == dict(approve=8, reject=2) and len(reviews(ws)) == 10
    shown = me.shown()
    for left in (9, 8):
        me.page.keyboard.press('Backspace')
        me.told(f'{left} of 12' if left < 9 else 'taken back')
        me.ready()
    taken = reviews(ws).value_counts()
    assert taken['taken back'] == 2 and me.shown() != shown                        # the picture is shown again
    me.press('a')
    me.until(lambda: (reviews(ws) == 'approve').sum() == 8)
    me.idle()
    me.close()
    me.until(lambda: me.tiles() == 3)                                              # what is decided has left the view
    assert '8 approved, 1 rejected, 3 left' in me.page.locator('[data-cy="hgdpo-counts"]').inner_text()
    me.shoot('reviewed')


def test_no_photo_is_skipped_where_a_view_has_several_pages(world, tmp_path):
    from hgdpo_curate import build_dataset, create_workspace
    from hgdpo_curate.toy.drawings import draw_person
    me, ws = world[1], create_workspace(tmp_path/'many', resolution='40x56')
    ids = [f'{p:016x}' for p in range(70)]
    images = [ws.save_image(draw_person([73, p]).pil(), 'real', i, prompt_id=i) for p, i in enumerate(ids)]
    ws.append('prompts', [dict(prompt_id=i, prompt='a person', real_image_id=i, fold='train') for i in ids])
    ws.append('images', images)
    ds = build_dataset(ws)
    other = Reviewer(me.page, me.address.rpartition('/')[0] + f'/{ds.name}', me.shots)
    other.see('real-to-review', 'many-pages')
    other.open()
    for _ in range(65): other.page.keyboard.press('a')                             # what is decided leaves the view
    other.until(lambda: len(reviews(ws)) == 65, 240)
    assert sorted(reviews(ws).index) == ids[:65]
    other.idle()
    other.close()
    ds.delete()


def test_a_selection_is_flagged_and_taken_back_with_one_key(world):
    ws, me = world
    me.see('pool-losers')
    before, tiles = me.actions, me.tiles()
    me.select(0, tiles - 1)
    me.page.keyboard.press('8')
    me.page.locator('[data-cy="hgdpo-hold"]').wait_for(timeout=20_000)             # the words for a second key
    me.shoot('flagging')
    me.told(f'{tiles} flagged impossible pose')
    assert me.actions + 1 - before <= 4 and tiles >= 9
    mine = ws.table('flags').query("source == 'human' and flag == 'impossible_pose'")
    assert len(mine) == tiles and set(mine.status) == {'confirmed'}
    me.idle()
    me.page.keyboard.press('Backspace')
    me.told('taken back: impossible pose')
    me.idle()
    assert set(ws.table('flags').query("flag == 'impossible_pose' and source == 'human'").status) == {'taken back'}


def test_a_flag_names_the_part_by_a_second_key_and_zero_clears(world):
    ws, me = world
    me.see('pool-anatomy-failures')
    me.open()
    first = me.shown()
    me.press('3')
    me.page.keyboard.press('Shift+H')
    me.until(lambda: (ws.table('flags').query("source == 'human'").flag == 'bad_hand').any())
    me.until(lambda: me.shown() != first)
    flag = ws.table('flags').query("flag == 'bad_hand' and source == 'human'").iloc[0]
    assert (flag.part, flag.side, flag.status, flag.reviewer) == ('hand', 'right', 'confirmed', 'tester')
    second = me.shown()
    me.press('Shift+Digit1')                                                       # shift keeps the picture
    me.until(lambda: (ws.table('flags').query("source == 'human'").flag == 'extra_limb').any())
    me.ready()
    assert me.shown() == second
    me.press('0')
    me.until(lambda: (ws.table('flags').query("source == 'human'").status == 'cleared').any())
    me.idle()
    me.close()


def test_an_anatomy_failure_is_flagged_by_the_form(world):
    ws, me = world
    me.see('pool-anatomy-failures')
    me.open()
    me.sign('a colleague')
    me.press('g')
    me.page.get_by_text('bad foot', exact=True).first.click()
    me.page.get_by_role('button', name='Execute').click()
    me.until(lambda: (ws.table('flags').query("source == 'human'").flag == 'bad_foot').any())
    assert ws.table('flags').query("flag == 'bad_foot' and source == 'human'").reviewer.tolist() == ['a colleague']
    me.page.wait_for_timeout(1000)
    me.sign('tester')
    me.close()


def test_captions_by_a_model_are_approved_by_a_key_and_changed_in_a_field(world):
    ws, me = world
    captions = lambda: ws.table('prompts').query('replaced_by.isna()').set_index('real_image_id')  # noqa: E731
    me.see('real-captions-to-read')
    assert me.tiles() == 3
    me.open()
    photo = ws.table('images').image_id[ws.table('images').image_id.map(lambda i: me.shown().endswith(i))].iloc[0]
    me.until(lambda: me.caption().startswith(captions().prompt[photo]) and 'by blip' in me.caption())
    me.shoot('caption-read')
    me.press('y')
    me.told('caption approved')
    me.until(lambda: captions().approved_by[photo] == 'tester')
    me.ready()
    assert captions().approved_by.notna().sum() == 1 and not me.shown().endswith(photo)
    me.until(lambda: captions().prompt[me.shown()[-16:]] in me.caption())
    me.press('t')
    me.until(lambda: me.page.get_by_text('Caption by blip').count() > 0, 60)
    me.shoot('caption')
    field = me.page.get_by_role('textbox').last
    field.fill('an Asian man as a reader sees him')
    me.page.get_by_role('button', name='Execute').click()
    me.until(lambda: 'an Asian man as a reader sees him' in set(captions().prompt))
    changed = captions().query("prompt == 'an Asian man as a reader sees him'").iloc[0]
    assert (changed.source, changed.approved_by) == ('person', 'tester')
    me.page.wait_for_timeout(1000)
    me.close()
    me.until(lambda: me.tiles() == 1)
    me.shoot('captions-read')
    me.see('real-captions-on-identity')
    assert me.tiles() == 1
    me.open()
    me.until(lambda: 'It speaks of identity or origin: asian.' in me.caption())
    me.shoot('caption-on-identity')
    me.close()


def test_a_box_drawn_around_a_part_is_taken_when_the_picture_is_left(world):
    ws, me = world
    me.see('real-to-review')
    me.open()
    photo = me.shown()[-16:]
    try:
        me.draw('hand')
        me.shoot('drawing')
    finally: me.page.get_by_text('Explore', exact=True).first.click()              # the App would stay in that mode
    me.told('1 drawn box taken')
    taken = ws.table('detections').query("detector == 'person:tester'")
    x, y, w, h = taken.box.iloc[0]
    assert taken.image_id.tolist() == [photo] and taken.kind.tolist() == ['hand']
    assert abs(w - h) < .1 and abs(x + w/2 - 20) < 1 and abs(y + h/2 - 28) < 1     # a square in the middle of 40 x 56
    me.close()


def test_a_fault_of_the_winner_is_followed_at_once(world):
    from hgdpo_curate.curate.splits import pairs_of
    ws, me = world
    me.see('pool-winners')
    before = dict(zip(*[pairs_of(ws)['easy'][c] for c in ('prompt_id', 'winner_id')]))
    me.open()
    me.press('Shift+Digit3')
    me.page.keyboard.press('Enter')                                                # no part
    me.until(lambda: dict(zip(*[pairs_of(ws)['easy'][c] for c in ('prompt_id', 'winner_id')])) != before)
    me.idle()
    me.page.wait_for_timeout(500)
    role = me.page.evaluate('window.hgdpo.S.looker.sample.easy')
    assert role != 'winner'                                                        # in the picture that is open
    me.shoot('winner-no-more')
    me.page.keyboard.press('Backspace')
    me.until(lambda: dict(zip(*[pairs_of(ws)['easy'][c] for c in ('prompt_id', 'winner_id')])) == before)
    me.idle()
    me.page.wait_for_timeout(500)
    assert me.page.evaluate('window.hgdpo.S.looker.sample.easy') == 'winner'
    me.close()


def test_a_pair_is_judged_side_by_side_and_trained_that_way(world):
    from hgdpo_curate.curate.splits import pairs_of
    ws, me = world
    me.see('pairs-easy')
    before = pairs_of(ws)['easy'].set_index('prompt_id')
    me.page.locator('[data-cy="new-panel-btn"]').first.click()
    me.page.get_by_text('Pairs, side by side').first.click()
    winner, loser = (me.page.locator(f'[data-cy="hgdpo-{role}"]') for role in ('winner', 'loser'))
    winner.wait_for(timeout=60_000)
    me.page.keyboard.press('ArrowRight')
    me.page.get_by_text('pair 2 of').wait_for(timeout=30_000)
    ids = [x.get_attribute('data-id') for x in (winner, loser)]
    winner.hover()
    me.page.mouse.wheel(0, -300)
    zooms = lambda: {x.locator('img').evaluate('i => i.style.transform') for x in (winner, loser)}  # noqa: E731
    me.until(lambda: len(zooms()) == 1 and 'scale(1)' not in zooms().pop())        # both pictures zoom together
    me.shoot('pair')
    me.page.keyboard.press('w')
    me.until(lambda: (reviews(ws) == 'swap').any())
    me.until(lambda: [x.get_attribute('data-id') for x in (winner, loser)] == ids[::-1])
    after = pairs_of(ws)['easy'].set_index('prompt_id')
    turned = [
        p for p in after.index if after.winner_id[p] == before.loser_id[p] and after.loser_id[p] == before.winner_id[p]
    ]
    assert len(turned) == 1


def test_hands_are_patches_that_a_key_flags_and_crops_stand_below_a_pair(world):
    ws, me = world
    me.see('parts-hands')
    assert me.tiles() == 4                                                         # the pool of one prompt
    me.open()
    me.press('3')
    me.page.keyboard.press('Enter')
    flagged = "flag == 'bad_hand' and source == 'human' and status == 'confirmed'"
    me.until(lambda: ws.table('flags').query(flagged).image_id.str.startswith('05').any())
    me.idle()
    me.close()
    me.see('pairs-easy')
    me.page.locator('[data-cy="new-panel-btn"]').first.click()
    me.page.get_by_text('Pairs, side by side').first.click()
    crops = me.page.locator('[data-cy="hgdpo-crops"]')
    for _ in range(12):
        me.page.wait_for_timeout(400)
        if crops.count(): break
        me.page.keyboard.press('ArrowRight')
    assert crops.count() == 2 and crops.first.locator('div').count() == 2          # a hand and a face of both
    me.shoot('crops')


def test_another_scorer_is_chosen_in_the_menu(world):
    from hgdpo_curate.curate.splits import pairs_of
    ws, me = world
    me.see('pairs-easy')
    for name in ('contrary', 'smallscore'):
        me.page.locator('[data-cy="hgdpo-scorer"]').click()
        me.page.get_by_text(f'{name} (').first.click()
        me.shoot(f'choosing-{name}')
        me.page.get_by_role('button', name='Execute').click()
        me.until(lambda: me.page.locator('[data-cy="hgdpo-scorer"]').inner_text() == f'by {name}', 90)
        me.page.locator('[data-cy="looker"]').first.wait_for()
        me.shoot(f'by-{name}')
    assert {*pairs_of(ws, 'contrary')['easy'].winner_id} & {*pairs_of(ws)['easy'].loser_id}


def test_no_button_hides_at_1300_pixels_and_the_keys_are_listed(world):
    ws, me = world
    me.page.set_viewport_size(dict(width=1300, height=800))
    me.see('real-approved')
    bar = me.page.locator('[data-cy="hgdpo-bar"] button')
    assert bar.count() >= 12
    for n in range(bar.count()):
        box = bar.nth(n).bounding_box()
        assert box['x'] >= 0 and box['x'] + box['width'] <= 1300, bar.nth(n).inner_text()
    me.page.keyboard.press('?')
    keys = me.page.locator('[data-cy="hgdpo-help"]')
    keys.wait_for(timeout=10_000)
    assert 'approve' in keys.inner_text() and "FiftyOne's" in keys.inner_text() and 'bad hand' in keys.inner_text()
    me.shoot('keys')
    me.page.keyboard.press('?')
    me.page.set_viewport_size(dict(width=1400, height=850))


def test_captions_are_shown_as_text(world):
    ws, me = world
    me.see('real-approved')
    me.open()
    # the caption of the first photo, as it was written
    me.page.get_by_text('<script>window.broken=1</script>').first.wait_for(timeout=20_000)
    assert me.page.evaluate('window.broken') is None
    me.close()


def test_mishaps_are_said_and_nothing_is_lost(world):
    ws, me = world
    me.see('reviewers-differ', 'nothing-here', empty=True)
    me.page.keyboard.press('a')                                                    # a view without a picture
    me.told('Open a picture')
    photo = ws.table('images').query("domain == 'real'").iloc[0]
    (ws.root/photo.path).rename(ws.root/'away.png')
    me.see('real-approved')
    me.open()
    me.shoot('file-gone')                                                          # a file that is gone
    image = me.shown()
    me.press('d')
    me.until(lambda: reviews(ws).get(image[-16:]) == 'reject' and me.shown() != image)
    (ws.root/'away.png').rename(ws.root/photo.path)
    me.ready()
    table, image, before = ws.root/'tables'/'reviews', me.shown(), reviews(ws).to_dict()
    table.rename(ws.root/'reviews')                                                # an operator that fails
    table.write_text('in the way')
    me.press('Shift+D')
    me.told('It was not done')
    me.shoot('not-done')
    table.unlink()
    (ws.root/'reviews').rename(table)
    assert reviews(ws).to_dict() == before and me.shown() == image
    me.close()


def test_two_tabs_see_each_others_decisions(world):
    ws, me = world
    other = Reviewer(me.page.context.new_page(), me.address, me.shots)
    other.see('real-approved', 'second-tab')
    other.open()
    subject, before = other.shown()[-16:], len(ws.table('reviews', history=True))
    other.press('Shift+D')                                                         # shift stays on the picture
    other.told('rejected')
    me.see('real-to-review', 'first-tab')
    assert reviews(ws)[subject] == 'reject' and len(ws.table('reviews', history=True)) == before + 1
    counts = me.page.locator('[data-cy="hgdpo-counts"]')
    left, rejected = (int(re.search(rf'(\d+) {word}', counts.inner_text())[1]) for word in ('left', 'rejected'))
    me.open()
    me.press('d')
    me.told('rejected · ')
    other.see('real-to-review', 'second-tab-again')
    shown = other.page.locator('[data-cy="hgdpo-counts"]')
    other.until(lambda: f'{rejected + 1} rejected, {left - 1} left' in shown.inner_text())
    other.page.close()
    me.close()


def test_the_panel_counts_what_is_done(world):
    ws, me = world
    me.see('pool-by-prompt')
    me.page.locator('[data-cy="new-panel-btn"]').first.click()
    me.page.get_by_text('Curation progress').first.click()
    photos = set(ws.table('images').query("domain == 'real'").image_id)
    decided = {i for i, d in reviews(ws).items() if d != 'taken back'}
    me.page.get_by_text(f'{len(photos & decided)} of 12 photos reviewed').wait_for(timeout=60_000)
    me.page.wait_for_timeout(1500)
    me.shoot('progress')
