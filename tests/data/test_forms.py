"""What rows mean: every form becomes one of TRL's own, and nothing of it is lost on the way."""

import json
from typing import Any

import pytest

from autotune.data.forms import (
    BadRow,
    Dialect,
    convert,
    form_of,
    refuse_what_is_not_sft,
    trl_form_of,
    uses_tools,
)

USER = {"role": "user", "content": "hi"}
ASSISTANT = {"role": "assistant", "content": "hello"}
PLAIN = Dialect(chat=False, tools=False)
CHAT = Dialect(chat=True, tools=False)


def converted(row: dict[str, Any], dialect: Dialect = CHAT) -> dict[str, Any]:
    form = form_of(row)
    assert form is not None
    return convert(row, form, dialect)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"text": "a b"}, {"text": "a b"}),
        ({"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": "b"}),
        ({"prompt": [USER], "completion": [ASSISTANT]}, {"prompt": [USER], "completion": [ASSISTANT]}),
        ({"messages": [USER, ASSISTANT]}, {"messages": [USER, ASSISTANT]}),
        (
            {"messages": [USER, ASSISTANT], "system": "Be brief."},
            {"messages": [{"role": "system", "content": "Be brief."}, USER, ASSISTANT]},
        ),
        ({"messages": json.dumps([USER, ASSISTANT])}, {"messages": [USER, ASSISTANT]}),
        ({"question": "hi", "answer": "hello"}, {"prompt": [USER], "completion": [ASSISTANT]}),
        ({"instruction": "hi", "input": "", "output": "hello"}, {"prompt": [USER], "completion": [ASSISTANT]}),
        (
            {"instruction": "Add.", "input": "1 2", "output": "3", "system": "Be brief.", "history": [["a", "b"]]},
            {
                "prompt": [
                    {"role": "system", "content": "Be brief."},
                    {"role": "user", "content": "a"},
                    {"role": "assistant", "content": "b"},
                    {"role": "user", "content": "Add.\n\n1 2"},
                ],
                "completion": [{"role": "assistant", "content": "3"}],
            },
        ),
        (
            {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]},
            {"messages": [USER, ASSISTANT]},
        ),
        ({"conversations": [USER, ASSISTANT]}, {"messages": [USER, ASSISTANT]}),
        (
            {
                "messages": [
                    {**USER, "name": None},
                    {"role": "assistant", "content": [{"type": "text", "text": "hello"}]},
                ]
            },
            {"messages": [USER, ASSISTANT]},
        ),
    ],
)
def test_forms_become_trls_own(row: dict[str, Any], expected: dict[str, Any]) -> None:
    """A table by hand, one row for each way in which people keep their data."""
    assert converted(row) == expected


@pytest.mark.parametrize(
    ("row", "prompt", "completion"),
    [
        ({"question": "hi", "answer": "hello"}, "Question: hi\nAnswer:", " hello"),
        (
            {"instruction": "Add.", "input": "1 2", "output": "3"},
            "### Instruction:\nAdd.\n\n### Input:\n1 2\n\n### Response:\n",
            "3",
        ),
        ({"instruction": "Greet.", "output": "hello"}, "### Instruction:\nGreet.\n\n### Response:\n", "hello"),
    ],
)
def test_without_a_chat_template_they_become_strings(row: dict[str, Any], prompt: str, completion: str) -> None:
    """A base model's tokenizer has no turns to put questions in, so the usual prompts are written out."""
    found = converted(row, PLAIN)
    assert found["prompt"].endswith(prompt)
    assert found["completion"] == completion


CALLS = {
    "conversations": [
        {"from": "human", "value": "Weather in Rome and Oslo?"},
        {
            "from": "function_call",
            "value": '[{"name": "weather", "arguments": {"city": "Rome"}}, '
            '{"name": "weather", "arguments": "{\\"city\\": \\"Oslo\\"}"}]',
        },
        {"from": "observation", "value": '{"sky": "blue"}'},
        {"from": "observation", "value": '{"sky": "grey"}'},
        {"from": "gpt", "value": "Blue, and grey."},
    ],
    "tools": '[{"name": "weather", "description": "Looks out."}]',
}


