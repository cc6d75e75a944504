"""The main job, from a folder of pictures to a LoRA, on the mannequins."""
import pytest
from conftest import quiet


@pytest.mark.usefixtures('mongo')
def test_the_demo_runs_whole_and_a_second_time_does_nothing_twice(tmp_path, capsys):
    from hgdpo_curate import open_workspace, run_demo
    ws = open_workspace(run_demo(tmp_path/'demo', quick=True, progress=quiet))
    out = capsys.readouterr().out
    for words in ('| base |', '| hard + text encoder |', 'pool picture', 'grid', 'LoRA', 'card', 'hgdpo curate --workspace'): assert words in out
    run = ws.root/'runs'/'demo'
    for f in ('final/pytorch_lora_weights.safetensors', 'final/kohya_lora_weights.safetensors', 'evaluation/table.md', 'evaluation/grid.png', 'evaluation/pool.png', 'easy/curves.png'): assert (run/f).exists(), f
    card = (ws.root/'splits'/'v1'/'README.md').read_text()
    assert 'Incomplete' in card and 'CC0-1.0' in card
    made = {p: p.stat().st_mtime_ns for p in (ws.root/'images').rglob('*.png')}
    run_demo(tmp_path/'demo', quick=True, app=False, progress=quiet)
    assert {p: p.stat().st_mtime_ns for p in (ws.root/'images').rglob('*.png')} == made


def test_the_card_is_a_hugging_face_card_and_lists_what_is_missing(finished, copy_of):
    from huggingface_hub import DatasetCard
    from hgdpo_curate.document.cards import QUESTIONS, ask, make_card
    ws = copy_of(finished)
    file, missing = make_card(ws)
    assert missing == list(QUESTIONS) and (file.parent/'scores.png').exists()
    card = DatasetCard.load(file)
    assert card.data.task_categories == ['text-to-image'] and all(q in card.text for q in QUESTIONS.values())
    answers = ask(ws)
    answers.write_text(answers.read_text().replace('purpose = ""', 'purpose = "to <script>test</script> | cards"'))
    file, missing = make_card(ws)
    assert 'purpose' not in missing and '<script>' not in file.read_text() and 'to &lt;script&gt;' in file.read_text()
    assert 'to <script>' in ask(ws).read_text()                                     # asking again keeps answers
