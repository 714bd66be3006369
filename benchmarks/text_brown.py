"""
What is made of the Brown corpus: tags, names, pairs of passages, and questions whose answers are spans.

The documents are split first (stratified by genre), so that no document is in two splits. Tags are the corpus's own.
Names, pairs and questions are derived from it by the rules written here; nobody annotated them for these tasks.
"""

import random
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from benchmarks.text_sources import Sentence, unique

Split = dict[str, list[Sentence]]
# The corpus has 166 tags without their additions; the first prefix that fits decides. As in universal tag sets, "to"
# is a particle, auxiliaries are verbs, possessives of nouns are nouns.
CLASSES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("X", ("fw", "nil")),
    ("NOUN", ("nn", "np", "nr")),
    ("PRT", ("to", "rp")),
    ("VERB", ("vb", "be", "hv", "do", "md")),
    ("ADV", ("rb", "rn", "ql", "wrb", "wql", "*")),
    ("PRON", ("pn", "pp", "wp", "ex")),
    ("DET", ("at", "dt", "ab", "ap", "wdt")),
    ("ADJ", ("jj", "od")),
    ("NUM", ("cd",)),
    ("ADP", ("in",)),
    ("CONJ", ("cc", "cs")),
    ("INTJ", ("uh",)),
)
LONGEST = 60  # words of a sentence
PASSAGE = 40  # words that a passage reaches with whole sentences
GAP = "___"
NO_SPACE_BEFORE = {",", ".", ";", ":", "?", "!", ")", "%"}


def split_documents(sentences: Sequence[Sentence], *, seed: int = 0) -> dict[str, Split]:
    """
    Draws 15% of every genre's documents for validation and as many for test.

    Args:
        sentences (`Sequence[Sentence]`):
            The corpus.
        seed (`int`, *optional*, defaults to 0):
            Seed of the draw.

    Returns:
        `dict[str, dict[str, list[Sentence]]]`: Split -> document -> its sentences.
    """
    documents: Split = defaultdict(list)
    for sentence in sentences:
        documents[sentence.document].append(sentence)
    splits: dict[str, Split] = {"train": {}, "validation": {}, "test": {}}
    random_state = random.Random(seed)
    for genre in sorted({genre_of(name) for name in documents}):
        names = sorted(name for name in documents if genre_of(name) == genre)
        random_state.shuffle(names)
        held = max(1, round(0.15 * len(names)))
        for number, name in enumerate(names):
            split = "validation" if number < held else "test" if number < 2 * held else "train"
            splits[split][name] = documents[name]
    return splits


def genre_of(document: str) -> str:
    """
    Args:
        document (`str`):
            Such as `ca01`.

    Returns:
        `str`: Its genre's letter.
    """
    return document[1]


def coarse_tag(tag: str) -> str:
    """
    One of 13 classes for a tag of the corpus; what stands in no list (punctuation) is `PUNCT`.

    Args:
        tag (`str`):
            Such as `nn-tl` or `ppss+md`; additions after `-` go, and of joined words the first decides.

    Returns:
        `str`: The class.
    """
    first = tag.split("-")[0].split("+")[0]
    for name, prefixes in CLASSES:
        if first.startswith(prefixes):
            return name
    return "PUNCT"


def name_tags(tags: Sequence[str]) -> list[str]:
    """
    Marks every run of proper nouns (`np`, also plural or possessive) as one name.

    Args:
        tags (`Sequence[str]`):
            The corpus's tags of a sentence.

    Returns:
        `list[str]`: `B-NAME`, `I-NAME` or `O` for every word.
    """
    proper = [tag.startswith("np") for tag in tags]
    return [
        "O" if not here else "I-NAME" if number and proper[number - 1] else "B-NAME"
        for number, here in enumerate(proper)
    ]


def join_words(words: Sequence[str]) -> tuple[str, list[tuple[int, int]]]:
    """
    Writes words as running text, without spaces before punctuation and inside of quotes.

    Args:
        words (`Sequence[str]`):
            The words.

    Returns:
        `tuple[str, list[tuple[int, int]]]`: The text, and where each word starts and ends in it.
    """
    text, spans, glue = "", [], True
    for word in words:
        closing = word == "''" or word in NO_SPACE_BEFORE
        written = '"' if word in {"``", "''"} else word
        text += "" if glue or closing else " "
        spans.append((len(text), len(text) + len(written)))
        text += written
        glue = word in {"``", "("}
    return text, spans


