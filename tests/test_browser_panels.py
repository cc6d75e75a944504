"""The App for a reviewer whom nobody named: the name, the panels' keys, hasty keys after a flag."""
import pytest
from reviewer import app_on, make_world, needs_browser, reviews

pytestmark = needs_browser


@pytest.fixture(scope='module')
def world(tmp_path_factory, mongo):
    ws = make_world(tmp_path_factory.mktemp('panels')/'people', prompts=6)
    (ws.root/'flags.toml').write_text('[wrong_coat]\nwords = "not our coat"\nkey = "b"\n')
    with pytest.MonkeyPatch.context() as m:
        m.delenv('HGDPO_REVIEWER')
        with app_on(ws) as me: yield ws, me


def human(ws): return ws.table('flags').query("source == 'human' and status == 'confirmed'")


def panel(me, view, shot, name): # alone beside the grid
    me.session.spaces = None                                                   # the App keeps panels that were opened
    me.see(view, shot)
    me.page.locator('[data-cy="new-panel-btn"]').first.click()
    me.page.get_by_text(name).first.click()


def rest(me): # nothing waits, also where a panel covers the grid
    idle = '() => { const S = window.hgdpo.S; return !S.busy && !S.queue.length && !S.panelKeys.length }'
    me.page.wait_for_function(idle, timeout=60_000)


def test_a_name_is_asked_once_and_boxes_drawn_before_wait_for_it(world):
    import fiftyone as fo
    ws, me = world
    me.see('real-to-review', 'no-name')
    name = me.page.locator('[data-cy="hgdpo-name"]')
    assert name.count() == 1
    me.open()
    me.press('a')
    me.told('Say first who decides')
    photo = me.shown()
    me.page.get_by_text('Annotate', exact=True).first.click()
    me.until(lambda: 'until Explore is chosen' in me.page.locator('[data-cy="hgdpo-counts"]').inner_text())
    sample = fo.load_dataset(me.address.rpartition('/')[2])[photo]              # as FiftyOne saves what is drawn
    sample.redraw = fo.Detections(detections=[fo.Detection(label='hand', bounding_box=[.25, .5, .25, .25])])
    sample.save()
    me.page.get_by_text('Explore', exact=True).first.click()
    me.page.wait_for_timeout(2500)
    drawn = lambda: ws.table('detections').query("detector.str.startswith('person:')").detector.tolist()  # noqa: E731
    assert drawn() == [] and not len(ws.table('reviews'))
    name.fill('anna')
    me.page.keyboard.press('Enter')
    me.told('1 drawn box taken')
    assert drawn() == ['person:anna']
    me.press('a')
    me.until(lambda: len(reviews(ws)) == 1)
    assert ws.table('reviews').reviewer.tolist() == ['anna']
    me.see('real-to-review', 'named')
    assert name.count() == 0 and me.page.locator('[data-cy="hgdpo-who"]').inner_text() == 'anna'


def test_a_decision_right_after_a_flag_decides_and_another_letter_names_the_arm(world):
    ws, me = world
    me.see('real-to-review', 'hasty')
    before, first = len(reviews(ws)), None
    me.open()
    first = me.shown()
    for key in ('1', 'a'): me.page.keyboard.press(key)
    me.until(lambda: len(reviews(ws)) == before + 1)
    flag, last = human(ws).iloc[-1], ws.table('reviews').iloc[-1]
    assert first.endswith(flag.image_id) and (flag.flag, flag.part) == ('extra_limb', '')
    assert last.decision == 'approve' and last.subject_id != flag.image_id      # the next picture
    me.ready()
    shown = me.shown()
    for key in ('1', 's', 'b', 'd'): me.page.keyboard.press(key)                # the arm; one's own flag; reject
    me.until(lambda: (reviews(ws) == 'reject').any())
    mine = human(ws).tail(2)
    assert mine.flag.tolist() == ['extra_limb', 'wrong_coat'] and mine.part.tolist() == ['arm', '']
    assert mine.side.tolist() == ['left', ''] and shown.endswith(mine.image_id.iloc[0])
    me.idle()
    me.close()


def test_moving_on_is_switched_off_and_on_by_the_button(world):
    ws, me = world
    me.see('pool-losers', 'stays')
    me.open()
    first, button = me.shown(), me.page.locator('[data-cy="hgdpo-move"]')
    button.click()
    assert button.inner_text() == 'stays'
    me.press('d')
    me.told('rejected')
    me.idle()
    assert me.shown() == first
    button.click()
    me.press('d')
    me.until(lambda: me.shown() != first)
    assert button.inner_text() == 'moves on'
    me.idle()
    me.close()


def test_backspace_after_a_caption_takes_the_caption_back_and_no_decision(world):
    ws, me = world
    standing = reviews(ws).to_dict()
    by = lambda: set(ws.table('prompts').approved_by.dropna())  # noqa: E731
    me.see('real-captions-to-read', 'captions')
    me.open()
    me.press('y')
    me.until(lambda: by() == {'anna'})
    me.idle()
    me.page.keyboard.press('Backspace')
    me.told('taken back: caption approved')
    assert by() == set() and reviews(ws).to_dict() == standing
    me.idle()
    me.close()


