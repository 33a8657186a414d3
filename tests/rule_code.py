"""Finds Python code in Snakemake's rules: everything but assignments, calls and lambdas that look one thing up."""

import ast
import io
import tokenize

STATEMENTS = {"def", "class", "try", "while", "with", "if", "assert", "raise", "del", "global", "async", "match"}
LOOKUP = (
    *(ast.Name, ast.Attribute, ast.Subscript, ast.Call, ast.Constant, ast.keyword, ast.JoinedStr, ast.FormattedValue),
    ast.expr_context,
)
HEADER = {  # before fvlm can be imported
    "from runpy import run_path",
    "from snakemake.utils import min_version",
    'package = run_path(workflow.source_path("src/fvlm/snakemake/package.py"))',
}
IGNORED = {tokenize.COMMENT, tokenize.NL, tokenize.INDENT, tokenize.DEDENT}


def code_in(text: str) -> list[str]:
    """Return the line number and text of each line of rules that holds code."""
    found, first = [], True  # first: whether a token begins a logical line
    tokens = [token for token in tokenize.generate_tokens(io.StringIO(text).readline) if token.type not in IGNORED]
    for position, token in enumerate(tokens):
        line = f"{token.start[0]}: {token.line.strip()}"
        if token.type == tokenize.NAME:
            if token.string == "lambda":
                is_code = not _is_lookup(tokens[position:])
            elif first and token.string in ("import", "from"):
                is_code = not _is_own_import(token.line)
            elif token.string == "run_path":
                is_code = token.line.strip() not in HEADER
            else:
                is_code = token.string == "for" or (first and token.string in STATEMENTS)
            if is_code:
                found.append(line)
        first = token.type == tokenize.NEWLINE
    return found


def _is_own_import(line: str) -> bool:
    words = line.split()
    return line.strip() in HEADER or words[1].split(".")[0] == "fvlm"


def _is_lookup(tokens: list[tokenize.TokenInfo]) -> bool:
    """Return whether the lambda at the first token only looks something up, with one call at most."""
    body = ast.parse(_lambda(tokens), mode="eval").body.body
    calls = sum(isinstance(node, ast.Call) for node in ast.walk(body))
    return calls <= 1 and all(isinstance(node, LOOKUP) for node in ast.walk(body))


def _lambda(tokens: list[tokenize.TokenInfo]) -> str:
    """The source of a lambda: up to the comma, bracket or line that ends it."""
    words, depth, in_body = [], 0, False
    for token in tokens:
        ends = token.string in (")", "]", "}") or (token.string == "," and in_body)
        if depth == 0 and (ends or token.type in (tokenize.NEWLINE, tokenize.ENDMARKER)):
            break
        depth += (token.string in ("(", "[", "{")) - (token.string in (")", "]", "}"))
        in_body = in_body or (token.string == ":" and depth == 0)
        words.append(token.string)
    return " ".join(words)
