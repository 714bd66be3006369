"""What the Hub says about the YAML of a card: errors refuse the push, warnings do not."""

import re

from tests.local_hub.storage import front_matter

COLORS = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}
KNOWN = """
apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigcode-openrail-m afl-3.0 artistic-2.0 bsl-1.0 bsd
bsd-2-clause bsd-3-clause cc cc0-1.0 cc-by-2.0 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0
cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-4.0 cc-by-nc-sa-4.0 wtfpl epl-2.0 eupl-1.2 agpl-3.0 gpl gpl-2.0 gpl-3.0 lgpl
lgpl-2.1 lgpl-3.0 isc llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 gemma ms-pl mpl-2.0 odc-by odbl ofl-1.1 pddl
ncsa unlicense zlib unknown other
"""
LICENCES = set(KNOWN.split())
RELATIONS = {"finetune", "adapter", "quantized", "merge"}
REPO_ID = re.compile(r"([\w-][\w.-]*/)?[\w-][\w.-]*")


def listed(value):
    return value if isinstance(value, list) else [] if value is None else [value]


def model_errors(data):
    for value in listed(data.get("base_model")):
        if not isinstance(value, str) or not REPO_ID.fullmatch(value):
            yield f'"base_model" with value "{value}" is not valid. Use a model id from https://hf.co/models.'
    relation = data.get("base_model_relation")
    if relation is not None and relation not in RELATIONS:
        yield f'"base_model_relation" must be one of {sorted(RELATIONS)}'
    for entry in listed(data.get("model-index")):
        if not isinstance(entry, dict) or "name" not in entry or not isinstance(entry.get("results", []), list):
            yield '"model-index" must be a list of entries with "name" and "results"'


def space_errors(data):
    for key in ("colorFrom", "colorTo"):
        if key in data and data[key] not in COLORS:
            yield f'"{key}" must be one of [{", ".join(sorted(COLORS))}]'
    if data.get("sdk") not in {"gradio", "docker", "static"}:
        yield '"sdk" must be one of [gradio, docker, static]'
    if len(str(data.get("short_description", ""))) > 60:
        yield '"short_description" length must be less than or equal to 60 characters long'


def warnings_about(data):
    if not data:
        yield "empty or missing yaml metadata in repo card"
    for value in listed(data.get("license")):
        if value not in LICENCES:
            yield f'"license" with value "{value}" is not in the list of known licences'
    for value in listed(data.get("language")):
        if not re.fullmatch("[a-z]{2,3}(-[A-Za-z]+)?|code|multilingual", str(value)):
            yield f'"language" with value "{value}" is not a language code'


def check(text, type):
    """(errors, warnings), both lists of messages."""
    data = front_matter(text)
    if isinstance(data, str):
        return [f"invalid YAML: {data}"], []
    errors = [f'"{key}" must be a string' for key in ("pipeline_tag", "library_name", "title") if bad(data.get(key))]
    if type == "model":
        errors += model_errors(data)
    elif type == "space":
        errors += space_errors(data)
    return errors, list(warnings_about(data))


def bad(value):
    return value is not None and not isinstance(value, str)
