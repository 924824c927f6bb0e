"""The forms that people keep training data in, and their conversion to TRL's own forms.

TRL trains on `text`, `prompt` + `completion` (strings or messages) and `messages`. Questions with answers and
instructions with outputs become a prompt and a completion, so that only the answer counts for the loss. `conversations`
(ShareGPT) become messages, with function calls. What stands beside messages (`system`, `tools`, `chat_template_kwargs`)
goes with them. Leaves out where rows come from (source.py).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Fields = Mapping[str, Any]
Message = dict[str, Any]
Arguments = Literal["mapping", "text"]  # of a call: an object, or JSON text
TrlForm = Literal["text", "prompt_completion", "messages"]  # what DataFacts.form says

SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "function_call": "assistant",
    "tool_call": "assistant",
    "observation": "tool",
    "function_response": "tool",
    "tool": "tool",
}

# The wording of Qwen2.5's chat template: most models with ChatML were trained on it.
TOOLS_PREAMBLE = """\
# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{tools}
</tools>

For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:
<tool_call>
{{"name": <function-name>, "arguments": <args-json-object>}}
</tool_call>"""

# Stanford Alpaca's prompts, for tokenizers without a chat template.
ALPACA_PROMPT = """\
Below is an instruction that describes a task. Write a response that appropriately completes the request.

### Instruction:
{instruction}

### Response:
"""
ALPACA_PROMPT_WITH_INPUT = """\
Below is an instruction that describes a task, paired with an input that provides further context. Write a response \
that appropriately completes the request.

### Instruction:
{instruction}

### Input:
{input}

### Response:
"""


class BadRow(ValueError):
    """A row that does not fit. The text says which field it is, what it holds and what is expected."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """One form of training data: the fields that it needs, and those that it may have."""

    name: str
    required: tuple[str, ...]
    optional: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """What a tokenizer can render.

    chat: it has a chat template. tools: the template renders tools, calls and their results. arguments: how it takes
    the arguments of a call.
    """

    chat: bool = True
    tools: bool = True
    arguments: Arguments = "mapping"


# Fields that a chat template renders beside the messages. `functions` is OpenAI's old name of `tools`.
FOR_A_TEMPLATE = ("tools", "functions", "chat_template_kwargs")

# The forms that say most come first: a row that fits several is read as the first of them.
FORMS = (
    Form(name="messages", required=("messages",), optional=("system", *FOR_A_TEMPLATE)),
    Form(name="conversations", required=("conversations",), optional=("system", *FOR_A_TEMPLATE)),
    Form(name="prompt and completion", required=("prompt", "completion"), optional=("system", *FOR_A_TEMPLATE)),
    Form(
        name="instruction and output",
        required=("instruction", "output"),
        optional=("input", "system", "history", *FOR_A_TEMPLATE),
    ),
    Form(name="question and answer", required=("question", "answer"), optional=("system", "history", *FOR_A_TEMPLATE)),
    Form(name="text", required=("text",)),
)
# Fields of rows that another of TRL's trainers is for.
OF_OTHER_TRAINERS: tuple[tuple[tuple[str, ...], str, str], ...] = (
    (("chosen", "rejected"), "preferences", "DPOTrainer"),
    (("completions", "labels"), "completions with judged steps", "PRMTrainer"),
    (("prompt", "completion", "label"), "completions that are judged as a whole", "KTOTrainer"),
)
# Keys of a message that say whether it is learned: 0 or false says no (OpenAI, Mistral, Axolotl).
MARKS = ("weight", "train", "trainable", "training", "loss")
MEDIA = ("images", "image", "videos", "video", "audios", "audio")  # of TRL's trainers for models of images or sound
FOLLOW_THE_TOKENIZER = ("instruction and output", "question and answer")  # messages if it has a chat template
FIELDS = tuple(dict.fromkeys(field for form in FORMS for field in (*form.required, *form.optional)))
EXPECTED = "one of: " + " | ".join(" + ".join(form.required) for form in FORMS)


def refuse_what_is_not_sft(row: Fields) -> None:
    """Raise BadRow for a row that supervised fine-tuning on text would train as something else than it says."""
    for fields, what, trainer in OF_OTHER_TRAINERS:
        judged = "label" not in fields or isinstance(row.get("label"), bool)  # a class has a label as well
        if judged and all(row.get(field) is not None for field in fields):
            raise BadRow(f"has {', '.join(fields)}: {what} are for TRL's {trainer}, expected rows for SFT")
    if media := [name for name in MEDIA if row.get(name)]:
        raise BadRow(f"has {', '.join(media)}, expected rows of text alone: models of images or sound are not trained")


def form_of(row: Fields, named: Sequence[str] = ()) -> Form | None:
    """Return the first form whose required fields the row has, and that knows every field in `named`; None if none."""
    for form in FORMS:
        if row.keys() >= {*form.required} and {*named} <= {*form.required, *form.optional}:
            return form
    return None


def trl_form_of(converted: Fields) -> tuple[TrlForm, bool]:
    """Return TRL's form of a converted row, and whether it holds messages instead of strings."""
    if "messages" in converted:
        return "messages", True
    if "prompt" in converted:
        return "prompt_completion", isinstance(converted["prompt"], list)
    return "text", False