def test_a_flag_of_ones_own_has_the_colour_of_flags_on_the_tile(world):
    ws, me = world
    me.see('pool-winners', 'own-flag')
    me.open()
    me.press('b')
    me.told('flagged wrong coat')
    me.idle()
    me.close()
    me.see('pool-anatomy-failures', 'own-flag-shown')
    chip = me.page.locator('[class*="lookerTags"] >> text=wrong_coat').first
    assert chip.evaluate('e => getComputedStyle(e).backgroundColor') == 'rgb(179, 54, 91)'


def test_the_counts_in_an_open_panel_change_after_a_key(world):
    ws, me = world
    panel(me, 'real-to-review', 'panel-counts', 'Curation progress')
    done = int((reviews(ws).loc[lambda d: d.index.str.startswith('a')] != 'taken back').sum())
    me.page.get_by_text(f'{done} of 6 photos reviewed').wait_for(timeout=60_000)
    me.select(0, 1)
    me.page.keyboard.press('d')
    me.page.get_by_text(f'{done + 2} of 6 photos reviewed').wait_for(timeout=30_000)
    me.idle()


def test_hasty_keys_in_the_panel_of_pairs_flag_mark_and_reject_in_order(world):
    ws, me = world
    panel(me, 'pairs-easy', 'panel-pairs', 'Pairs, side by side')
    winner, loser = (me.page.locator(f'[data-cy="hgdpo-{role}"]') for role in ('winner', 'loser'))
    winner.wait_for(timeout=60_000)
    ids, before = [x.get_attribute('data-id')[-16:] for x in (winner, loser)], len(human(ws))
    for key in ('r', '3', 'h', 'l', '8', 'r', '2', 'l'): me.page.keyboard.press(key)
    rest(me)
    rows = human(ws).iloc[before:]
    assert rows.flag.tolist() == ['bad_hand', 'impossible_pose', 'missing_limb']
    assert rows.image_id.tolist()[:2] == ids[::-1] and rows.part.tolist() == ['hand', '', '']
    assert 'waiting' not in me.page.locator('[data-cy="hgdpo-counts"]').inner_text()
    assert 'marked' in winner.get_attribute('class')                            # the last l
    text, decided = me.page.get_by_text('pair 1 of').first.inner_text(), len(reviews(ws))
    me.page.keyboard.press('d')
    me.until(lambda: len(reviews(ws)) == decided + 1)
    pair = ws.table('pairs').set_index('pair_id').loc[ws.table('reviews').subject_id.iloc[-1]]
    assert pair.stage == 'easy' and ws.table('reviews').decision.iloc[-1] == 'reject'
    me.until(lambda: me.page.get_by_text('pair 1 of').first.inner_text() != text)


def test_a_page_that_is_loaded_while_a_panel_covers_the_grid_has_its_bar_and_decides(world):
    import fiftyone as fo
    ws, me = world
    pairs = fo.Panel(type='HgdpoPairs')
    tabs = [fo.Panel(type='Samples', pinned=True), pairs]
    me.session.spaces = fo.Space(children=tabs, active_child=pairs.component_id)
    me.page.goto('about:blank')
    me.page.goto(f'{me.address}?view=pairs-easy', wait_until='commit')
    me.page.locator('[data-cy="hgdpo-winner"]').wait_for(timeout=240_000)
    me.page.wait_for_function('() => window.hgdpo.S.about', timeout=60_000)
    assert not me.page.locator('[data-cy="looker"]').count() and 'approved' in me.page.locator('.hg-count').inner_text()
    me.shoot('panel-alone')
    decided = len(reviews(ws))
    me.page.keyboard.press('d')
    me.told('rejected')
    me.until(lambda: len(reviews(ws)) == decided + 1)


def test_the_panel_of_a_pool_goes_on_to_the_next_prompt_and_shift_stays(world):
    ws, me = world
    panel(me, 'pool-by-prompt', 'panel-pool', 'Pool of a prompt')
    me.page.get_by_text('prompt 1 of 6').wait_for(timeout=60_000)
    def tiles(): return [t.get_attribute('data-id')[-16:] for t in me.page.locator('[data-cy="hgdpo-tile"]').all()]
    pool, before = [i for i in tiles() if i.startswith('00')], len(ws.table('reviews', history=True))
    for key in ('Shift+D', 'd', 'd', 'd', 'd'): me.page.keyboard.press(key)
    me.page.get_by_text('prompt 2 of 6').wait_for(timeout=30_000)
    rest(me)
    written = ws.table('reviews', history=True).iloc[before:].subject_id.tolist()
    assert written == [pool[0], *pool] and all(i.startswith('01') for i in tiles() if i[0] != 'a')
    me.shoot('pool-next')
