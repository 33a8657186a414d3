# Raw files -> shards -> index. One job per shard, never one per video.


rule corpus:
    output:
        f"{R}/corpus/{{source}}/samples.jsonl",
    log:
        f"{R}/logs/corpus/{{source}}.log",
    group:
        "corpus"
    conda:
        "../envs/decode.yaml"
    threads: lambda w: workflow.cores
    params:
        family=STUDY.demo_family,
        samples=lambda w: SOURCES[w.source].samples,
        seed=lambda w: SOURCES[w.source].demo_seed,
        broken=lambda w: SOURCES[w.source].broken,
    shell:
        'python -m fvlm corpus {params.family:q} --out "$(dirname {output:q})" --samples {params.samples}'
        " --seed {params.seed} --broken {params.broken} --processes {threads} 2> {log:q}"


rule tokenizer:
    input:
        STUDY.tokenizer_tables,
    output:
        tokenizer=f"{R}/tokenizer/tokenizer.json",
        settings=f"{R}/tokenizer/tokenizer_config.json",
    log:
        f"{R}/logs/tokenizer.log",
    conda:
        "../envs/train.yaml"
    params:
        choice=STUDY.tokenizer_choice,
    shell:
        'python -m fvlm tokenizer {params.choice} --out "$(dirname {output.tokenizer:q})" -- {input:q} 2> {log:q}'


rule shard:
    input:
        STUDY.shard_inputs,
    output:
        tar=ensure(f"{R}/shards/{{source}}/{{shard}}.tar", non_empty=True),
        ledger=f"{R}/shards/{{source}}/{{shard}}.ledger.jsonl",
        checksum=f"{R}/shards/{{source}}/{{shard}}.tar.sha256",
    log:
        f"{R}/logs/shard/{{source}}/{{shard}}.log",
    group:
        "decode"
    conda:
        "../envs/decode.yaml"
    resources:
        group_slots=1,
    params:
        folder=STUDY.source_folder,
        reader=STUDY.source_reader,
        table=STUDY.source_table,
        kind=lambda w: SOURCES[w.source].kind,
        prompt=lambda w: SOURCES[w.source].prompt,
        limit=STUDY.reject_limit,
        squash=STUDY.squash,
        deadline=lambda w: SOURCES[w.source].deadline_s,
        samples=STUDY.settings.shards.samples,
        number=lambda w: int(w.shard),  # without leading zeros
        last=STUDY.last_shard,
    shell:
        "python -m fvlm shard --reader {params.reader} --table={params.table:q}"
        " --name {wildcards.source} --kind {params.kind} --prompt={params.prompt:q} {params.squash}"
        " {params.limit} --deadline {params.deadline} --samples-per-shard {params.samples} --shard {params.number} {params.last}"
        ' --processes 1 --keep --out "$(dirname {output.tar:q})" -- {params.folder:q} 2> {log:q}'


rule index:
    input:
        tars=STUDY.index_tars,
        tokenizer=f"{R}/tokenizer/tokenizer.json",
    output:
        index=f"{R}/index/{{source}}.npz",
        ledger=f"{R}/index/{{source}}.ledger.jsonl",
    log:
        f"{R}/logs/index/{{source}}.log",
    conda:
        "../envs/decode.yaml"
    # A killed index resumes from its finished shards, which are in an undeclared folder beside it.
    threads: lambda w: min(8, workflow.cores)
    params:
        kind=lambda w: SOURCES[w.source].kind,
        prompt=lambda w: SOURCES[w.source].prompt,
        max_reject=lambda w: SOURCES[w.source].max_reject,
    shell:
        STUDY.command(
            "index {wildcards.source} --processes {threads} --out {output.index:q} 2> {log:q}"
        )


rule ledger:
    input:
        STUDY.ledgers,
    output:
        ledger=f"{R}/ledger.jsonl",
        table=report(
            f"{R}/tables/data.csv",
            caption="../workflow/report/data.rst",
            category="Data",
            labels={"what": "Inputs kept and rejected", "form": "table"},
        ),
    log:
        f"{R}/logs/ledger.log",
    conda:
        "../envs/decode.yaml"
    shell:
        STUDY.command(
            "ledger --of-study --out {output.ledger:q} --table {output.table:q} 2> {log:q}"
        )
