"""Photographs without captions, captions by a model, and captions that change: what stands, what is said, what is kept.

The captioners are built here with random weights in the layout of the hub, so what they say means nothing.
"""
import json
import shutil

import pandas as pd
import pytest
from conftest import plain, quiet

from hgdpo_curate import (
    create_workspace, forget, generate_pool, import_photos, reconstruct, score_images, UserError, workspace_status,
)
from hgdpo_curate.cli import main
from hgdpo_curate.document.contents import leakage, longer_than_read
from hgdpo_curate.document.facts import split_facts
from hgdpo_curate.files import prompt_id_of, UsageError
from hgdpo_curate.images.captioners import caption_photos, open_captioner, reads_english, SHORTER
from hgdpo_curate.images.pool import choose_prompts
from hgdpo_curate.images.texts import identity_words
from hgdpo_curate.prompts import are_cut, change_captions, cut_words, SHORTENER, standing_prompts
from hgdpo_curate.toy.drawings import export_photos


class Says:
    "A captioner that gives its answers in turn."
    name, version = 'says', '1'
    def __init__(self, *answers): self.answers, self.asked = list(answers), 0

    def caption(self, images):
        self.asked += len(images)
        out = [self.answers[(self.asked + k) % len(self.answers)] for k in range(len(images))]
        if KeyboardInterrupt in out: raise KeyboardInterrupt
        return [a.format(n=self.asked) if isinstance(a, str) else a for a in out]


class Shortens(Says):
    "A captioner that can be given a caption too."
    def shorten(self, images, texts):
        assert len(images) == len(texts)
        return self.caption(images)


def bare_folder(root, n=6):
    (root/'bare').mkdir()
    for file in sorted(export_photos(root/'drawn', n, seed=3).glob('*.png')): shutil.copy(file, root/'bare')
    return root/'bare'


def begin(root, **settings):
    return create_workspace(root/'ws', resolution='40x56', steps=2, guidance=2., **settings)


@pytest.fixture
def bare(tmp_path): # a workspace with six photos without captions
    ws = begin(tmp_path)
    report = import_photos(ws, bare_folder(tmp_path), progress=plain)
    assert report.uncaptioned == 6 and 'hgdpo caption' in str(report)
    return ws


@pytest.fixture
def made(finished, copy_of): # a workspace with photos, pool, reconstructions, scores and a frozen split
    return copy_of(finished)


@pytest.fixture
def folder_of_made(finished, tmp_path): # its photos and captions, in a folder that may be changed
    return shutil.copytree(finished.root.parent/'ws-photos', tmp_path/'photos')


# importing

def test_photos_without_captions_stand_in_prompts_with_a_fold(bare):
    prompts = bare.table('prompts')
    assert prompts.prompt.isna().all() and set(prompts.fold) == {'train', 'test'} and prompts.source.isna().all()
    assert len(bare.table('images')) == 6 and not len(standing_prompts(prompts))
    assert 'next     hgdpo caption' in workspace_status(bare)
    caption_photos(bare, Says('person {n}'), limit=1, progress=quiet)
    assert 'next     hgdpo pool' in workspace_status(bare)
    again = import_photos(bare, bare.root.parent/'bare', progress=plain)
    assert again.already == 6 and not again.imported and not again.captions.first


@pytest.mark.parametrize('file', ['0.caption', 'other.TXT', 'meta.json', 'captions.md', 'list.CSV'])
def test_a_file_that_may_hold_captions_and_was_not_read_stops_the_import(file, tmp_path):
    ws, folder = begin(tmp_path), bare_folder(tmp_path)
    (folder/file).write_text('{"a": ["a man"]}' if 'json' in file else 'a man\n')
    with pytest.raises(UserError, match='--uncaptioned keep'): import_photos(ws, folder, progress=plain)
    assert not len(ws.table('images'))
    assert import_photos(ws, folder, uncaptioned='keep', progress=plain).uncaptioned == 6


def test_where_some_have_a_caption_somebody_says_what_happens_to_the_others(tmp_path, capsys):
    ws, folder = begin(tmp_path), bare_folder(tmp_path)
    (folder/'00000.txt').write_text('a man in a hat')
    argv = ['photos', '--workspace', str(ws.root), str(folder)]
    assert main(argv) == 1 and '5 have no caption' in capsys.readouterr().err and not len(ws.table('images'))
    assert main([*argv, '--uncaptioned', 'drop']) == 0
    assert '5 photos without a caption left out, as asked' in capsys.readouterr().out.lower()
    assert ws.table('prompts').prompt.tolist() == ['a man in a hat'] and ws.table('prompts').source.tolist() == ['file']
    assert main([*argv, '--uncaptioned', 'keep']) == 0
    assert ws.table('prompts').prompt.isna().sum() == 5
    assert main([*argv, '--uncaptioned', 'maybe']) == 2


def test_where_none_has_a_caption_none_can_be_dropped(tmp_path, capsys):
    ws, folder = begin(tmp_path), bare_folder(tmp_path, 3)
    argv = ['photos', '--workspace', str(ws.root), str(folder), '--uncaptioned', 'drop']
    assert main(argv) == 1 and not len(ws.table('images'))
    said = capsys.readouterr().err
    assert f'None of the 3 photos of {folder} has a caption; take them with --uncaptioned keep' in said
    (folder/'00000.txt').write_bytes('à'.encode('cp1252'))
    assert main([*argv, '--skip_bad']) == 1 and 'None of the 2 photos' in capsys.readouterr().err


