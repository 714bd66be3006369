"""Code for a card that loads the model and asks it about a row of the data, a few lines for each task."""

from typing import Any

from hf_transfer_plugin.hub.media_snippets import detect, hear, look, segment
from hf_transfer_plugin.hub.snippet_loading import TEXT, Source, example, loading, pipeline, quoted
from hf_transfer_plugin.hub.table_rows import asking, is_table
from hf_transfer_plugin.record import TransferRecord

CAUSAL = ("ForCausalLM", "LMHeadModel")
ASKED, BEGINNING = 1500, 160  # characters of a text that a card shows, and of a beginning to go on with
WRITTEN = 128
TAGGING = """\
text = {text}
inputs = tokenizer(text, truncation=True, return_offsets_mapping=True, return_tensors="pt")
offsets = inputs.pop("offset_mapping")[0].tolist()
with torch.no_grad():
    best = model(**inputs).logits[0].argmax(-1).tolist()
pieces = [place for place, part in enumerate(inputs.sequence_ids()) if part is not None]
for word in re.finditer(r"\\S+", text):
    # The first piece of a word has its tag; the space before the word may be that piece, or in it.
    first = [at for at in pieces if offsets[at][0] < word.end() and offsets[at][1] >= word.start()][:1]
    for place in first:  # none, if the model does not read so far
        print(word.group(), model.config.id2label[best[place]])"""

ANSWERING = """\
question = {question}
context = {context}
inputs = tokenizer(question, context, truncation="only_second", return_offsets_mapping=True, return_tensors="pt")
offsets = inputs.pop("offset_mapping")[0].tolist()
with torch.no_grad():
    outputs = model(**inputs)
outside = torch.tensor([part != 1 for part in inputs.sequence_ids()])
start, end = (logits[0].masked_fill(outside, -1e9) for logits in (outputs.start_logits, outputs.end_logits))
# The best span of at most 30 tokens that does not end before it starts.
spans = torch.ones(len(start), len(end), dtype=torch.bool).triu().tril(29)
scores = (start[:, None] + end).masked_fill(~spans, -1e9)
first, last = divmod(int(scores.argmax()), len(end))
{said}"""
SAID = "print(context[offsets[first][0] : offsets[last][1]])"
SAID_OR_NOT = """\
no_answer = outputs.start_logits[0, 0] + outputs.end_logits[0, 0]  # the first token stands for none
print("no answer" if no_answer > scores.max() else context[offsets[first][0] : offsets[last][1]])"""

WRITING = """\
text = {text}
inputs = tokenizer({asked}, truncation=True{length}, return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens={limit})[0], skip_special_tokens=True))"""

INSTRUCTING = """\
text = {text}
asked = {asked}
asked = [{{"role": "user", "content": asked}}] if write.tokenizer.chat_template else asked + "\\n"
print(write(asked, max_new_tokens={limit}, do_sample=False, return_full_text=False)[0]["generated_text"])"""

SEARCHING = """\
from sentence_transformers import SentenceTransformer

model = SentenceTransformer({name})
query = {query}
texts = [
{texts}]
found = model.similarity(model.encode_query([query]), model.encode_document(texts))[0]
for place in found.argsort(descending=True):
    print(round(float(found[place]), 3), texts[place])"""


def getting_started(record: TransferRecord, model: str, *, adapter: bool, generation: bool = False) -> str:
    """
    Code that loads the model and asks it about an example.

    Args:
        record (`TransferRecord`):
            The record.
        model (`str`):
            Repository or folder.
        adapter (`bool`):
            Whether the weights are an adapter's.
        generation (`bool`, *optional*, defaults to `False`):
            Whether an adapter has settings of its own for writing; a whole model's are loaded with it.

    Returns:
        `str`: Python, or nothing for a task without such code.
    """
    made = SNIPPETS.get(record.task)
    return made(record, Source(quoted(model), adapter, generation)) if made else ""


def _classify(record: TransferRecord, source: Source) -> str:
    start = pipeline(record, source, "classify", "AutoModelForSequenceClassification")
    if is_table(record):
        return f"import math\n\n{start}\n\n{asking(record)}"
    example = record.examples[0] if record.examples else {"text": TEXT}
    asked: Any = {role: value for role, value in example.items() if role != "label"}
    asked = asked["text"] if list(asked) == ["text"] else asked
    return f"{start}print(classify({quoted(asked)}, top_k=None))"