def draw_sentences(documents: Split, count: int, seed: int) -> list[Sentence]:
    """Draws sentences of 4 to 60 words, no two alike."""
    fitting = [s for sentences in documents.values() for s in sentences if 4 <= len(s.words) <= LONGEST]
    return random.Random(seed).sample(unique(fitting, lambda s: " ".join(s.words)), count)


def tagged_rows(splits: dict[str, Split], sizes: Sequence[int], *, names: bool, seed: int = 0) -> dict[str, list[Any]]:
    """
    Words with the class of each, or with the proper names among them.

    Args:
        splits (`dict`):
            The documents.
        sizes (`Sequence[int]`):
            Rows of each split.
        names (`bool`):
            Whether tags are names (IOB2) or classes of words.
        seed (`int`, *optional*, defaults to 0):
            Seed of the draw.

    Returns:
        `dict[str, list[dict]]`: Rows of `tokens` and `tags`, no sentence in two splits.
    """
    found: dict[str, list[Any]] = {}
    earlier: set[tuple[str, ...]] = set()
    for (split, documents), size in zip(splits.items(), sizes, strict=True):
        # Short sentences such as "He laughed." stand in several documents.
        drawn = [s for s in draw_sentences(documents, size + 100, seed) if tuple(s.words) not in earlier][:size]
        earlier |= {tuple(s.words) for s in drawn}
        found[split] = [
            {"tokens": s.words, "tags": name_tags(s.tags) if names else [coarse_tag(tag) for tag in s.tags]}
            for s in drawn
        ]
    return found


def passages(documents: Split) -> dict[str, list[str]]:
    """
    Cuts documents into passages of whole sentences that do not overlap.

    Args:
        documents (`dict[str, list[Sentence]]`):
            The documents.

    Returns:
        `dict[str, list[str]]`: Passages of at least 40 and at most 100 words of each document.
    """
    found: dict[str, list[str]] = {}
    for name, sentences in documents.items():
        found[name], words = [], []
        for sentence in sentences:
            words += sentence.words
            if len(words) >= PASSAGE:
                found[name] += [join_words(words)[0]] if len(words) <= 100 else []
                words = []
    return found


def pair_rows(documents: Split, count: int, *, scored: bool, seed: int = 0) -> list[dict[str, Any]]:
    """
    Pairs of passages, every passage in one pair only. With a score: 1 for the same document, 0.5 for another document
    of the same genre, 0 for another genre, a third of the pairs each. Without: `label` is `same document` or
    `different documents` (any other one), half each.

    Args:
        documents (`dict[str, list[Sentence]]`):
            The documents of a split.
        count (`int`):
            Pairs.
        scored (`bool`):
            Whether pairs have a `score` or a `label`.
        seed (`int`, *optional*, defaults to 0):
            Seed of the draw.

    Returns:
        `list[dict]`: Rows of `text`, `text_pair` and `score` or `label`.
    """
    random_state = random.Random(seed)
    left = passages(documents)
    for texts in left.values():
        random_state.shuffle(texts)
    kinds = (1.0, 0.5, 0.0) if scored else ("same document", "different documents")
    rows: list[dict[str, Any]] = []
    while len(rows) < count:
        kind = kinds[len(rows) % len(kinds)]
        first = random_state.choice([name for name, texts in left.items() if len(texts) > 1])
        others = [name for name, texts in left.items() if texts and name != first]
        if kind in {0.5, 0.0}:
            others = [name for name in others if (genre_of(name) == genre_of(first)) == (kind == 0.5)]
        if not others:  # the only document of its genre
            continue
        second = first if kind in {1.0, "same document"} else random_state.choice(others)
        pair = {"text": left[first].pop(), "text_pair": left[second].pop()}
        rows.append({**pair, "score" if scored else "label": kind})
    random_state.shuffle(rows)
    return rows