def test_function_calls_become_tool_calls() -> None:
    """A template that knows tools gets them as objects, wrapped as it expects them."""
    found = converted(CALLS, Dialect())
    assert [m["role"] for m in found["messages"]] == ["user", "assistant", "tool", "tool", "assistant"]
    assert [c["function"]["arguments"] for c in found["messages"][1]["tool_calls"]] == [
        {"city": "Rome"},
        {"city": "Oslo"},
    ]
    assert json.loads(found["tools"]) == [
        {"type": "function", "function": {"name": "weather", "description": "Looks out."}}
    ]


def test_function_calls_become_text_where_the_template_would_drop_them() -> None:
    """Tools, calls and results are all still there, as text of system, assistant and user, in alternating turns."""
    found = converted(CALLS, CHAT)
    assert found.keys() == {"messages"}
    assert [m["role"] for m in found["messages"]] == ["system", "user", "assistant", "user", "assistant"]
    system, _, call, result, _ = (m["content"] for m in found["messages"])
    assert "Looks out." in system
    assert call.count("<tool_call>") == 2
    assert '{"name": "weather", "arguments": {"city": "Oslo"}}' in call
    assert result == (
        '<tool_response>\n{"sky": "blue"}\n</tool_response>\n<tool_response>\n{"sky": "grey"}\n</tool_response>'
    )


def test_a_system_message_keeps_its_text_beside_the_tools() -> None:
    """Tools are added to what the row says to the system, not put in its place."""
    row = {**CALLS, "system": "Be kind."}
    assert converted(row, CHAT)["messages"][0]["content"].startswith("Be kind.\n\n# Tools")


def test_an_empty_list_of_tools_is_none() -> None:
    """Some templates write a preamble for no tools at all."""
    assert converted({**CALLS, "tools": "[]"}, Dialect()).keys() == {"messages"}


@pytest.mark.parametrize(
    ("row", "form"),
    [
        ({"instruction": "a", "input": "", "output": "b", "text": "c"}, "instruction and output"),
        ({"prompt": "a", "prompt_id": "x", "messages": [USER]}, "messages"),
        ({"question": "a", "answer": "b", "id": 3}, "question and answer"),
        ({"question": "a"}, None),
        ({}, None),
    ],
)
def test_the_form_that_tells_most_wins(row: dict[str, Any], form: str | None) -> None:
    """Published sets often carry the same text twice; columns that belong to no form are left alone."""
    found = form_of(row)
    assert (found.name if found else None) == form


def test_named_columns_choose_the_form() -> None:
    """A field that the user names must be in the form, whatever else the row has."""
    row = {"messages": [USER, ASSISTANT], "text": "a"}
    chosen = form_of(row, named=["text"])
    assert chosen is not None
    assert chosen.name == "text"


def test_kinds_tell_messages_from_strings() -> None:
    """A prompt in messages and a prompt in strings cannot be in one dataset."""
    assert trl_form_of({"prompt": "a", "completion": "b"}) == ("prompt_completion", False)
    assert trl_form_of({"prompt": [USER], "completion": [ASSISTANT]}) == ("prompt_completion", True)
    assert trl_form_of({"messages": [USER]}) == ("messages", True)
    assert trl_form_of({"text": "a"}) == ("text", False)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "a", "answer": None}, "answer is missing or null, expected text"),
        ({"question": "a", "answer": 42}, "answer is a number (42), expected text"),
        ({"text": ["a"]}, "text is a list, expected text"),
        ({"text": "half \ud83d"}, "text holds half of a surrogate pair"),
        ({"prompt": [USER], "completion": "b"}, "completion is text ('b'), expected a list of messages"),
        ({"messages": []}, "messages is an empty list, expected a list of messages"),
        ({"messages": [USER]}, "messages has no message of the assistant"),
        ({"messages": ["hi"]}, "messages[0] is text ('hi'), expected an object with role and content"),
        ({"messages": [USER, {"role": "assistant"}]}, "messages[1].content is missing or null, expected text"),
        ({"messages": [{"content": "hi"}]}, "messages[0].role is missing or null"),
        ({"conversations": [{"from": "martian", "value": "a"}]}, "conversations[0].from is 'martian', expected one of"),
        (
            {"conversations": [{"from": "function_call", "value": "weather(Rome)"}]},
            "conversations[0].value is 'weather(Rome)', expected a call as JSON with name and arguments",
        ),
        ({**CALLS, "tools": "weather"}, "tools is text ('weather'), expected a list of functions"),
        ({"instruction": "a", "output": "b", "history": ["x"]}, "history[0] is text ('x'), expected a question and"),
    ],
)
def test_what_does_not_fit_is_named(row: dict[str, Any], message: str) -> None:
    """The text says which field, what it holds and what is expected."""
    with pytest.raises(BadRow) as bad:
        converted(row)
    assert message in str(bad.value)


