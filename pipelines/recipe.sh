#!/usr/bin/env bash
# What makes the prior learn: candidates trained on the same rows of stories from a grammar, with the same steps, width and
# optimiser, and a matched autoregressive model; then how many of the sentences that each writes the grammar can write,
# and whether names and things stay the same. Five to fifteen minutes of one core each (docs/results.md has the table).
#
#   bash pipelines/recipe.sh [RUN] [CANDIDATE ...]     runs/recipe and all candidates by default; SEED=7, STEPS=3000
#   bash pipelines/recipe.sh runs/recipe quiet/paper       a candidate on the latents of another VAE
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)

run=${1:-runs/recipe}
shift $(($# > 0))
cola=${COLA:-$root/.venv/bin/cola} # the command to run
python=${PYTHON:-$root/.venv/bin/python}
seed=${SEED:-66}
steps=${STEPS:-1500}
[ -n "${COLA:-}" ] || bash "$root/pipelines/setup.sh"
[ $# -gt 0 ] || set -- paper tokens stagger evidence copies block16 ar

settings() { # the flags of a candidate
    case $1 in
    paper) echo "model.prediction=velocity model.stagger=0" ;;
    tokens) echo "model.stagger=0" ;;
    stagger) echo "" ;;
    evidence) echo "model.evidence=true model.causal_history=true loss.next_token=0.5" ;; # the preset's own
    serial) echo "model.stagger=3" ;; # one position after another
    copies) echo "data.noisy_copies=3" ;;
    block16) echo "model.block_size=16 model.stagger=5 data.noisy_copies=2 sampling.steps=32" ;;
    next-token) echo "model.causal_history=true loss.next_token=0.5" ;;
    next-block) echo "loss.next_token=0.5" ;;
    curriculum) echo "data.block_curriculum=[[1,500]]" ;;
    decided) echo "timesteps.law=decided" ;;
    residual) echo "model.residual=true loss.flow=0.1" ;;
    read) echo "loss.decoder=0.5" ;;
    noisy-history) echo "data.history_noise=0.3" ;;
    self-conditioning) echo "model.self_conditioning=true" ;;
    *)
        echo "recipe: unknown candidate $1" >&2
        exit 2
        ;;
    esac
}

vae_settings() { # the flags of a VAE
    case $1 in
    vae) echo "loss.beta=1e-3" ;; # the default
    quiet) echo "loss.beta=1e-5" ;;
    fixed) echo "loss.posterior=fixed" ;; # log(signal / noise) of 4.5, the paper's
    narrow) echo "model.latent_dim=4" ;;
    wide) echo "model.latent_dim=64" ;;
    *)
        echo "recipe: unknown VAE $1" >&2
        exit 2
        ;;
    esac
}

mkdir -p "$run"
if [ ! -f "$run/stories.txt" ]; then
    "$python" "$root/pipelines/stories.py" "${STORIES:-30000}" 1 > "$run/stories.txt.new"
    mv "$run/stories.txt.new" "$run/stories.txt"
    "$python" "$root/pipelines/stories.py" openings 64 2 > "$run/openings.jsonl"
fi
common=(--preset tiny --config "${SETTINGS:-$root/pipelines/recipe.toml}")
"$cola" tokenize "$run/stories.txt" -o "$run/tokens" "${common[@]}"
for named in "$@"; do
    candidate=${named##*/} vae=vae latents=latents
    [ "$named" = "$candidate" ] || vae=${named%/*} latents=$vae-latents
    if [ "$vae" != "${made:-}" ]; then
        flags=$(vae_settings "$vae")
        "$cola" train vae "$run/tokens" -o "$run/$vae" "${common[@]}" --set "$flags"
        "$cola" encode "$run/tokens" --vae "$run/$vae" -o "$run/$latents" "${common[@]}"
        made=$vae
    fi
    model=$run/${named/\//-}-$seed-$steps
    train=(--set "train.seed=$seed" --set "train.steps=$steps")
    if [ "$candidate" = ar ]; then
        "$cola" train ar "$run/tokens" -o "$model" "${common[@]}" "${train[@]}"
    else
        flags=$(settings "$candidate")
        for assignment in $flags; do train+=(--set "$assignment"); done
        "$cola" train prior "$run/$latents" -o "$model" "${common[@]}" "${train[@]}"
    fi
    "$cola" sample "$model" --prompts "$run/openings.jsonl" -o "$model-samples" --max-new-tokens "${TOKENS:-112}"
    echo "$named, seed $seed, $steps steps: $("$python" "$root/pipelines/stories.py" judge "$model-samples")"
done