def test_metadata_without_captions_states_facts_of_photos_without_captions(tmp_path):
    ws, folder = begin(tmp_path), bare_folder(tmp_path, 2)
    rows = [dict(file_name=f'0000{n}.png', consent='yes', width=40) for n in range(2)]
    (folder/'metadata.jsonl').write_text('\n'.join(map(json.dumps, rows)))
    assert import_photos(ws, folder, progress=plain).uncaptioned == 2
    assert set(ws.table('photo_facts').consent) == {'yes'}
    rows = [r | dict(description='a man by the sea') for r in rows]          # a column that might be the caption
    (folder/'metadata.jsonl').write_text('\n'.join(map(json.dumps, rows)))
    with pytest.raises(UserError, match="no column 'text'"): import_photos(ws, folder, progress=plain)


def test_of_two_copies_the_one_with_a_caption_counts(tmp_path):
    ws, folder = begin(tmp_path), bare_folder(tmp_path, 1)
    shutil.copy(folder/'00000.png', folder/'copy.png')
    (folder/'copy.txt').write_text('a man in a hat')
    report = import_photos(ws, folder, uncaptioned='keep', progress=plain)
    assert ws.table('prompts').prompt.tolist() == ['a man in a hat'] and not report.lost_captions


# without a caption nothing is made

def test_what_needs_a_caption_leaves_photos_without_one_out_and_names_the_command(bare, random_base):
    for work in (lambda: generate_pool(bare, 2, random_base, progress=quiet),
                 lambda: reconstruct(bare, base=random_base, progress=quiet), lambda: choose_prompts(bare)):
        with pytest.raises(UserError, match='hgdpo caption'): work()
    assert score_images(bare, Says('a'), progress=quiet) == 0
    caption_photos(bare, Says('person {n} in a hat', 'person {n} with a bag', ''), progress=quiet)
    left = bare.table('prompts').query('replaced_by.isna() and prompt.isna()')
    assert len(left) == 2
    with pytest.warns(UserWarning, match='without a caption'):
        assert sum(len(choose_prompts(bare, f)) for f in ('train', 'test')) == 4


def test_a_split_counts_photos_without_a_caption(made, tmp_path):
    from conftest import Chance
    more = bare_folder(tmp_path, 12)
    import_photos(made, more, progress=plain)          # the first eight are there already, with captions
    bare = made.table('prompts').query('prompt.isna()')
    assert len(bare) == 4
    from hgdpo_curate.curate.splits import pairs_of
    dropped = pairs_of(made, Chance.name)['easy'].attrs['dropped'].table
    assert (dropped.reason == 'photo has no caption').sum() == (bare.fold == 'train').sum() > 0


# captioning

def test_captioning_is_recorded_and_goes_on_after_an_interruption(bare):
    says = Says('person {n} in a hat', 'person {n} with a bag', 'person {n} on a bench', KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt): caption_photos(bare, says, progress=quiet)
    done = standing_prompts(bare.table('prompts'))
    assert 0 < len(done) < 6 and set(done.captioner) == {'says'}
    rest = Says('another {n}')
    report = caption_photos(bare, rest, progress=quiet)
    assert rest.asked == 6 - len(done) == len(report.texts)
    stand = standing_prompts(bare.table('prompts'))
    assert len(stand) == 6 and set(done.prompt) < set(stand.prompt)
    assert set(stand.source) == {'captioner'} and set(stand.captioner_version) == {'1'}
    assert stand.approved_by.isna().all()
    fold = bare.table('prompts').groupby('real_image_id').fold.nunique()
    assert (fold == 1).all()                                             # the row without a text too
    photos = bare.table('images').set_index('image_id').prompt_id
    assert photos[stand.real_image_id].tolist() == stand.prompt_id.tolist()
    idle = Says('x')
    assert 'No photo is left' in str(caption_photos(bare, idle, progress=quiet)) and idle.asked == 0


def test_captioning_again_keeps_what_a_person_wrote_or_approved(bare):
    caption_photos(bare, Says('person {n} in a hat'), progress=quiet)
    first, second, *_ = standing_prompts(bare.table('prompts')).itertuples()
    change_captions(bare, [
        dict(image_id=first.real_image_id, prompt='as I see it', source='person', approved_by='me'),
        dict(image_id=second.real_image_id, prompt=second.prompt, source='captioner', captioner='says',
             captioner_version='1', approved_by='me'),
    ])
    other = Says('person {n} with a bag')
    other.version = '2'
    report = caption_photos(bare, other, again=True, progress=quiet)
    assert len(report.change.changed) == 4 and report.by_people == 2 and '2 captions written or approved' in str(report)
    stand = standing_prompts(bare.table('prompts')).set_index('real_image_id').prompt
    assert stand[first.real_image_id] == 'as I see it' and stand[second.real_image_id] == second.prompt


def test_a_caption_that_a_person_gives_while_a_captioner_works_stays(bare):
    photo = sorted(bare.table('prompts').real_image_id)[-1]
    class Slow(Says):
        def caption(self, images):
            mine = dict(image_id=photo, prompt='as I see it', source='person', approved_by='me')
            if not self.asked: change_captions(bare, [mine])
            return super().caption(images)
    report = caption_photos(bare, Slow('person {n} in a hat'), progress=quiet)
    stand = standing_prompts(bare.table('prompts')).set_index('real_image_id')
    assert len(stand) == 6 and stand.prompt[photo] == 'as I see it' and stand.approved_by[photo] == 'me'
    assert report.change.kept == [photo] and photo not in report.texts and 'meanwhile, which stays' in str(report)
    later = Says('a machine says it {n}')
    later.version = '2'
    other = next(i for i in stand.index if i != photo)
    class Beside(Says):                                                   # another process captions the same photos
        version = '3'
        def caption(self, images):
            if not self.asked: caption_photos(bare, later, again=True, progress=quiet)
            return super().caption(images)
    assert len(caption_photos(bare, Beside('late {n}'), again=True, progress=quiet).change.kept) == 5
    stand = standing_prompts(bare.table('prompts')).set_index('real_image_id').prompt
    assert stand[photo] == 'as I see it' and stand[other].startswith('a machine says it')