def _tag(record: TransferRecord, source: Source) -> str:
    text = quoted(example(record, "text", ASKED))
    kind = "AutoModelForTokenClassification"
    if not any(tag.startswith(("B-", "I-")) for tag in record.class_names):
        return "import re\n\n" + loading(record, source, kind) + TAGGING.format(text=text)
    # The first piece of a word has its tag, as in training.
    start = pipeline(record, source, "tag", kind, ', aggregation_strategy="first"')
    return f'{start}for span in tag({text}):\n    print(span["word"], span["entity_group"], span["score"])'


def _answer(record: TransferRecord, source: Source) -> str:
    question = quoted(example(record, "question", ASKED))
    context = quoted(example(record, "context", ASKED))
    start = loading(record, source, "AutoModelForQuestionAnswering")
    said = SAID_OR_NOT if record.options.get("no_answer") else SAID
    return start + ANSWERING.format(question=question, context=context, said=said)


def _write(record: TransferRecord, source: Source) -> str:
    """A summary or a translation, by a model of either kind."""
    text = quoted(example(record, "text", ASKED))
    prompt = record.options.get("prompt")
    asked = f'{quoted(prompt)}.replace("{{text}}", text)' if prompt and prompt != "{text}" else "text"
    limit = int(record.options.get("max_target_length") or WRITTEN)
    if record.options.get("causal", record.model_class.endswith(CAUSAL)):
        start = pipeline(record, source, "write", "AutoModelForCausalLM")
        return start + INSTRUCTING.format(text=text, asked=asked, limit=limit)
    start = loading(record, source, "AutoModelForSeq2SeqLM")
    read = record.options.get("max_length")
    length = f", max_length={int(read)}" if read else ""
    return start + WRITING.format(text=text, asked=asked, length=length, limit=limit)


def _go_on(record: TransferRecord, source: Source) -> str:
    start = pipeline(record, source, "write", "AutoModelForCausalLM")
    if not record.options.get("chat"):
        beginning = quoted(example(record, "text", BEGINNING))
        return f'{start}print(write({beginning}, max_new_tokens=60, do_sample=False)[0]["generated_text"])'
    message = quoted({"role": "user", "content": example(record, "text", ASKED)})
    limit = int(record.options.get("max_target_length") or WRITTEN)
    ask = f'print(write(messages, max_new_tokens={limit}, do_sample=False)[0]["generated_text"][-1]["content"])'
    return f"{start}messages = [{message}]\n{ask}"


def _fill(record: TransferRecord, source: Source) -> str:
    text = example(record, "text", BEGINNING)
    if "<mask>" not in text and "[MASK]" not in text:
        words = text.split()
        text = " ".join([*words[: len(words) // 2], "[MASK]", *words[len(words) // 2 + 1 :]])
    text = text.replace("<mask>", "[MASK]")
    start = pipeline(record, source, "fill", "AutoModelForMaskedLM")
    return (
        f'{start}text = {quoted(text)}.replace("[MASK]", fill.tokenizer.mask_token)\n'
        'for guess in fill(text):\n    print(guess["token_str"], guess["score"])'
    )


def _search(record: TransferRecord, source: Source) -> str:
    query, texts = example(record, "text", ASKED), [TEXT]
    if record.examples:
        texts = [str(row.get("text_pair") or row["text"])[:ASKED] for row in record.examples]
    listed = "".join(f"    {quoted(text)},\n" for text in texts)
    return SEARCHING.format(name=source.name, query=quoted(query), texts=listed)


SNIPPETS = {
    "object-detection": detect,
    "image-classification": look,
    "image-segmentation": segment,
    "zero-shot-image-classification": look,
    "audio-classification": hear,
    "automatic-speech-recognition": hear,
    "sentence-similarity": _search,
    "text-classification": _classify,
    "token-classification": _tag,
    "question-answering": _answer,
    "summarization": _write,
    "translation": _write,
    "text-generation": _go_on,
    "fill-mask": _fill,
}