def unused_in(row: Fields, form: Form, converted: Fields) -> list[str]:
    """Name the columns that hold something, and that are not in the converted row. Strings take no optional field."""
    _, chat = trl_form_of(converted)
    used = {*form.required, *(form.optional if chat else ())}
    return [name for name, value in row.items() if name not in used and value not in (None, "", [], {})]


def convert(row: Fields, form: Form, dialect: Dialect) -> dict[str, Any]:
    """Convert a row to one of TRL's own forms, as the tokenizer's `dialect` can render it.

    Returns the fields of that form only; `tools` is JSON text, as TRL reads it. Raises BadRow.
    """
    first, last = form.required[0], form.required[-1]
    if form.name == "text" or (form.name == "prompt and completion" and isinstance(row["prompt"], str)):
        return {field: _text(row, field) for field in form.required}
    if form.name not in FOLLOW_THE_TOKENIZER:
        fields = {field: _with_arguments(_messages(row, field), dialect.arguments) for field in form.required}
    elif dialect.chat:
        fields, first, last = _exchange(row, form), "prompt", "completion"
    else:
        return _exchange_in_strings(row, form)
    if system := _optional_text(row, "system"):
        _add_system(fields[first], system)
    if not any(message["role"] == "assistant" for message in fields[last]):
        raise BadRow(f"{last} has no message of the assistant, so there is nothing to learn")
    tools = _tools(row)
    if not dialect.tools:
        fields = {field: _as_plain_text(messages, tools * (field == first)) for field, messages in fields.items()}
        tools = []
    converted: dict[str, Any] = {"messages" if f == "conversations" else f: m for f, m in fields.items()}
    if tools:
        converted["tools"] = json.dumps(tools, ensure_ascii=False)
    if keywords := _keywords(row):
        converted["chat_template_kwargs"] = keywords
    return converted


def uses_tools(row: Fields) -> bool:
    """Whether a converted row has tools, calls or results of calls."""
    return "tools" in row or any("tool_calls" in message or message["role"] == "tool" for message in _talk_of(row))


def _talk_of(row: Fields) -> list[Message]:
    """All messages of a converted row; none where it holds strings."""
    parts = (row.get(name, ()) for name in ("prompt", "completion", "messages"))
    return [message for part in parts if isinstance(part, list) for message in part]


def _exchange(row: Fields, form: Form) -> dict[str, list[Message]]:
    """Make messages of a question and its answer, or of an instruction and its output."""
    question, answer = (_text(row, field) for field in form.required)
    given = _optional_text(row, "input") if "input" in form.optional else ""
    return {
        "prompt": [*_history(row), {"role": "user", "content": f"{question}\n\n{given}" if given else question}],
        "completion": [{"role": "assistant", "content": answer}],
    }