def test_bad_answers_are_counted_and_leave_no_bad_caption(bare):
    says = Says('', None, 'word '*2000, '街で帽子をかぶった男', 'an asian woman in a hat')
    report = caption_photos(bare, says, progress=quiet)
    said = str(report)
    assert report.silent and report.cut >= 1 and 'cut at --max_tokens' in said and 'Not like English' in said
    assert 'of identity or origin' in said and 'No answer for 3 photos' in said and 'by says' in said
    assert said.count('in the App (key t)') == 3                          # silent, cut, and another language
    texts = standing_prompts(bare.table('prompts')).prompt
    assert len(texts) + len(report.silent) == 6 and texts.str.split().str.len().max() == 60
    assert 'an asian woman in a hat' in set(texts)                       # kept as it is


def test_a_caption_that_the_text_encoder_cuts_is_counted(bare):
    report = caption_photos(bare, Says('word '*80), max_tokens=200, progress=quiet)
    assert len(report.long) == 6 and '6 captions longer than the text encoder reads' in str(report)
    assert f'hgdpo caption --workspace {bare.root} --captioner {SHORTENER} --shorten' in str(report)
    again = Shortens('another '*80)
    again.version = '2'
    report = caption_photos(bare, again, again=True, max_tokens=200, progress=quiet)
    assert f'hgdpo caption --workspace {bare.root} --captioner says --shorten' in str(report)


def test_long_captions_of_a_folder_are_told_and_shortened_but_those_of_a_person(tmp_path):
    ws, folder = begin(tmp_path), bare_folder(tmp_path, 4)
    long = [f'photo {n} of a man ' + 'in a coat and '*30 for n in range(3)]
    rows = [dict(file_name=f'0000{n}.png', text=t) for n, t in enumerate([*long, 'a man in a hat'])]
    (folder/'metadata.jsonl').write_text('\n'.join(map(json.dumps, rows)))
    assert '3 captions longer than the text encoder reads' in str(import_photos(ws, folder, progress=plain))
    stand = standing_prompts(ws.table('prompts')).set_index('prompt')
    mine, (first, other) = stand.loc[' '.join(long[0].split())], stand.loc[[' '.join(t.split()) for t in long[1:]]].fold
    change_captions(ws, [dict(image_id=mine.real_image_id, prompt=mine.name, source='person', approved_by='me')])
    wordy = caption_photos(ws, Shortens('word '*80, '', 'word '*80), shorten=True, max_tokens=200, progress=quiet)
    assert len(wordy.long) + len(wordy.silent) == 2 and not wordy.texts and 'Still longer' in str(wordy)
    assert set(standing_prompts(ws.table('prompts')).prompt) == set(stand.index)             # nothing was changed
    says = Shortens('photo {n} of a man in a coat')
    report = caption_photos(ws, says, shorten=True, progress=quiet)
    assert says.asked == len(report.texts) == 2 and '1 caption written or approved by a person' in str(report)
    after = standing_prompts(ws.table('prompts')).set_index('real_image_id')
    assert after.prompt[mine.real_image_id] == mine.name and 'a man in a hat' in set(after.prompt)
    assert set(after.source) == {'person', 'captioner', 'file'} and sorted([first, other]) == sorted(
        after.fold[[*report.texts]]
    )
    idle = Shortens('x')
    assert 'No caption is left to be shortened' in str(caption_photos(ws, idle, shorten=True, progress=quiet))
    assert not idle.asked
    with pytest.raises(UsageError, match='--again or --shorten'): caption_photos(ws, idle, again=True, shorten=True)


@pytest.mark.parametrize('name', ['blip', 'florence2', 'says'])
def test_a_captioner_that_cannot_be_given_a_caption_does_not_shorten(name, bare, capsys):
    photo, long = bare.table('prompts').real_image_id.iloc[0], 'the caption of a photographer ' + 'and a coat '*40
    change_captions(bare, [dict(image_id=photo, prompt=long, source='file')])
    says = Says('a man')
    with pytest.raises(UsageError, match=f'{name} cannot shorten .* by its hub id or folder'):
        caption_photos(bare, says if name == 'says' else name, shorten=True, progress=quiet)
    assert standing_prompts(bare.table('prompts')).prompt.tolist() == [long.strip()] and not says.asked
    if name == 'says': return
    assert main(['caption', '--workspace', str(bare.root), '--captioner', name, '--shorten']) == 2
    assert SHORTENER in capsys.readouterr().err


