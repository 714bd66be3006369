"""Code for a card that loads the model and asks it about a row of the data, a few lines for each task."""

import json
import re
from dataclasses import dataclass
from typing import Any

from hf_transfer_plugin.record import TransferRecord

ADAPTER_CLASSES = {
    "AutoModelForSequenceClassification": "AutoPeftModelForSequenceClassification",
    "AutoModelForTokenClassification": "AutoPeftModelForTokenClassification",
    "AutoModelForQuestionAnswering": "AutoPeftModelForQuestionAnswering",
    "AutoModelForSeq2SeqLM": "AutoPeftModelForSeq2SeqLM",
    "AutoModelForCausalLM": "AutoPeftModelForCausalLM",
}
CLASSIFYING = ("AutoModelForSequenceClassification", "AutoModelForTokenClassification")
READ = ("AutoModelForTokenClassification", "AutoModelForQuestionAnswering")  # whose outputs the snippet reads itself
WRITING_KINDS = ("AutoModelForSeq2SeqLM", "AutoModelForCausalLM")
CAUSAL = ("ForCausalLM", "LMHeadModel")
TEXT = "Write your text here."
ASKED, BEGINNING = 1500, 160  # characters of a text that a card shows, and of a beginning to go on with
WRITTEN = 128
# A base in 16 bits would round what an adapter learned in 32, first of all the head.
PRECISION = 'dtype="float32"'

# PEFT has no auto class of every kind; pipelines do not know its wrapper of the others.
WRAPPING = """\
config = PeftConfig.from_pretrained({name})
base = {kind}.from_pretrained(config.base_model_name_or_path, revision=config.revision{sizes}, {precision})
model = PeftModel.from_pretrained(base, {name}).get_base_model()  # with the adapter in it"""
PIPELINE = "from transformers import pipeline\n\n{call} = pipeline({task}, model={name}{extra})\n"

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

HEARING = """\
{imports}
samples, rate = soundfile.read({file}, dtype="float32", always_2d=True)
wanted = {call}.feature_extractor.sampling_rate
sound = {{"raw": soxr.resample(samples.mean(1), rate, wanted), "sampling_rate": wanted}}
{ask}"""

SEARCHING = """\
from sentence_transformers import SentenceTransformer

model = SentenceTransformer({name})
query = {query}
texts = [
{texts}]
found = model.similarity(model.encode_query([query]), model.encode_document(texts))[0]
for place in found.argsort(descending=True):
    print(round(float(found[place]), 3), texts[place])"""


@dataclass(frozen=True)
class Source:
    """
    Where the model is loaded from.

    Args:
        name (`str`): Repository or folder, quoted.
        adapter (`bool`): Whether the weights are an adapter's.
        generation (`bool`): Whether an adapter has settings of its own for writing.
    """

    name: str
    adapter: bool
    generation: bool


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
    return made(record, Source(_quoted(model), adapter, generation)) if made else ""


