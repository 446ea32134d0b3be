"""The pages and the public docstrings are plain English: short sentences with a plain subject."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator

import pytest
from documents import GUIDE, PAGES, ROOT, TEXTS
from reference import CLASSES, FUNCTIONS

from trio_wasmcache._core.event_kinds import EVENTS
from trio_wasmcache._public import described_fields

LONGEST = 40
"""Number of words of a sentence, at most."""
# A sentence whose subject is a clause, or begins with one, has to be read twice.
CLAUSE = re.compile(r"(What|Whatever|Who|Whoever|Whose|Whichever|How)\b[^?]*$")
# Words that say something else than they mean, and those that mean it.
BETTER = {
    r"so many|so much": "a number, or this many",
    r"such as it is": "nothing",
    r"spoil[a-z]*": "unusable",
    r"told|tells?": "reported, says, or the message",
    r"save for|, save": "except",
    r"stead": "instead",
}
BLOCK = re.compile(r"```.*?```|<!-- figures -->.*?<!-- end of figures -->", re.DOTALL)
CODE = re.compile(r"``.*?``|`[^`\n]*`|\[([^\]]*)\]\([^)]*\)")


def sentences(text: str) -> Iterator[str]:
    """The sentences of a paragraph; code counts as one word."""
    plain = CODE.sub(lambda found: found[1] or "CODE", text).replace("**", "")
    for part in re.split(r"(?<=[.?!:;])\s+(?=[A-Z])", " ".join(plain.split())):
        yield part.strip()


# A cell that is a list of names is no sentence.
NAMES = re.compile(r"\s*(`[^`]+`(, )?)+\s*")


def problems(text: str) -> Iterator[str]:
    """What is wrong with the sentences of a paragraph."""
    for sentence in sentences(text):
        if CLAUSE.match(sentence):
            yield f"its subject is a clause: {sentence}"
        if len(sentence.split()) > LONGEST:
            yield f"it has {len(sentence.split())} words: {sentence}"
        for word, better in BETTER.items():
            if re.search(rf"\b({word})\b", sentence):
                yield f"{word} is better said as {better}: {sentence}"


def paragraphs(text: str) -> Iterator[str]:
    """The paragraphs, items and cells of a page, without code and headings."""
    for line in BLOCK.sub("", text).splitlines():
        if line.startswith(("    ", "#", "<!--", "- [")):
            continue
        if line.startswith("|"):
            cells = line.strip("|").split(" | ")
            yield from (cell for cell in cells if not NAMES.fullmatch(cell))
        else:
            yield re.sub(r"^[-*] +", "", line)


def test_pages() -> None:
    """Each sentence can be read once, in the changelog, too."""
    changelog = ROOT / "CHANGELOG.md"
    found = [
        f"{page.relative_to(ROOT)}: {problem}"
        for page, text in {**TEXTS, changelog: changelog.read_text()}.items()
        if page in (*PAGES, changelog)
        for paragraph in paragraphs(text)
        for problem in problems(paragraph)
    ]
    assert not found, "\n".join(found)


def has_several_sentences(line: str) -> bool:
    """Whether a line of Markdown has more than one; bold labels and brackets do not count."""
    plain = re.sub(r"\([^()]*\)", "()", CODE.sub(lambda found: found[1] or "CODE", line))
    return bool(re.search(r"(?<!\d)[.!?] +(?=[A-Z(0-9])", plain))


def test_each_sentence_of_a_page_has_a_line_of_its_own() -> None:
    """So that a change shows which sentence has changed."""
    found = [
        f"{page.relative_to(ROOT)}: {line}"
        for page in PAGES
        for line in BLOCK.sub("", TEXTS[page]).splitlines()
        if not line.startswith(("    ", "#", "|", "<!--")) and has_several_sentences(line)
    ]
    assert not found, "\n".join(found)
    assert has_several_sentences("It is `so`. `That` follows.")
    assert not has_several_sentences("- **Label.** One (in brackets. Another), with Python 3. 11")


def docstrings() -> dict[str, str]:
    """{name: docstring} of public classes, functions and methods, of events, and of fields."""
    found = {path: thing.__doc__ for path, thing in CLASSES.items()}
    found |= {path: function.__doc__ for path, (_, function) in FUNCTIONS.items()}
    found |= {event.__name__: event.__doc__ for event in EVENTS}
    texts = {
        path: inspect.cleandoc(doc).partition("\nFields:")[0] for path, doc in found.items() if doc
    }
    for cls in (*CLASSES.values(), *EVENTS):
        fields = described_fields(cls).items()
        texts |= {f"{cls.__name__}.{name}": field.text for name, field in fields}
    return texts


def test_public_docstrings() -> None:
    """Each sentence can be read once; examples, which are indented code, are left out."""
    found = []
    for path, doc in docstrings().items():
        text = re.sub(r"\.\. code-block::\n\n(?: +.*\n|\n)+", "\n", doc)
        for paragraph in re.split(r"\n\s*\n|\n(?=\s+\S+: )|\n- ", text):
            found += [f"{path}: {problem}" for problem in problems(paragraph)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "text",
    [
        "Who waits gets the new one.",
        "It is well. What does not fit is refused.",
        "The instance is not spoilt.",
        f"It is {'very ' * LONGEST}long.",
    ],
)
def test_what_has_to_be_read_twice_is_found(text: str) -> None:
    """Each kind, wherever it stands."""
    assert [*problems(text)]


def test_questions_and_code_may_be() -> None:
    """A question may begin with what it asks for."""
    assert not [*problems("What fits? See `What.told` and ``so many``. It fits.")]
    assert GUIDE in TEXTS