@pytest.mark.parametrize('shorten', [False, True])
@pytest.mark.parametrize('answer', [[], ['a man', 'a woman'], 'a man', [['a', 'man']], [7], None])
def test_an_answer_that_is_not_one_text_for_each_photo_is_refused(answer, shorten, bare):
    photos = bare.table('prompts').real_image_id
    long = [dict(image_id=i, prompt='and a coat '*40, source='file') for i in photos] if shorten else []
    change_captions(bare, long)
    before = set(standing_prompts(bare.table('prompts')).prompt)
    class Odd:
        name, version = 'odd', '1'
        def caption(self, images): return answer
        def shorten(self, images, texts): return answer
    with pytest.raises(UserError, match='The captioner odd answered .* for 1 photo; .* a list with one text'):
        caption_photos(bare, Odd(), shorten=shorten, progress=quiet)
    assert set(standing_prompts(bare.table('prompts')).prompt) == before


def test_the_tokenizer_of_a_base_on_the_hub_counts_once_it_is_on_this_machine(tmp_path, random_base, monkeypatch):
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_CACHE', str(tmp_path/'hub'))
    ws, folder = begin(tmp_path, base_model='owner/base'), bare_folder(tmp_path, 3)
    texts = 'a man in an extraordinarily colourful handwoven coat '*5, 'a man '*60, 'a man in a hat'
    rows = [dict(file_name=f'0000{n}.png', text=t) for n, t in enumerate(texts)]
    (folder/'metadata.jsonl').write_text('\n'.join(map(json.dumps, rows)))
    said = str(import_photos(ws, folder, progress=plain))
    assert '1 caption longer than the text encoder reads, which cuts off the end (a guess from their words' in said
    assert f'--captioner {SHORTENER} --shorten' in said
    assert are_cut(ws, texts) == [False, True, False] and longer_than_read(ws, texts) is None
    downloaded = tmp_path/'hub'/'models--owner--base'
    (downloaded/'refs').mkdir(parents=True)
    (downloaded/'refs'/'main').write_text('f'*40)
    shutil.copytree(random_base/'tokenizer', downloaded/'snapshots'/('f'*40)/'tokenizer')
    own = begin(tmp_path/'folder', base_model=str(random_base))
    assert are_cut(ws, texts) == are_cut(own, texts) and longer_than_read(ws, texts) == longer_than_read(own, texts)
    assert 'a guess' not in cut_words(ws, 1) and 'a guess' in cut_words(begin(tmp_path/'other'), 1)


def test_a_tokenizer_without_a_vocabulary_counts_nothing_and_loads_nowhere(tmp_path, random_base, models):
    from hgdpo_curate.judge.clip import Clip, random_clip
    from hgdpo_curate.pipelines import load_pipeline
    base, captioner, clip = tmp_path/'base', tmp_path/'llava', random_clip(tmp_path/'clip')
    shutil.copytree(random_base, base), shutil.copytree(models['llava'], captioner)
    for folder in (base/'tokenizer', captioner, clip):
        for file in ('tokenizer.json', 'vocab.json', 'merges.txt'): (folder/file).unlink(missing_ok=True)
    ws = begin(tmp_path, base_model=str(base))
    assert are_cut(ws, ['a man in a hat '*10]) == [False] and longer_than_read(ws, ['a man']) is None
    (base/'tokenizer'/'vocab.json').write_text('{}')                                # and no merges
    assert longer_than_read(ws, ['a man']) is None
    (base/'tokenizer'/'vocab.json').unlink()
    for load in (lambda: load_pipeline(base, 'cpu'), lambda: Clip(clip, device='cpu'),
                 lambda: open_captioner(str(captioner), device='cpu')):
        with pytest.raises(UserError, match='no vocabulary|cannot be loaded'): load()


OTHER_LANGUAGES = '''
Eine Frau steht an der Strasse und trägt ein Kleid | Eine Frau steht im Park | Frau im Park | Ein Mann in der Stadt
Ein Mann mit Hut sitzt auf einer Bank am Meer | Zwei Kinder spielen mit dem Ball
Una mujer camina a lo largo de la calle | Mujer en la playa | Dos hombres sentados en un banco del parque
El hombre lleva un abrigo negro
Une femme a les mains sur les hanches | Homme sur un banc | Deux femmes dans la rue | L'homme porte une veste
Un uomo con il cappello sta in piedi nella strada | Due ragazzi sulla spiaggia di sera | Una ragazza nel parco
Uma mulher junto a uma janela | As mulheres estão na praia | Um homem de chapéu na praia
De vrouw is op straat | Een man met een hoed staat op straat | Twee meisjes aan zee bij de boot
'''
ENGLISH = '''
a woman in a dress de la mode | a man in a hat | man, hat, street | young man smiling, city street, evening
portrait of Leonardo da Vinci | Vincent van Gogh, portrait | Place de la Concorde, Paris | Rio de Janeiro beach
Charles de Gaulle in uniform | Maria de los Angeles in a red coat | woman standing in Las Vegas | a dancer en pointe
a café by the sea | Ludwig van der Rohe, full body portrait | an older man is on the bench | two women laughing
'''


def phrases(text): return [p.strip() for line in text.strip().splitlines() for p in line.split('|')]


@pytest.mark.parametrize('text', phrases(OTHER_LANGUAGES))
def test_a_caption_in_another_language_is_told_from_english(text): assert not reads_english(text)


@pytest.mark.parametrize('text', phrases(ENGLISH))
def test_an_english_caption_with_words_of_another_language_passes(text): assert reads_english(text)