def gap_question(sentence: Sentence) -> list[tuple[str, int, int, str]]:
    """
    All questions that a sentence gives: its names and numbers, each taken out of the words around it.

    Args:
        sentence (`Sentence`):
            The sentence.

    Returns:
        `list[tuple[str, int, int, str]]`: Question, first and last word of the answer, and the possessive ending that
        is no part of the answer.
    """
    words, found = sentence.words, []
    names, numbers = name_tags(sentence.tags), [tag.split("-")[0] == "cd" for tag in sentence.tags]
    starts = [i for i, tag in enumerate(names) if tag == "B-NAME"]
    starts += [i for i, here in enumerate(numbers) if here and not (i and numbers[i - 1])]
    for start in starts:
        end = start
        same = (lambda i: numbers[i]) if numbers[start] else (lambda i: names[i] == "I-NAME")
        while end + 1 < len(words) and same(end + 1):
            end += 1
        ending = next((e for e in ("'s", "'") if "$" in sentence.tags[end] and words[end].endswith(e)), "")
        around = [*words[max(0, start - 7) : start], GAP + ending, *words[end + 1 : end + 8]]
        answer = words[start : end + 1]
        if len(around) < 7 or set(answer) & set(around) or answer[0].lower() in {"one", "two"}:
            continue
        kind = "number" if numbers[start] else "name"
        text = join_words([w for w in around if w not in {"``", "''"}])[0].rstrip(" .;,:!?")
        found.append((f"Which {kind} fills the gap: {text}?", start, end, ending))
    return found


def question_rows(documents: Split, count: int, *, seed: int = 0) -> list[dict[str, Any]]:
    """
    Questions with the context that answers them, in SQuAD's form. A question is a piece of a sentence with a gap where
    a name or a number stood. The context is that sentence with its neighbours: 1 to 6 sentences, or for one question
    in five 16 to 24. Every seventh question gets the context of another document and so has no answer.

    Args:
        documents (`dict[str, list[Sentence]]`):
            The documents of a split.
        count (`int`):
            Questions.
        seed (`int`, *optional*, defaults to 0):
            Seed of the draw.

    Returns:
        `list[dict]`: Rows of `id`, `title`, `question`, `context` and `answers` (`text` and `answer_start`).
    """
    random_state = random.Random(seed)
    asked = [
        (name, number, random_state.choice(questions))
        for name, sentences in documents.items()
        for number, sentence in enumerate(sentences)
        if len(sentence.words) <= LONGEST and (questions := gap_question(sentence))
    ]
    asked = random_state.sample(unique(asked, lambda row: row[2][0]), 2 * count)
    rows: list[dict[str, Any]] = []
    for name, number, (question, start, end, ending) in asked:
        answerable = len(rows) % 7 != 6
        length = random_state.randint(16, 24) if random_state.random() < 0.2 else random_state.randint(1, 6)
        where = name if answerable else random_state.choice([other for other in documents if other != name])
        sentences = documents[where]
        around = number if answerable else random_state.randrange(len(sentences))
        first = random_state.randint(max(0, around - length + 1), around)
        window = sentences[first : first + length]
        context, spans = join_words([word for sentence in window for word in sentence.words])
        answers: dict[str, list[Any]] = {"text": [], "answer_start": []}
        if answerable:
            before = sum(len(sentence.words) for sentence in sentences[first:number])
            begin, finish = spans[before + start][0], spans[before + end][1] - len(ending)
            answers = {"text": [context[begin:finish]], "answer_start": [begin]}
        elif " ".join(documents[name][number].words[start : end + 1]) in context:
            continue
        identity = f"{name}-{number}" + ("" if answerable else f"-in-{where}")
        rows.append({"id": identity, "title": where, "question": question, "context": context, "answers": answers})
    return rows[:count]


def as_squad(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """
    The same questions as SQuAD 2.0 nests them.

    Args:
        rows (`Sequence[dict]`):
            Rows of [`question_rows`].

    Returns:
        `dict`: `version` and `data`: titles, their paragraphs, their questions.
    """
    data: dict[str, dict[str, list[Any]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        texts, starts = row["answers"]["text"], row["answers"]["answer_start"]
        answers = [{"text": text, "answer_start": start} for text, start in zip(texts, starts, strict=True)]
        asked = {"id": row["id"], "question": row["question"], "answers": answers, "is_impossible": not answers}
        data[row["title"]][row["context"]].append(asked)
    return {
        "version": "v2.0",
        "data": [
            {"title": title, "paragraphs": [{"context": c, "qas": asked} for c, asked in contexts.items()]}
            for title, contexts in data.items()
        ],
    }
