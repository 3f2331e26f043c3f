# Every recipe works in the environment that `pipelines/setup.sh` makes; `just` alone lists them.

python := ".venv/bin/python"

# list the recipes
default:
    @just --list --unsorted

# make .venv and install cola with its development tools
setup:
    bash pipelines/setup.sh

# run the tests; arguments go to pytest
test *arguments:
    {{python}} -m pytest {{arguments}}

# format, lint and types, as CI checks them
check:
    {{python}} -m ruff format --check .
    {{python}} -m ruff check .
    {{python}} -m mypy

# mend format and lint where a tool can
fix:
    {{python}} -m ruff format .
    {{python}} -m ruff check --fix .

# the whole idea on real text, corpus to samples
quickstart *arguments:
    bash pipelines/quickstart.sh {{arguments}}

# a study: scaling, rq1, rq2, rq3 or rq4
study name *arguments:
    bash pipelines/study.sh {{name}} {{arguments}}

# break every stage at every write point, live random histories, flip a byte, try hostile files: writes docs/reliability.md
crash *arguments:
    {{python}} -m tests.faults {{arguments}}
    {{python}} -m tests.faults.ranks --minutes 60 --page
    {{python}} -m tests.faults.histories
    {{python}} tests/bench/verify.py --page
    {{python}} -m tests.hostile

# time to find a flipped byte, against sha256sum
bench-verify *arguments:
    {{python}} tests/bench/verify.py {{arguments}}

# the documentation as a site, with pages made from the code, in site/; `just site serve` shows it
site *arguments="build":
    .venv/bin/mkdocs {{arguments}}

# write what artifacts hold, from the types, into docs/architecture.md
format-page:
    {{python}} -m tests.artifacts.format_page

# what CI runs
ci:
    bash .ci/run

# generation against a plain sampler: tokens a second, ratio, useful operations
bench-sample *arguments:
    {{python}} tests/bench/sample.py {{arguments}}

# a prior of few passes against an autoregressive transformer of its size: ratio of tokens a second
bench-against-ar *arguments:
    {{python}} tests/bench/against_autoregressive.py {{arguments}}

# the server under 64 streaming clients against one batch of `cola sample`
bench-serve *arguments:
    {{python}} tests/bench/serve.py {{arguments}}

# generation at the paper's size on a GPU, against an autoregressive transformer of its size
bench-sample-gpu *arguments:
    {{python}} tests/bench/sample_gpu.py {{arguments}}

# CPU seconds of tokenizing real text in several ways: just bench-tokenizer FILE...
bench-tokenizer *arguments:
    {{python}} tests/bench/tokenizer.py {{arguments}}

# CPU seconds of tokenizing in shards against one run
bench-shards *arguments:
    {{python}} tests/bench/shards.py {{arguments}}

# what fewer passes cost in quality: just bench-quality MODEL
bench-quality *arguments:
    {{python}} tests/bench/quality.py {{arguments}}

# quality against speed, with students and baselines beside: just bench-frontier MODEL --tokens TOKENS --beside STUDENT AR
bench-frontier *arguments:
    {{python}} tests/bench/frontier.py {{arguments}}

# CPU seconds of leaving out near-duplicates: just bench-near-duplicates CORPUS
bench-near-duplicates *arguments:
    {{python}} tests/bench/near_duplicates.py {{arguments}}

# how long training waits for latents in an object store whose requests take 100 ms longer
bench-store *arguments:
    {{python}} tests/bench/store.py {{arguments}}

# one training step of the prior against a plain one
bench-train *arguments:
    {{python}} tests/bench/train.py {{arguments}}

# what a busy neighbour costs a training
bench-neighbour *arguments:
    {{python}} tests/bench/neighbour.py {{arguments}}

# the layout of latent parts against others that Parquet offers
bench-latents *arguments:
    {{python}} tests/bench/latents.py {{arguments}}

# what an artifact of many parts costs, and a plan for a fleet
bench-scale *arguments:
    {{python}} tests/bench/scale.py {{arguments}}

# what latents of fewer bits cost a prior, and their size: just bench-stored LATENTS
bench-stored *arguments:
    {{python}} tests/bench/stored.py {{arguments}}

# where a prior with a token head does not know the token: just bench-positions PRIOR LATENTS
bench-positions *arguments:
    {{python}} tests/bench/positions.py {{arguments}}