OF_IDENTITY = '''
a woman with dark skin | light brown skin | a dark-skinned man | a fair complexion | two Asians | Indians | Caucasians
a Middle Eastern man | a man of middle-eastern descent | a mixed race couple | a native american dancer
Native Americans | a black elderly man | a young black businessman | a Black teenager | a white older woman
a person of color | people of colour | a Turkish man | a Russian woman | a Nigerian | two Pakistanis | a Jew | Jews
a black bearded man | a German tourist | a tall white man with a brown bag | a black male dancer in white
'''
OF_LOOKS = '''
a man in a black coat | a white dress | a woman with a brown bag | black hair | a black and white photo of a man
a black-and-white portrait of two women | a black-haired woman | a white haired man | a woman in light brown boots
a man in black watching people | a girl in a white dress holding children | a white t-shirt and a man
a black skin-tight suit | white skinny jeans | a black german shepherd and a boy | a brightly colored woman
a brown dog and a man | a man against a white brick wall | a polished floor | a woman with light brown hair
'''


@pytest.mark.parametrize('text', phrases(OF_IDENTITY))
def test_words_on_who_somebody_is_are_named(text): assert len(identity_words(text)) == 1


@pytest.mark.parametrize('text', phrases(OF_LOOKS))
def test_words_on_clothes_hair_and_pictures_are_not_of_identity(text): assert identity_words(text) == []


def test_what_is_cut_is_what_the_text_encoder_does_not_read(tmp_path, random_base):
    from hgdpo_curate.pipelines import count_truncated, load_pipeline
    ws, pipe = begin(tmp_path, base_model=str(random_base)), load_pipeline(random_base, 'cpu')
    texts = [' '.join(['a']*n) for n in range(1, 90)]
    cut = are_cut(ws, texts)
    assert cut == sorted(cut) and 0 < sum(cut) < len(cut) and sum(cut) == count_truncated(pipe, texts)
    assert are_cut(begin(tmp_path/'other'), texts) == [n > 75 for n in range(1, 90)]           # words, without a base


def test_photos_that_may_not_be_used_are_not_captioned(bare):
    facts = bare.table('photo_facts').drop(columns='written_at')
    bare.append('photo_facts', facts.head(1).assign(consent='withdrawn'))
    says = Says('person {n}')
    caption_photos(bare, says, progress=quiet)
    assert says.asked == 5


def test_equal_captions_share_a_fold_and_the_test_fold_is_filled_again(tmp_path):
    ws = begin(tmp_path, test_share=.5)
    import_photos(ws, bare_folder(tmp_path, 8), progress=plain)
    caption_photos(ws, Says('person {n}', 'the same', 'person {n} in a hat', 'person {n} on a bench'), progress=quiet)
    stand = standing_prompts(ws.table('prompts'))
    assert stand.groupby('prompt').fold.nunique().max() == 1 and (stand.fold == 'test').sum() >= 2
    assert (ws.table('prompts').groupby('real_image_id').fold.nunique() == 1).all()


# a changed caption

def change_one(ws, text='quite another caption', fold='train'): # -> the row of `prompts` that was replaced
    old = standing_prompts(ws.table('prompts')).query('fold == @fold').iloc[0]
    change_captions(ws, [dict(image_id=old.real_image_id, prompt=text, source='person', approved_by='me')])
    return old


def test_a_changed_caption_is_a_new_prompt_in_the_same_fold(made):
    from conftest import Chance
    from hgdpo_curate.curate.splits import load_split, pairs_of
    before = pairs_of(made, Chance.name)['easy']
    old = change_one(made)
    new = standing_prompts(made.table('prompts')).set_index('real_image_id').loc[old.real_image_id]
    assert new.fold == old.fold and new.prompt_id == prompt_id_of('quite another caption', old.real_image_id)
    chosen = set(choose_prompts(made).prompt_id)
    assert old.prompt_id not in chosen and new.prompt_id in chosen
    after = pairs_of(made, Chance.name)['easy']
    assert set(before.prompt_id) - set(after.prompt_id) == {old.prompt_id}
    assert load_split(made, 'v1')['easy'].prompt_id.eq(old.prompt_id).any()        # what was frozen stays
    scores = made.table('scores').set_index('image_id')
    assert pd.isna(scores.score[old.real_image_id]) and scores.score.isna().sum() == 1
    assert score_images(made, Chance(), progress=quiet) == 1
    assert leakage(made, load_split(made, 'v1')).prompts_in_both == 0


def test_a_caption_changed_back_finds_its_pool_again(made):
    from conftest import Chance
    from hgdpo_curate.curate.splits import pairs_of
    before = pairs_of(made, Chance.name)['easy']
    old = change_one(made)
    change_captions(made, [dict(image_id=old.real_image_id, prompt=old.prompt, source='file')])
    assert set(pairs_of(made, Chance.name)['easy'].winner_id) == set(before.winner_id)
    made.compact('prompts'), made.compact('images')
    stand = standing_prompts(made.table('prompts'))
    assert len(stand) == 8 and old.prompt_id in set(stand.prompt_id)


def test_captions_of_the_folder_are_taken_when_asked_and_what_hangs_on_the_old_is_said(made, folder_of_made):
    folder = folder_of_made
    rows = [json.loads(line) for line in (folder/'metadata.jsonl').read_text().splitlines()]
    prompts = standing_prompts(made.table('prompts'))
    of_train = set(prompts.query("fold == 'train'").prompt)
    changed = next(r for r in rows if ' '.join(r['text'].split()) in of_train)
    changed['text'] = 'an african man in a hat'
    (folder/'metadata.jsonl').write_text('\n'.join(map(json.dumps, rows)))
    told = str(import_photos(made, folder, progress=plain))
    assert '--update_captions' in told and len(standing_prompts(made.table('prompts'))) == 8
    report = import_photos(made, folder, update_captions=True, progress=plain)
    said = str(report)
    assert len(report.captions.changed) == 1 and '3 pool images' in said and 'v1' in said and 'hgdpo pool' in said
    assert 'of identity or origin' in said and '1 of them got another caption' in said