@pytest.mark.parametrize("arguments", [{"day": 2}, '{"day": 2}'])
def test_a_call_keeps_its_identity_and_has_the_arguments_that_the_template_takes(arguments: Any) -> None:
    """As OpenAI and Mistral write calls; results name the call that they answer."""
    call = {"id": "call00001", "type": "function", "function": {"name": "tide", "arguments": arguments}}
    result = {"role": "tool", "tool_call_id": "call00001", "content": "9:30"}
    row = {"messages": [USER, {"role": "assistant", "content": None, "tool_calls": [call]}, result, ASSISTANT]}
    for kind, expected in (("mapping", {"day": 2}), ("text", '{"day": 2}')):
        found = converted(row, Dialect(arguments=kind))["messages"]  # type: ignore[arg-type]
        function = {"name": "tide", "arguments": expected}
        assert found[1]["tool_calls"] == [{"id": "call00001", "type": "function", "function": function}]
        assert found[2] == result


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "chosen, rejected: preferences are for TRL's DPOTrainer"),
        ({"prompt": "a", "completion": "b", "label": False}, "are for TRL's KTOTrainer"),
        ({"prompt": "a", "completions": ["b"], "labels": [True]}, "are for TRL's PRMTrainer"),
        ({"messages": [USER, ASSISTANT], "images": ["a.jpg"]}, "has images, expected rows of text alone"),
        ({"prompt": "a", "completion": "b", "image": {"bytes": "x"}}, "has image, expected rows of text alone"),
        ({"messages": [USER, ASSISTANT], "videos": ["a.mp4"], "audios": ["a.wav"]}, "has videos, audios"),
    ],
)
def test_rows_for_other_trainers_are_refused(row: dict[str, Any], message: str) -> None:
    """They would be trained as something else than they say."""
    with pytest.raises(BadRow) as bad:
        refuse_what_is_not_sft(row)
    assert message in str(bad.value)


def test_columns_that_only_look_like_those_of_other_trainers_are_taken() -> None:
    """A class beside a completion, and a list of pictures that is empty."""
    refuse_what_is_not_sft({"prompt": "a", "completion": "b", "label": 3})
    refuse_what_is_not_sft({"messages": [USER, ASSISTANT], "images": [], "image": None, "chosen": "x"})


def test_calls_and_results_in_the_old_spelling_are_read() -> None:
    """OpenAI's `function_call` and role `function`, which chat templates no longer know."""
    call = {"name": "tide", "arguments": "{}"}
    row = {
        "messages": [
            USER,
            {"role": "assistant", "content": None, "function_call": call},
            {"role": "function", "name": "tide", "content": "9:30"},
            ASSISTANT,
        ]
    }
    _, asked, result, _ = converted(row, Dialect(arguments="text"))["messages"]
    assert asked == {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": call}]}
    assert result == {"role": "tool", "name": "tide", "content": "9:30"}


def test_rows_with_tools_are_known() -> None:
    """Tools alone, calls, and results."""
    assert uses_tools(converted(CALLS, Dialect()))
    assert uses_tools({"messages": [USER, {"role": "tool", "content": "1"}]})
    assert not uses_tools({"messages": [USER, ASSISTANT]})
    assert not uses_tools({"text": "a"})