def _exchange_in_strings(row: Fields, form: Form) -> dict[str, Any]:
    """Make a prompt and a completion for a tokenizer without a chat template."""
    if held := [field for field in ("history", *FOR_A_TEMPLATE) if _loaded(row.get(field))]:
        raise BadRow(f"has {' and '.join(held)}, expected a model with a chat template, which renders them")
    question, answer = (_text(row, field) for field in form.required)
    system = _optional_text(row, "system")
    opening = f"{system}\n\n" if system else ""
    if form.name == "question and answer":
        # The space stands before the answer, because byte-level tokenizers join it to the first word.
        return {"prompt": f"{opening}Question: {question}\nAnswer:", "completion": f" {answer}"}
    given = _optional_text(row, "input")
    template = ALPACA_PROMPT_WITH_INPUT if given else ALPACA_PROMPT
    return {"prompt": opening + template.format(instruction=question, input=given), "completion": answer}


def _add_system(messages: list[Message], system: str) -> None:
    if messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": system})
    elif messages[0]["content"].strip() != system.strip():
        raise BadRow("has a column system that differs from the system message, expected one of the two")


def _history(row: Fields) -> list[Message]:
    messages = []
    for number, pair in enumerate(_loaded(row.get("history")) or []):
        if not (isinstance(pair, list | tuple) and len(pair) == 2 and all(isinstance(text, str) for text in pair)):
            raise BadRow(f"history[{number}] is {_name(pair)}, expected a question and its answer")
        messages += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    return messages


def _messages(row: Fields, field: str) -> list[Message]:
    value = _loaded(row[field])
    if not isinstance(value, list) or not value:
        raise BadRow(f"{field} is {_name(value)}, expected a list of messages")
    messages = []
    for number, message in enumerate(value):
        where = f"{field}[{number}]"
        if not isinstance(message, dict):
            raise BadRow(f"{where} is {_name(message)}, expected an object with role and content")
        messages.append(_from_sharegpt(message, where) if "from" in message else _message(message, where))
    return messages


def _message(message: Fields, where: str) -> Message:
    kept = {key: value for key, value in message.items() if value is not None}  # tables fill absent keys with nulls
    if not isinstance(kept.get("role"), str) or not kept["role"]:
        raise BadRow(f"{where}.role is {_name(message.get('role'))}, expected text like user or assistant")
    if kept["role"] == "function":  # OpenAI's old spelling of a result, and of a call
        kept["role"] = "tool"
    if called := kept.pop("function_call", None):
        kept.setdefault("tool_calls", [called])
    if kept.get("tool_calls"):
        kept["tool_calls"] = [_call(call, f"{where}.tool_calls") for call in kept["tool_calls"]]
        kept.setdefault("content", "")
    elif "tool_calls" in kept:
        del kept["tool_calls"]
    kept["content"] = _content(kept.get("content"), where)
    return kept


def _from_sharegpt(message: Fields, where: str) -> Message:
    role = SHAREGPT_ROLES.get(str(message["from"]))
    if role is None:
        raise BadRow(f"{where}.from is {message['from']!r}, expected one of {', '.join(SHAREGPT_ROLES)}")
    content = _content(message.get("value"), where, "value")
    marks = {mark: message[mark] for mark in MARKS if message.get(mark) is not None}
    if message["from"] not in ("function_call", "tool_call"):
        return {"role": role, "content": content, **marks}
    try:
        calls = json.loads(content)
    except ValueError:
        raise BadRow(f"{where}.value is {content[:60]!r}, expected a call as JSON with name and arguments") from None
    calls = calls if isinstance(calls, list) else [calls]
    return {"role": role, "content": "", "tool_calls": [_call(call, where) for call in calls], **marks}


def _content(content: object, where: str, key: str = "content") -> str:
    if isinstance(content, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in content):
        content = "".join(str(part.get("text", "")) for part in content)
    if not isinstance(content, str):
        raise BadRow(f"{where}.{key} is {_name(content)}, expected text")
    return _encodable(content, f"{where}.{key}")