def test_a_change_that_was_interrupted_is_completed(made, folder_of_made):
    old = standing_prompts(made.table('prompts')).iloc[0]
    row = old.drop('written_at').to_dict()
    new = row | dict(prompt_id='f'*16, prompt='cut off here')
    made.append('prompts', [row | dict(replaced_by=new['prompt_id']), new])        # and then the machine stopped
    assert made.table('images').set_index('image_id').prompt_id[old.real_image_id] == old.prompt_id
    import_photos(made, folder_of_made, progress=plain)
    assert made.table('images').set_index('image_id').prompt_id[old.real_image_id] == 'f'*16


def test_the_app_shows_a_photo_under_its_caption_alone(made):
    from hgdpo_curate.curate.reviews import sample_rows
    old = change_one(made)
    for prompts in (None, {old.prompt_id}):
        rows = sample_rows(made, 'chance', prompts)
        assert (rows.image_id == old.real_image_id).sum() == (prompts is None)
        assert rows[rows.prompt_id == old.prompt_id][['easy', 'normal', 'hard']].isna().all(axis=None)


def test_the_photo_of_a_frozen_test_prompt_is_found_after_its_caption_changed(made):
    from hgdpo_curate.evaluate.candidates import frozen_test_prompts
    from hgdpo_curate.evaluate.compare import photos_of
    old = change_one(made, fold='test')
    test = frozen_test_prompts(made, 'v1')
    photos, notes = photos_of(made, test)
    assert old.prompt_id in set(photos.prompt_id) and not any('no photo' in n for n in notes)


# forgetting

def texts_in(root): # every text of every table
    import pyarrow.parquet as pq
    return ' '.join(str(pq.read_table(f, partitioning=None).to_pydict()) for f in root.rglob('*.parquet'))


@pytest.mark.parametrize('compacted', [False, True])
@pytest.mark.parametrize('by', ['photo', 'old prompt', 'new prompt'])
def test_every_caption_of_a_person_is_forgotten_old_and_new(made, by, compacted):
    old = change_one(made, 'the second of three captions')
    change_captions(made, [dict(image_id=old.real_image_id, prompt='the last of three captions', source='person')])
    generate_pool(made, 2, progress=quiet)
    if compacted: made.compact('prompts'), made.compact('images'), made.compact('scores')
    new = prompt_id_of('the last of three captions', old.real_image_id)
    assert (made.table('images').query("domain == 'generated'").prompt_id == new).any()
    subject = {'photo': old.real_image_id, 'old prompt': old.prompt_id, 'new prompt': new}[by]
    gone = forget(made, subject, app=False, progress=quiet)
    assert set(gone.traces.captions) >= {'the second of three captions', 'the last of three captions'}
    left = texts_in(made.root)
    traces = old.prompt, old.prompt_id, new, old.real_image_id, 'the second of', 'the last of'
    assert [x for x in traces if x in left] == []
    assert set(p.stem for p in (made.root/'images').rglob('*.png')) == set(made.table('images').image_id)


def test_a_pair_of_the_photo_under_an_earlier_caption_is_forgotten(made):
    from hgdpo_curate.document.footprint import footprint_of
    from hgdpo_curate.files import pair_id_of
    old = change_one(made)
    made.compact('images')
    pool = made.table('images').query("domain == 'generated' and prompt_id == @old.prompt_id").image_id.iloc[0]
    assert pair_id_of('hard', old.prompt_id, old.real_image_id, pool) in footprint_of(made, old.real_image_id).pairs


def test_no_caption_is_written_during_a_removal_or_after_it(made):
    photo = standing_prompts(made.table('prompts')).real_image_id.iloc[0]
    (made.root/'forget.json').write_text('{}')
    with pytest.raises(UserError, match='removal was interrupted'):
        change_captions(made, [dict(image_id=photo, prompt='too late')])
    (made.root/'forget.json').unlink()
    forget(made, photo, app=False, progress=quiet)
    told = change_captions(made, [dict(image_id=photo, prompt='too late', source='captioner')])
    assert told.gone == [photo] and 'too late' not in texts_in(made.root)


# the card

def test_the_card_says_which_captions_a_model_wrote_and_how_many_were_approved(made):
    from hgdpo_curate.document.data_card import make_card
    stand = standing_prompts(made.table('prompts')).query("fold == 'train'")
    about = dict(source='captioner', captioner='blip', captioner_version='blip@1')
    rows = [
        dict(about, image_id=r.real_image_id, prompt=r.prompt, approved_by='me' if n == 0 else None)
        for n, r in enumerate(stand.head(3).itertuples())
    ]
    change_captions(made, rows)
    facts = split_facts(made, 'v1')
    by = {(who, name): n for who, name, n in facts.captions.writers}
    assert by['captioner', 'blip blip@1'] == 3 and facts.captions.approved == 1 and sum(by.values()) == facts.photos
    text = make_card(made, 'v1').path.read_text()
    assert 'a model (<code>blip blip@1</code>) 3' in text and 'approved' in text


# models in the hub's layout

def tokenizer_with(words, **special):
    from tokenizers import models, pre_tokenizers, Tokenizer
    from transformers import PreTrainedTokenizerFast
    vocab = {w: i for i, w in enumerate([*special.values(), *words])}
    tokens = Tokenizer(models.WordLevel(vocab, unk_token=special['unk_token']))
    tokens.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokens, **special)


