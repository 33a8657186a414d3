# The data report: what is in the data, before anything is trained on them.


# Everything up to the data report, and no training.
rule data:
    input:
        STUDY.data_report,
    localrule: True


rule data_report:
    input:
        indices=STUDY.indices,
        ledger=f"{R}/ledger.jsonl",
        tokenizer=f"{R}/tokenizer/tokenizer.json",
    output:
        page=report(
            STUDY.data_report[0],
            caption="../workflow/report/data_report.rst",
            category="Data",
            labels={"what": "Data report", "form": "page"},
        ),
        others=STUDY.data_report[1:],
    log:
        f"{R}/logs/data_report.log",
    conda:
        "../envs/report.yaml"
    params:
        settings=STUDY.data_report_digest,
    shell:
        STUDY.command('data-report --out "$(dirname {output.page:q})" 2> {log:q}')
