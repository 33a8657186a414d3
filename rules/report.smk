# What the data hold, before anything is trained on them.

from fvlm import data_report

DATA_REPORT = [f"{R}/data/{name}" for name in ("report.html", *data_report.FILES)]


localrules:
    data,


# Everything up to the data report, and no training.
rule data:
    input:
        DATA_REPORT,


rule data_report:
    input:
        indices=[f"{R}/index/{source}.npz" for source in STUDY.used_sources],
        ledger=f"{R}/ledger.jsonl",
        tokenizer=f"{R}/tokenizer/tokenizer.json",
    output:
        page=report(
            DATA_REPORT[0],
            caption="../workflow/report/data_report.rst",
            category="Data",
            labels={"what": "Data report", "form": "page"},
        ),
        others=DATA_REPORT[1:],
    log:
        f"{R}/logs/data_report.log",
    conda:
        "../envs/report.yaml"
    params:
        settings=data_report.digest(STUDY),
    shell:
        "python -m fvlm data-report 2> {log:q}"