WORDS = 'a man woman in with hat coat on bench by sea the and standing sitting'.split()
ASKED = 'Describe detail what is shown image .'.split()
SPECIAL = dict(bos_token='<s>', pad_token='<pad>', eos_token='</s>', unk_token='<unk>')


def tiny_blip(folder):
    from transformers import BertTokenizer, BlipConfig, BlipForConditionalGeneration, BlipImageProcessor, BlipProcessor
    (folder/'vocab.txt').write_text('\n'.join(['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', '[DEC]', *WORDS]))
    tokenizer, small = BertTokenizer(str(folder/'vocab.txt'), bos_token='[DEC]'), dict(
        hidden_size=32, intermediate_size=37, num_hidden_layers=1, num_attention_heads=4, projection_dim=32
    )
    text = small | dict(
        vocab_size=len(tokenizer), bos_token_id=5, eos_token_id=3, sep_token_id=3, pad_token_id=0,
        encoder_hidden_size=32,
    )
    config = BlipConfig(text_config=text, vision_config=small | dict(image_size=32, patch_size=8), projection_dim=32)
    BlipForConditionalGeneration(config).save_pretrained(folder)
    BlipProcessor(BlipImageProcessor(size=dict(height=32, width=32)), tokenizer).save_pretrained(folder)


def tiny_florence(folder):
    from transformers import (
        BartConfig, CLIPImageProcessor, Florence2Config, Florence2ForConditionalGeneration, Florence2Processor,
        Florence2VisionConfig,
    )
    tokenizer = tokenizer_with([*ASKED, *WORDS], **SPECIAL, image_token='<image>')
    tokenizer = type(tokenizer)(
        tokenizer_object=tokenizer.backend_tokenizer, **SPECIAL, extra_special_tokens=dict(image_token='<image>')
    )
    vision = Florence2VisionConfig(
        depths=[1, 1], patch_size=[7, 3], patch_stride=[4, 2], patch_padding=[3, 1], patch_prenorm=[False, True],
        embed_dim=[8, 16], num_heads=[1, 2], num_groups=[1, 2], window_size=4, projection_dim=16,
    )
    text = BartConfig(
        vocab_size=len(tokenizer), d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, bos_token_id=0, pad_token_id=1,
        eos_token_id=2, decoder_start_token_id=2, forced_eos_token_id=2, max_position_embeddings=128,
    )
    config = Florence2Config(text_config=text, vision_config=vision, image_token_id=tokenizer.image_token_id)
    Florence2ForConditionalGeneration(config).save_pretrained(folder)
    square = dict(height=32, width=32)
    pictures = CLIPImageProcessor(size=square, crop_size=square, do_center_crop=False)
    pictures.image_seq_length = 17                                        # 4 x 4 patches and their mean
    Florence2Processor(pictures, tokenizer, num_additional_image_tokens=0).save_pretrained(folder)


TEMPLATE = (
    "{% for m in messages %}{% for c in m['content'] %}{% if c['type'] == 'image' %}<image> {% else %}{{ c['text'] }}"
    '{% endif %}{% endfor %}{% endfor %}'
)


def tiny_llava(folder):
    from transformers import (
        CLIPImageProcessor, CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor,
    )
    tokenizer = tokenizer_with(['<image>', *WORDS], **SPECIAL)
    tokenizer.add_special_tokens(dict(additional_special_tokens=['<image>']))
    small = dict(hidden_size=32, intermediate_size=37, num_hidden_layers=2, num_attention_heads=4)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(image_size=32, patch_size=8, projection_dim=32, **small),
        text_config=LlamaConfig(vocab_size=len(tokenizer), bos_token_id=0, pad_token_id=1, eos_token_id=2, **small),
        image_token_index=tokenizer.convert_tokens_to_ids('<image>'),
    )
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    LlavaProcessor(
        CLIPImageProcessor(size=dict(shortest_edge=32), crop_size=dict(height=32, width=32)), tokenizer, patch_size=8,
        vision_feature_select_strategy='default', chat_template=TEMPLATE, num_additional_image_tokens=1,
    ).save_pretrained(folder)


QWEN_TEMPLATE = TEMPLATE.replace('<image>', '<|vision_start|><|image_pad|><|vision_end|>')


def tiny_qwen(folder):
    from transformers import (
        Qwen2VLConfig, Qwen2VLForConditionalGeneration, Qwen2VLImageProcessor, Qwen2VLProcessor, Qwen2VLVideoProcessor,
    )
    marks = ['<|vision_start|>', '<|vision_end|>', '<|image_pad|>', '<|video_pad|>']
    tokenizer = tokenizer_with([*marks, *WORDS], **SPECIAL)
    tokenizer.add_special_tokens(dict(additional_special_tokens=marks))
    start, end, image, video = tokenizer.convert_tokens_to_ids(marks)
    text = dict(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=37, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, bos_token_id=0, pad_token_id=1, eos_token_id=2,
        rope_parameters=dict(rope_type='default', mrope_section=[1, 1, 2], rope_theta=10_000.),
    )
    vision = dict(depth=1, embed_dim=32, hidden_size=32, num_heads=4, mlp_ratio=2, patch_size=8, spatial_merge_size=2)
    config = Qwen2VLConfig(
        text_config=text, vision_config=vision, image_token_id=image, video_token_id=video,
        vision_start_token_id=start, vision_end_token_id=end,
    )
    Qwen2VLForConditionalGeneration(config).save_pretrained(folder)
    pixels = dict(shortest_edge=16*16, longest_edge=64*64)
    Qwen2VLProcessor(
        Qwen2VLImageProcessor(patch_size=8, size=pixels), tokenizer, Qwen2VLVideoProcessor(patch_size=8, size=pixels),
        chat_template=QWEN_TEMPLATE,
    ).save_pretrained(folder)


