"""Checks the mechanical part of our rules for English: python .ci/english.py [PATHS]

It reads docstrings, comments, the messages of errors, help texts, and the prose of Markdown files. Rules:

- first word: a verb in the third person for a function, a noun for a class, and nothing in `FIRST` for all others.
- word: none of the patterns in `WORDS`, which stand for metaphors, old words and nouns left out.
- length: a sentence has at most 25 words. A list of spans in backticks is one word.
- colon, semicolon: a sentence has at most one colon and no semicolon, because neither is a conjunction.
"""

import ast
import io
import pathlib
import re
import sys
import tokenize

FIRST = "What Of Whether Those That Which Who Whose How Why Where When While Beside In On At By For If As Has To"
VERB = re.compile(r"(?!(This|Is|Does|Classes|Metrics|Images|Labels|Steps|Weights|Names|Tells|Says)$)[A-Z][a-z-]*[^s]s$")
WORDS = r"""tells?(?! .{0,20}\bapart)|told|says|said|heeds?|heeded|knows?|brings?|brought|anew|mends?|mended|whoever
whence|thereby|thereof|therein|wherein|whereof|hitherto|lest|albeit|thrice|shall|besides|in vain|for want of|as ever
(has|have) no word for|to be had|can be had|comes? too late|has no part in|by the hour|(noisier|faster|slower) hours?
(any|no|some|every)body's|than holds|one's own|of its own accord|at the first chance|pass(es|ed)? over|a way with|as of
(that|those) of|(?<!there )(is|are|was|were) (no(?! longer| more)|(?-i:none))|what is no
(has|have) (?-i:none)|who asks|but for|(?!it's|let's)\w+'s(?=[.,;:)]|$| (and|or|is|are|in|to)\b)"""
WORDS = re.compile(rf"\b({'|'.join(WORDS.splitlines())})(?!\w)", re.IGNORECASE)
ABBREVIATIONS = "e.g. i.e. cf. vs. al. p. pp. No. Fig."
LABEL = re.compile(r"^\s*(Args|Returns|Raises|Yields|Examples?)( \w+)?:\s*|^\s{2,}[\w*`, ]{1,60}:(?=\s)")
CALLS = re.compile(r"(Error|Setting|say|warning|info|DEFINE_\w+|add_argument|exit)$")


def blocks_of_text(text, first, markdown):
    """Yields (line number, text) for each paragraph, list item or argument, without code, tables and headings."""
    block, start, fenced, code, blank = [], first, False, False, True
    for number, line in enumerate(text.splitlines(), first):
        indent = len(line) - len(line.lstrip())
        code = code if not line.strip() else indent >= 4 and (code or blank)
        is_code = fenced or code or re.match(r"\s*(```|>>>|\||#+ |!\[|<|\.\. )", line)
        fenced ^= line.lstrip().startswith("```")
        blank = not line.strip()
        begins = re.match(r"\s*([-*]|\d+\.)\s", line) or (LABEL.match(line) and not markdown)
        if blank or is_code or begins:
            yield start, "\n".join(block)
            block = []
        if not blank and not is_code:
            start = start if block else number
            block.append(re.sub(r"^\s*([-*]|\d+\.)\s", "", line if markdown else LABEL.sub("", line)))
    yield start, "\n".join(block)


def sentences(number, block):
    """Yields (line number, sentence) for each sentence of a block, with no space in a span in backticks."""
    block = re.sub(r"\]\([^)\s]*\)", "]", block)
    block = re.sub(r"`[^`]+`", lambda span: re.sub(r"[ \n]+", "\0", span[0]) + "\n" * span[0].count("\n"), block)
    words = [(i, word) for i, line in enumerate(block.split("\n"), number) for word in line.split()]
    begun = 0
    for i, (_, word) in enumerate(words):
        ends = re.search(r"[.!?][)\"'*\]]*$", word) and word.strip("()") not in ABBREVIATIONS.split()
        if i + 1 == len(words) or (ends and re.match(r"[^a-z]|\w+\.\w", words[i + 1][1])):
            yield words[begun][0], " ".join(word for _, word in words[begun : i + 1])
            begun = i + 1


def faults(number, block, is_message=False):
    """Yields (line number, rule, sentence) for each sentence of a block that breaks a rule."""
    for line, sentence in sentences(number, block):
        plain = re.sub(r"`[^`]*`(,?( and| or)? `[^`]*`)*", "X", sentence)
        if found := WORDS.search(plain):
            yield line, f"word '{found[0]}'", sentence
        if (count := sum(bool(re.search(r"\w", word)) for word in plain.split())) > 25:
            yield line, f"length {count}", sentence
        colons = re.findall(r"[:;](?=\s|$)", plain)
        if not is_message and (";" in colons or len(colons) > 1):
            yield line, "semicolon" if ";" in colons else "colon", sentence


def faults_of_python(text):
    """Yields (line number, rule, sentence) for the docstrings, messages and comments of a Python file."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call) and CALLS.search(ast.unparse(node.func)):
            for given in [*node.args, *(keyword.value for keyword in node.keywords)]:
                texts = (getattr(part, "value", "") for part in getattr(given, "values", [given]))
                message = "".join(text if isinstance(text, str) else "`x`" for text in texts)
                yield from faults(given.lineno, message.replace("\n", " "), is_message=True)
        if not isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) or not ast.get_docstring(node):
            continue
        docstring, first = ast.get_docstring(node), node.body[0].lineno
        word, decorators = docstring.split()[0], " ".join(map(ast.unparse, getattr(node, "decorator_list", [])))
        is_function = isinstance(node, ast.FunctionDef) and not re.search("property|fixture|_setting", decorators)
        is_wrong = VERB.match(word) if isinstance(node, ast.ClassDef) else is_function and not VERB.match(word)
        if word in FIRST.split() or (is_wrong and not node.name.startswith("test_")):
            yield first, "first word", docstring.partition("\n")[0]
        for number, block in blocks_of_text(docstring, first, markdown=False):
            yield from faults(number, block)
    block, tokens = [], tokenize.generate_tokens(io.StringIO(text).readline)
    tokens = [token for token in tokens if token.type == tokenize.COMMENT]
    for i, (line, column) in enumerate(token.start for token in tokens):
        block.append(tokens[i].string.lstrip("# "))
        if [token.start for token in tokens[i + 1 : i + 2]] != [(line + 1, column)]:
            if not re.match(r"!|(noqa|fmt|ruff|type)\b", block[0]):
                yield from faults(line + 1 - len(block), "\n".join(block))
            block.clear()


def main(paths):
    """Prints every fault of the files. Returns the exit code, 1 if there is a fault, else 0."""
    count = 0
    for file in [file for path in paths for file in (path.rglob("*.[pm][yd]") if path.is_dir() else [path])]:
        every = list(faults_of_python(file.read_text("utf-8"))) if file.suffix == ".py" else []
        for block in blocks_of_text(file.read_text("utf-8"), 1, markdown=True) if file.suffix == ".md" else ():
            every += faults(*block)
        for number, rule, sentence in sorted(every):
            print(f"{file}:{number}: {rule}: {' '.join(sentence.replace(chr(0), ' ').split())}")
            count += 1
    return int(count > 0)


if __name__ == "__main__":
    default = ".ci", "mnist", "scripts", "tests", "README.md"
    sys.exit(main([pathlib.Path(path) for path in sys.argv[1:] or default]))