def _quoted(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _classify(record: TransferRecord, source: Source) -> str:
    example = record.examples[0] if record.examples else {"text": TEXT}
    asked: Any = {role: value for role, value in example.items() if role != "label"}
    asked = asked["text"] if list(asked) == ["text"] else asked
    ask = f"print(classify({_quoted(asked)}, top_k=None))"
    return _pipeline(record, source, "classify", "AutoModelForSequenceClassification") + ask


def _tag(record: TransferRecord, source: Source) -> str:
    text = _quoted(_example(record, "text", ASKED))
    kind = "AutoModelForTokenClassification"
    if not any(tag.startswith(("B-", "I-")) for tag in record.class_names):
        return "import re\n\n" + _loading(record, source, kind) + TAGGING.format(text=text)
    # The first piece of a word has its tag, as in training.
    start = _pipeline(record, source, "tag", kind, ', aggregation_strategy="first"')
    return f'{start}for span in tag({text}):\n    print(span["word"], span["entity_group"], span["score"])'


def _answer(record: TransferRecord, source: Source) -> str:
    question = _quoted(_example(record, "question", ASKED))
    context = _quoted(_example(record, "context", ASKED))
    start = _loading(record, source, "AutoModelForQuestionAnswering")
    said = SAID_OR_NOT if record.options.get("no_answer") else SAID
    return start + ANSWERING.format(question=question, context=context, said=said)


def _write(record: TransferRecord, source: Source) -> str:
    """A summary or a translation, by a model of either kind."""
    text = _quoted(_example(record, "text", ASKED))
    prompt = record.options.get("prompt")
    asked = f'{_quoted(prompt)}.replace("{{text}}", text)' if prompt and prompt != "{text}" else "text"
    limit = int(record.options.get("max_target_length") or WRITTEN)
    if record.options.get("causal", record.model_class.endswith(CAUSAL)):
        start = _pipeline(record, source, "write", "AutoModelForCausalLM")
        return start + INSTRUCTING.format(text=text, asked=asked, limit=limit)
    start = _loading(record, source, "AutoModelForSeq2SeqLM")
    read = record.options.get("max_length")
    length = f", max_length={int(read)}" if read else ""
    return start + WRITING.format(text=text, asked=asked, length=length, limit=limit)


def _go_on(record: TransferRecord, source: Source) -> str:
    start = _pipeline(record, source, "write", "AutoModelForCausalLM")
    if not record.options.get("chat"):
        beginning = _quoted(_example(record, "text", BEGINNING))
        return f'{start}print(write({beginning}, max_new_tokens=60, do_sample=False)[0]["generated_text"])'
    message = _quoted({"role": "user", "content": _example(record, "text", ASKED)})
    limit = int(record.options.get("max_target_length") or WRITTEN)
    ask = f'print(write(messages, max_new_tokens={limit}, do_sample=False)[0]["generated_text"][-1]["content"])'
    return f"{start}messages = [{message}]\n{ask}"


def _fill(record: TransferRecord, source: Source) -> str:
    text = _example(record, "text", BEGINNING)
    if "<mask>" not in text and "[MASK]" not in text:
        words = text.split()
        text = " ".join([*words[: len(words) // 2], "[MASK]", *words[len(words) // 2 + 1 :]])
    text = text.replace("<mask>", "[MASK]")
    start = _pipeline(record, source, "fill", "AutoModelForMaskedLM")
    return (
        f'{start}text = {_quoted(text)}.replace("[MASK]", fill.tokenizer.mask_token)\n'
        'for guess in fill(text):\n    print(guess["token_str"], guess["score"])'
    )


def _look(record: TransferRecord, source: Source) -> str:
    given, name = next((row["image"] for row in record.examples if "image" in row), "picture.jpg"), source.name[1:-1]
    fetched = given != "picture.jpg" and re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name)
    file = f"https://huggingface.co/{name}/resolve/main/{given}" if fetched else given
    start = _media_pipeline(record, source, "classify", "AutoModelForImageClassification")
    return f"{start}print(classify({_quoted(file)}, top_k=None))"


def _search(record: TransferRecord, source: Source) -> str:
    query, texts = _example(record, "text", ASKED), [TEXT]
    if record.examples:
        texts = [str(row.get("text_pair") or row["text"])[:ASKED] for row in record.examples]
    listed = "".join(f"    {_quoted(text)},\n" for text in texts)
    return SEARCHING.format(name=source.name, query=_quoted(query), texts=listed)


def _hear(record: TransferRecord, source: Source) -> str:
    """Files are opened by soundfile, as in training: a pipeline would need ffmpeg, and torchaudio to resample."""
    classes = record.task == "audio-classification"
    call, ask = (
        ("classify", "print(classify(sound, top_k=None))")
        if classes
        else ("transcribe", 'print(transcribe(sound)["text"])')
    )
    kind = (
        "AutoModelForAudioClassification"
        if classes
        else ("AutoModelForCTC" if record.options.get("ctc") else "AutoModelForSpeechSeq2Seq")
    )
    given = next((row["audio"] for row in record.examples if "audio" in row), "sound.wav")
    file, start = _quoted(given), _media_pipeline(record, source, call, kind)
    fetched = given != "sound.wav" and re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", json.loads(source.name))
    imports = [
        "import soundfile",
        "import soxr",
        *(["from huggingface_hub import hf_hub_download"] if fetched else []),
    ]
    file = f"hf_hub_download({source.name}, {file})" if fetched else file
    return HEARING.format(imports="\n".join([*imports, start.rstrip()]), call=call, file=file, ask=ask)


def _media_pipeline(record: TransferRecord, source: Source, call: str, kind: str) -> str:
    if not source.adapter:
        return PIPELINE.format(call=call, task=_quoted(record.task), name=source.name, extra="")
    model, peft, own = _model_lines(record, source, kind)
    image = record.task == "image-classification"
    auto, part = ("AutoImageProcessor", "image_processor") if image else ("AutoFeatureExtractor", "feature_extractor")
    parts, names, given = [f"{part} = {auto}.from_pretrained({source.name})"], [auto], f"{part}={part}"
    if record.task == "automatic-speech-recognition":
        parts.append(f"tokenizer = AutoTokenizer.from_pretrained({source.name})")
        names, given = [*names, "AutoTokenizer"], f"{given}, tokenizer=tokenizer"
    imports = sorted([*names, *own, "pipeline"], key=lambda one: (one.islower(), one))
    head = [*([f"from peft import {peft}"] if peft else []), f"from transformers import {', '.join(imports)}", ""]
    return "\n".join([*head, *model, *parts, f"{call} = pipeline({_quoted(record.task)}, model=model, {given})", ""])


SNIPPETS = {
    "image-classification": _look,
    "audio-classification": _hear,
    "automatic-speech-recognition": _hear,
    "sentence-similarity": _search,
    "text-classification": _classify,
    "token-classification": _tag,
    "question-answering": _answer,
    "summarization": _write,
    "translation": _write,
    "text-generation": _go_on,
    "fill-mask": _fill,
}


def _shortest(record: TransferRecord) -> dict[str, Any]:
    return min(record.examples, key=lambda example: len(_quoted(example)), default={})


def _example(record: TransferRecord, role: str, limit: int) -> str:
    """What the shortest example has in a column; words that come as a list are joined."""
    value = _shortest(record).get(role) or TEXT
    text = " ".join(value) if isinstance(value, list) else str(value)
    return text if len(text) <= limit else text[:limit].rsplit(" ", 1)[0]


def _pipeline(record: TransferRecord, source: Source, call: str, kind: str, extra: str = "") -> str:
    task = _quoted("text-generation" if kind == "AutoModelForCausalLM" else record.task)
    if not source.adapter:
        return PIPELINE.format(call=call, task=task, name=source.name, extra=extra)
    start = _loading(record, source, kind, "pipeline")
    return f"{start}{call} = pipeline({task}, model=model, tokenizer=tokenizer{extra})\n"


def _loading(record: TransferRecord, source: Source, kind: str, *others: str) -> str:
    """Imports, the model and its tokenizer."""
    model, peft, own = _model_lines(record, source, kind)
    imports = sorted(["AutoTokenizer", *others, *own], key=lambda one: (one.islower(), one))
    languages = "".join(
        f", {argument}={_quoted(record.options[option])}"
        for option, argument in (("source_language", "src_lang"), ("target_language", "tgt_lang"))
        if record.options.get(option)
    )
    lines = [
        *(["import torch"] if kind in READ and not others else []),
        *([f"from peft import {peft}"] if peft else []),
        f"from transformers import {', '.join(imports)}",
        "",
        *model,
        f"tokenizer = AutoTokenizer.from_pretrained({source.name}{languages})",
    ]
    return "\n".join(lines) + "\n"


def _model_lines(record: TransferRecord, source: Source, kind: str) -> tuple[list[str], str, list[str]]:
    """What loads the model, and what it needs of PEFT and of Transformers."""
    name = source.name
    if not source.adapter:
        return [f"model = {kind}.from_pretrained({name})"], "", [kind]
    if kind not in ADAPTER_CLASSES:
        sizes = _sizes(record)
        return (
            [WRAPPING.format(kind=kind, name=name, sizes=sizes, precision=PRECISION)],
            "PeftConfig, PeftModel",
            [kind],
        )
    peft = ADAPTER_CLASSES[kind]
    labels = _labels(record) if kind in CLASSIFYING else ""
    lines = [f"model = {peft}.from_pretrained({name}{labels}, {PRECISION})"]
    if not (source.generation and kind in WRITING_KINDS):
        return lines, peft, []
    lines.append(f"model.get_base_model().generation_config = GenerationConfig.from_pretrained({name})")
    return lines, peft, ["GenerationConfig"]


def _sizes(record: TransferRecord) -> str:
    """What the head has that the adapter was trained with."""
    if record.class_names or record.problem_type:
        return _labels(record)
    given = "".join(f", {n}={record.options[n]}" for n in ("vocab_size", "pad_token_id") if n in record.options)
    return f"{given}, ignore_mismatched_sizes=True" if given else ""


def _labels(record: TransferRecord) -> str:
    """An adapter's repository has no config of the model, and its base may have an output layer for other classes."""
    named = ", ".join(f"{i}: {_quoted(name)}" for i, name in enumerate(record.class_names))
    labels = f", num_labels={len(record.class_names) or 1}" + (f", id2label={{{named}}}" if named else "")
    told = record.problem_type and record.problem_type != "single_label_classification"
    labels += f", problem_type={_quoted(record.problem_type)}" if told else ""
    return f"{labels}, ignore_mismatched_sizes=True"