MODELS = dict(blip=tiny_blip, florence2=tiny_florence, llava=tiny_llava, qwen2_vl=tiny_qwen)


@pytest.fixture(scope='module')
def models(tmp_path_factory): # name -> folder
    import torch
    folders = {}
    for name, make in MODELS.items():
        folders[name] = tmp_path_factory.mktemp(name)
        torch.manual_seed(3)
        make(folders[name])
    return folders


def opened(models, kind, **how):
    if kind in ('llava', 'qwen2_vl'): return open_captioner(str(models[kind]), device='cpu', **how)
    return open_captioner(kind, path=models[kind], device='cpu', **how)


@pytest.mark.parametrize('kind', MODELS)
def test_a_model_in_its_hub_layout_captions_and_says_the_same_again(kind, models, bare):
    one, two = (opened(models, kind, max_tokens=8) for _ in range(2))
    images = [bare.open_image(p) for p in bare.table('images').path]
    answers = one.caption(images)
    assert answers == two.caption(images) == [two.caption([im])[0] for im in images] and one.version == two.version
    assert all(len(a.split()) <= 8 for a in answers) and set(' '.join(answers).split()) <= {*WORDS, *ASKED}
    assert opened(models, kind, max_tokens=9).version != one.version
    report = caption_photos(bare, one, max_tokens=8, progress=quiet)
    assert len(report.texts) + len(report.silent) == 6


@pytest.mark.parametrize('kind', ['llava', 'qwen2_vl'])
def test_a_model_that_can_be_asked_is_given_the_caption_to_shorten(kind, models, bare):
    one, image = opened(models, kind, max_tokens=8), bare.open_image(bare.table('images').path.iloc[0])
    long = 'a woman in a coat <image> by the sea ' + 'and a hat '*30
    assert one.shorten([image], [long]) == one.shorten([image], [long]) and len(one.was_cut) == 1
    assert 'a woman in a coat' in one._question(SHORTER.format(long)) and one.shortening != one.version
    first = bare.table('prompts').real_image_id.iloc[0]
    change_captions(bare, [dict(image_id=first, prompt=long, source='file')])
    report = caption_photos(bare, one, shorten=True, max_tokens=8, progress=quiet)
    assert len(report.texts) + len(report.silent) == 1
    if report.texts: assert one.shortening in set(bare.table('prompts').captioner_version)


@pytest.mark.parametrize('kind', MODELS)
def test_weights_that_are_not_there_are_named_and_nothing_is_lost(kind, models, bare, tmp_path):
    folder = tmp_path/'broken'
    shutil.copytree(models[kind], folder)
    (folder/'model.safetensors').unlink()
    broken = dict(models) | {kind: folder}
    with pytest.raises(UserError, match='safetensors'): opened(broken, kind)
    assert len(bare.table('prompts')) == 6


def test_pickled_weights_and_code_of_a_repository_are_not_loaded(models, tmp_path):
    import torch
    folder = tmp_path/'pickled'
    shutil.copytree(models['llava'], folder)
    from safetensors.torch import load_file
    torch.save(load_file(folder/'model.safetensors'), folder/'pytorch_model.bin')
    (folder/'model.safetensors').unlink()
    with pytest.raises(UserError, match='safetensors'): open_captioner(str(folder), device='cpu')
    config = json.loads((folder/'config.json').read_text())
    ran = tmp_path/'ran'
    (folder/'own.py').write_text(f'open({str(ran)!r}, "w")\n')
    config |= dict(model_type='own', auto_map=dict(AutoConfig='own.Config', AutoModelForImageTextToText='own.Net'))
    (folder/'config.json').write_text(json.dumps(config))
    with pytest.raises(UserError, match='cannot be loaded'): open_captioner(str(folder), device='cpu')
    assert not ran.exists()


def test_a_folder_that_is_another_model_or_none_is_refused(models, tmp_path, bare, capsys):
    with pytest.raises(UserError, match="'llava', not 'blip'"): open_captioner('blip', path=models['llava'])
    with pytest.raises(UserError, match='no config.json'): open_captioner(str(tmp_path))
    with pytest.raises(UserError, match='no chat template'): open_captioner(str(models['blip']), device='cpu')
    argv = ['caption', '--workspace', str(bare.root), '--captioner']
    assert main([*argv, 'nonsense']) == 2 and 'florence2' in capsys.readouterr().err
    assert main([*argv, 'somebody/some-model']) == 1 and 'hf download somebody/some-model' in capsys.readouterr().err
    assert main([*argv, 'blip']) == 1 and '--captioner_path FOLDER' in capsys.readouterr().err
    of_blip, of_llava = (['--captioner_path', str(models[kind])] for kind in ('blip', 'llava'))
    assert main([*argv, 'llava-hf/some-llava', *of_llava]) == 2
    assert f'--captioner {models["llava"]}' in capsys.readouterr().err
    with pytest.warns(UserWarning, match='takes no instruction'):
        main([*argv, 'blip', *of_blip, '--max_tokens', '8', '--limit', '1', '--instruction', 'Name the hat.'])
    assert main([*argv, 'blip', '--captioner_path', str(models['blip']), '--max_tokens', '8', '--device', 'cpu']) == 0
