#!/usr/bin/env bash
# The complete pipeline on a folder of photographs: run.sh PHOTOS WORKSPACE
set -euo pipefail
photos=${1:?folder of photographs with metadata.jsonl}; ws=${2:?workspace to create}
hgdpo=${HGDPO:-hgdpo}

$hgdpo init     --workspace "$ws" --resolution 40x56 --num_inference_steps 12
$hgdpo photos   --workspace "$ws" --folder "$photos"
$hgdpo tiny     --workspace "$ws" --steps vae=1500 base=2500 scorer=1200 evaluator=1200
$hgdpo pool     --workspace "$ws" --n 8
$hgdpo recon    --workspace "$ws"
$hgdpo score    --workspace "$ws"
$hgdpo pairs    --workspace "$ws" --split v1
$hgdpo train    --workspace "$ws" --split v1 --preset tiny-photos --run street
$hgdpo evaluate --workspace "$ws" --run street --per_prompt 4
$hgdpo curate   --workspace "$ws" --build_only
$hgdpo card     --workspace "$ws" --split v1
$hgdpo status   --workspace "$ws"
echo "Open it in the App: $hgdpo curate --workspace $ws --view 'pool: by prompt'"
