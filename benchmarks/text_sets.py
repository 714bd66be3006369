"""What is made of reviews, messages, papers, articles and translations; no row is in two splits."""

import random
from collections.abc import Sequence
from typing import Any

from benchmarks.text_brown import join_words
from benchmarks.text_sources import (
    read_messages,
    read_papers,
    read_reviews,
    read_translations,
    read_wikitext,
    split_apart,
    unique,
)

Rows = list[dict[str, Any]]
SPLITS = {"train": "train", "validation": "val", "test": "test"}
PAPER_WORDS = 320  # with the prompt and a summary about 512 tokens of SmolLM2
QUESTIONS = {
    "challenge": ("What problem does the paper address?", "What was the challenge?"),
    "approach": ("How do the authors go about it?", "What is their approach?"),
    "outcome": ("What came out of it?", "What was the outcome?"),
}


def reviews_and_messages(reviews: Sequence[tuple[str, int]], messages: Sequence[tuple[str, int]], seed: int) -> Rows:
    """
    Rows of one review, one message, or one of both in any order, a third each. The labels are what is known of the
    parts: `review` and `positive`, `message` and `spam`.

    Args:
        reviews (`Sequence[tuple[str, int]]`):
            Texts with 1 for positive.
        messages (`Sequence[tuple[str, int]]`):
            Texts with 1 for spam, as many as reviews.
        seed (`int`):
            Seed of the order.

    Returns:
        `list[dict]`: Rows of `text` and `labels`; every text is in one row only.
    """
    random_state = random.Random(seed)
    rows: Rows = []
    for number, ((review, positive), (message, spam)) in enumerate(zip(reviews, messages, strict=True)):
        first = (review, ["review"] + ["positive"] * positive)
        second = (message, ["message"] + ["spam"] * spam)
        if number % 2:
            rows += [{"text": text, "labels": labels} for text, labels in (first, second)]
        else:
            parts = [first, second] if random_state.random() < 0.5 else [second, first]
            rows.append({"text": "\n".join(text for text, _ in parts), "labels": [w for _, ws in parts for w in ws]})
    random_state.shuffle(rows)
    return rows


