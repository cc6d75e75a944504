# Makes the workspace as commit e47f7ad (version 0.1) wrote it: run it in a checkout of that commit, in an empty folder.
# Its base is a small one of its own with random weights, so that every later version can draw with it.
set -e
export HGDPO_REVIEWER=tester
hgdpo init --workspace people --resolution 40x56 --num_inference_steps 4 --test_share .34
python -c "from hgdpo_curate.images.mannequins import export_photos; export_photos('people/photos', 8, seed=5)"
hgdpo photos --workspace people --folder people/photos
python - <<'P'
from hgdpo_curate import open_workspace
from hgdpo_curate.networks import save_pipeline, tiny_pipeline
ws = open_workspace('people')
pipe = tiny_pipeline(ws.table('prompts').prompt, ws.size, channels=(8, 16, 24), latent_channels=4, width=32)
for part in (pipe.unet, pipe.vae, pipe.text_encoder):
    for p in part.parameters(): p.data = (p.data*16).round()/16          # few values: they take little room when packed
save_pipeline(pipe, 'people/base')
P
hgdpo pool --workspace people --n 2 --pretrained_model_name_or_path people/base
hgdpo recon --workspace people
hgdpo score --workspace people
hgdpo flag --workspace people
python - <<'P'
from hgdpo_curate import open_workspace
ws = open_workspace('people')
photo, other = ws.table('images').query("domain == 'real'").sort_values('image_id').image_id.iloc[:2]
made = ws.table('images').query("domain == 'generated'").image_id.iloc[0]
for decision in ('reject', 'approve'):                        # the second is the last, which wins
    ws.append('reviews', [dict(subject_id=photo, decision=decision, reviewer='tester', note='')])
ws.append('flags', [dict(image_id=made, flag='bad_hand', status='confirmed', confidence=1., source='human', part='hand',
                         side='left', reason='', rule_version='', reviewer='tester')])
P
hgdpo pairs --workspace people
hgdpo train --workspace people --preset mannequin --run first --max_train_steps 2 --rank 1
hgdpo sample --workspace people --run first --prompt "a person in a red shirt"
hgdpo evaluate --workspace people --per_prompt 1 --runs base,hard
hgdpo card --workspace people
rm -r people/cache people/runs/first/evaluation/report.html people/runs/first/logs people/data_cards/v1.html
