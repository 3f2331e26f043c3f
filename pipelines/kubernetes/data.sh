#!/usr/bin/env bash
# A data stage as an Indexed Job: all shards, then a run that completes the artifact. What is done is not done again.
#
#   bash pipelines/kubernetes/data.sh tokenize           or: encode
#
# Edit the YAML first: image, claim, paths. The number of shards stands in it three times.
set -euo pipefail
root=$(cd "$(dirname "$0")" && pwd)

stage=$1
# the same Job with one shard, which is the whole
completing() {
    sed -e 's/name: cola-[a-z]*$/&-completed/' -e 's/^\( *\)\(completions\|parallelism\): .*/\1\2: 1/' \
        -e 's/\(COLA_SHARDS, value:\) "[0-9]*"/\1 "1"/' "$root/$stage.yaml"
}

kubectl apply -f "$root/$stage.yaml"
kubectl wait --for=condition=complete --timeout=-1s "job/cola-$stage"
completing | kubectl apply -f -
kubectl wait --for=condition=complete --timeout=-1s "job/cola-$stage-completed"