def make_reviews_and_messages(sizes: Sequence[int]) -> dict[str, Rows]:
    """A quarter of the messages are spam: more than in the source, where it is an eighth."""
    reviews = unique(read_reviews(), lambda row: row[0])
    messages = unique(read_messages(), lambda row: row[0])
    # Three rows come of two reviews and two messages.
    texts = [-(-2 * size // 3) + 1 for size in sizes]
    spam = split_apart([row for row in messages if row[1]], [-(-count // 4) for count in texts])
    ham = split_apart([row for row in messages if not row[1]], [count - -(-count // 4) for count in texts])
    reviewed = split_apart(reviews, texts)
    found = {}
    for seed, (split, size) in enumerate(zip(reviewed, sizes, strict=True)):
        mixed = [*spam[split], *ham[split]]
        random.Random(seed).shuffle(mixed)
        found[split] = reviews_and_messages(reviewed[split], mixed, seed)[:size]
    return found


def make_review_texts(sizes: Sequence[int]) -> dict[str, Rows]:
    """Reviews without their labels."""
    texts = unique([text for text, _ in read_reviews()], str)
    return {split: [{"text": text} for text in rows] for split, rows in split_apart(texts, sizes).items()}


def opening(paper: dict[str, Any], words: int) -> str:
    """
    Args:
        paper (`dict`):
            A paper of ACLSum.
        words (`int`):
            Words at most.

    Returns:
        `str`: Its abstract and the first sentences of its introduction, whole sentences.
    """
    kept: list[str] = []
    for sentence in [*paper["sentences"]["abstract"], *paper["sentences"]["introduction"]]:
        if kept and len(kept) + len(sentence.split()) > words:
            break
        kept += sentence.split()
    return join_words(kept)[0]


def make_summaries() -> dict[str, Rows]:
    """Abstract and start of the introduction, with the sentence on the outcome that ACLSum's annotators wrote."""
    return {
        split: [{"text": opening(p, PAPER_WORDS), "target": p["summary"]["outcome"]} for p in read_papers(name)]
        for split, name in SPLITS.items()
    }


def short_translations() -> list[tuple[str, str, str]]:
    """English of 4 to 15 words with one Spanish sentence each, neither twice."""
    rows = [row for row in read_translations() if 4 <= len(row[0].split()) <= 15]
    return unique(rows, lambda row: row[0], lambda row: row[1])


def make_translations(sizes: Sequence[int]) -> dict[str, Rows]:
    """English to Spanish; the attribution that the licence asks for stays with each row."""
    return {
        split: [{"text": english, "target": spanish, "attribution": by} for english, spanish, by in rows]
        for split, rows in split_apart(short_translations(), sizes).items()
    }


def make_wikitext(characters: dict[str, int]) -> dict[str, Rows]:
    """The first paragraphs of each split as they are, down to `@-@` and `<unk>`; headings and blank lines are left."""
    found: dict[str, Rows] = {}
    for split, limit in characters.items():
        rows: Rows = []
        used = 0
        for line in read_wikitext({"validation": "valid"}.get(split, split)):
            text = line.strip()
            if len(text.split()) < 20 or text.startswith("= "):
                continue
            used += len(text)
            if used > limit:
                break
            rows.append({"text": text})
        found[split] = rows
    return found


def paper_chat(paper: dict[str, Any], random_state: random.Random) -> Rows:
    """
    A conversation about an abstract: two questions, answered with the sentences that ACLSum's annotators wrote.

    Args:
        paper (`dict`):
            A paper of ACLSum.
        random_state (`Random`):
            Chooses questions and words.

    Returns:
        `list[dict]`: Messages of `role` and `content`.
    """
    chosen = random_state.sample(list(QUESTIONS), 2)
    text = f'Here is the start of the paper "{paper["title"]}": {opening(paper, 150)}\n\n'
    messages: Rows = []
    for aspect in sorted(chosen, key=list(QUESTIONS).index):
        question = random_state.choice(QUESTIONS[aspect])
        messages += [
            {"role": "user", "content": question if messages else text + question},
            {"role": "assistant", "content": paper["summary"][aspect]},
        ]
    return messages


def translation_chat(rows: Sequence[tuple[str, str, str]], random_state: random.Random) -> Rows:
    """
    A conversation that asks for one translation after the other; half of them begin with a system message.

    Args:
        rows (`Sequence[tuple[str, str, str]]`):
            English, Spanish, and who wrote them.
        random_state (`Random`):
            Chooses direction and words.

    Returns:
        `list[dict]`: Messages of `role` and `content`.
    """
    spanish = random_state.random() < 0.7
    language = "Spanish" if spanish else "English"
    system = [{"role": "system", "content": f"You translate into {language}."}]
    messages: Rows = system if random_state.random() < 0.5 else []
    for number, (english, other, _) in enumerate(rows):
        source, answer = (english, other) if spanish else (other, english)
        asked = f"Please translate into {language}: {source}" if not number else f"And this: {source}"
        messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
    return messages


def make_conversations(sizes: Sequence[int]) -> dict[str, Rows]:
    """
    Conversations of one or two questions, built from real text by fixed phrases: two of every paper of ACLSum in
    train and one of the first 50 elsewhere, the rest of Tatoeba. Nobody held them.
    """
    found: dict[str, Rows] = {}
    pairs = split_apart(short_translations(), [2 * size for size in sizes], seed=1)
    for seed, (split, size) in enumerate(zip(SPLITS, sizes, strict=True)):
        random_state = random.Random(seed)
        papers = read_papers(SPLITS[split])
        rows = [paper_chat(paper, random_state) for paper in (2 * papers if split == "train" else papers[:50])]
        left = iter(pairs[split])
        while len(rows) < size:
            rows.append(translation_chat([next(left) for _ in range(random_state.randint(1, 2))], random_state))
        random_state.shuffle(rows)
        found[split] = [{"messages": messages} for messages in rows[:size]]
    return found