def _call(call: object, where: str) -> dict[str, Any]:
    """Write a call as chat templates read it: {"type": "function", "function": {"name", "arguments"}}.

    Its identity and whatever else stands beside the function stay as they are.
    """
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(call, dict) or not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise BadRow(f"{where} holds {str(call)[:60]!r}, expected a call with name and arguments")
    beside = {key: value for key, value in call.items() if key not in ("function", "name", "arguments")}
    called = {"name": function["name"], "arguments": function.get("arguments", {})}
    return {"type": "function", **beside, "function": called}


def _with_arguments(messages: list[Message], kind: Arguments) -> list[Message]:
    """Write the arguments of all calls as the template takes them."""
    for message in messages:
        for call in message.get("tool_calls", ()):
            given = call["function"]["arguments"]
            if kind == "mapping":
                call["function"]["arguments"] = _loaded(given)
            elif not isinstance(given, str):
                call["function"]["arguments"] = json.dumps(given, ensure_ascii=False)
    return messages


def _tools(row: Fields) -> list[dict[str, Any]]:
    """List the functions that may be called, each wrapped as {"type": "function", "function": {...}}."""
    tools, functions = _functions(row, "tools"), _functions(row, "functions")
    if tools and functions and tools != functions:
        raise BadRow("has tools and functions that differ, expected one of the two: functions is the old name of tools")
    return tools or functions


def _functions(row: Fields, field: str) -> list[dict[str, Any]]:
    tools = _loaded(row.get(field)) or []
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise BadRow(f"{field} is {_name(row[field])}, expected a list of functions, or such a list as JSON text")
    return [tool if "function" in tool else {"type": "function", "function": tool} for tool in tools]


def _keywords(row: Fields) -> dict[str, Any]:
    keywords = _loaded(row.get("chat_template_kwargs")) or {}
    if not isinstance(keywords, dict):
        raise BadRow(f"chat_template_kwargs is {_name(keywords)}, expected an object with the template's keywords")
    return keywords


def _as_plain_text(messages: list[Message], tools: list[dict[str, Any]]) -> list[Message]:
    """Write as text what the chat template would drop: tools in the system message, calls and results in tags."""
    plain: list[Message] = []
    in_results = False
    for message in messages:
        role, content = message["role"], message["content"]
        for call in message.get("tool_calls", ()):
            text = json.dumps(call["function"], ensure_ascii=False)
            content += ("\n" if content else "") + f"<tool_call>\n{text}\n</tool_call>"
        if role == "tool":
            role, content = "user", f"<tool_response>\n{content}\n</tool_response>"
            if in_results:  # many templates want roles to alternate
                plain[-1]["content"] += f"\n{content}"
                continue
        in_results = message["role"] == "tool"
        rest = {key: value for key, value in message.items() if key != "tool_calls"}
        plain.append({**rest, "role": role, "content": content})
    if tools:
        preamble = TOOLS_PREAMBLE.format(tools="\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools))
        if plain and plain[0]["role"] == "system":
            plain[0]["content"] += f"\n\n{preamble}"
        else:
            plain.insert(0, {"role": "system", "content": preamble})
    return plain


def _text(row: Fields, field: str) -> str:
    value = row.get(field)
    if not isinstance(value, str):
        raise BadRow(f"{field} is {_name(value)}, expected text")
    return _encodable(value, field)


def _optional_text(row: Fields, field: str) -> str:
    return _text(row, field) if row.get(field) is not None else ""


def _encodable(text: str, where: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BadRow(f"{where} holds half of a surrogate pair, expected text that UTF-8 can write") from None
    return text


def _loaded(value: object) -> Any:
    """Read JSON text, in which tables keep nested values. Anything else is returned as it is."""
    if isinstance(value, str):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


def _name(value: object) -> str:
    """Describe a value for an error: its kind, and its beginning."""
    if value is None:
        return "missing or null"
    if isinstance(value, bool | int | float):
        return f"a {'truth value' if isinstance(value, bool) else 'number'} ({value})"
    if isinstance(value, str):
        return f"text ({value[:40]!r})"
    kind = "list" if isinstance(value, list) else "object" if isinstance(value, dict) else type(value).__name__
    return f"{'a' if value and kind == 'list' else 'an'} {'' if value else 'empty '}{kind}"
