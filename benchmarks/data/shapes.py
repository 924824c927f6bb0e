"""Shapes of chat templates that models have, and rows of every form, to compare our tokens with TRL's.

The templates are written for this purpose, each in the way of one family of models: with or without a system role, with
calls of tools in that family's manner, strict about who speaks next or not. Leaves out TRL's own templates.
"""

from collections.abc import Mapping
from typing import Any

_STRICT = (
    "{%- for m in turns %}{%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate between user and assistant') }}{%- endif %}{%- endfor %}"
)
_SPLIT_SYSTEM = (
    "{%- if messages[0].role == 'system' %}{%- set system = messages[0].content %}{%- set turns = messages[1:] %}"
    "{%- else %}{%- set system = '' %}{%- set turns = messages %}{%- endif %}"
)
_CALL_LINES = (
    "{%- for c in m.tool_calls or [] %}{%- set c = c.function or c %}"
    "{{ '<tool_call>\\n{\"name\": \"' + c.name + '\", \"arguments\": ' + (c.arguments | tojson) + '}\\n</tool_call>' }}"
    "{%- endfor %}"
)

SHAPES: Mapping[str, str] = {
    # The system message stands inside the first question; roles alternate.
    "llama-2": _SPLIT_SYSTEM + _STRICT + "{%- for m in turns %}{%- if m.role == 'user' %}"
    "{{ bos_token + '[INST] ' + ('<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' if loop.first and system else '')"
    " + m.content + ' [/INST]' }}"
    "{%- else %}{{ ' ' + m.content + ' ' + eos_token }}{%- endif %}{%- endfor %}",
    # Every turn has a header. Tools stand in the first one, calls are JSON, results have a role of their own.
    "llama-3": "{{ bos_token }}{%- if tools %}{{ '<|start_header_id|>system<|end_header_id|>\\n\\n' }}"
    "{%- for t in tools %}{{ t | tojson }}{%- endfor %}{{ '<|eot_id|>' }}{%- endif %}"
    "{%- for m in messages %}{{ '<|start_header_id|>' + ('ipython' if m.role == 'tool' else m.role)"
    " + '<|end_header_id|>\\n\\n' }}"
    "{%- if m.tool_calls %}{%- set c = m.tool_calls[0].function %}"
    "{{ '{\"name\": \"' + c.name + '\", \"parameters\": ' + (c.arguments | tojson) + '}' }}"
    "{%- else %}{{ m.content | trim }}{%- endif %}{{ '<|eot_id|>' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}",
    # Identities of nine characters, and arguments as they are; roles alternate, apart from calls and results.
    "mistral": _SPLIT_SYSTEM + "{{ bos_token }}{%- for m in turns %}{%- if m.role == 'user' %}"
    "{%- if loop.last and tools %}{{ '[AVAILABLE_TOOLS]' + (tools | tojson) + '[/AVAILABLE_TOOLS]' }}{%- endif %}"
    "{{ '[INST] ' + (system + '\\n\\n' if loop.last and system else '') + m.content + '[/INST]' }}"
    "{%- elif m.tool_calls %}{{ '[TOOL_CALLS][' }}{%- for c in m.tool_calls %}"
    "{%- if c.id is not defined or c.id | length != 9 %}"
    "{{ raise_exception('identities of calls have nine characters') }}{%- endif %}"
    '{{ \'{"name": "\' + c.function.name + \'", "arguments": \' + (c.function.arguments | tojson)'
    " + ', \"id\": \"' + c.id + '\"}' + ('' if loop.last else ', ') }}{%- endfor %}{{ ']' + eos_token }}"
    "{%- elif m.role == 'tool' %}{%- if m.tool_call_id is not defined or m.tool_call_id | length != 9 %}"
    "{{ raise_exception('identities of calls have nine characters') }}{%- endif %}"
    "{{ '[TOOL_RESULTS]{\"content\": ' + m.content + ', \"call_id\": \"' + m.tool_call_id + '\"}[/TOOL_RESULTS]' }}"
    "{%- elif m.role == 'assistant' %}{{ ' ' + m.content + eos_token }}"
    "{%- else %}{{ raise_exception('unknown role ' + m.role) }}{%- endif %}{%- endfor %}",
    # A system message that nobody wrote, calls in tags, and results as a user's turn.
    "qwen-2.5": "{%- if messages[0].role != 'system' %}{{ '<|im_start|>system\\nYou are helpful.' }}"
    "{%- if tools %}{{ '\\n# Tools\\n' }}{%- for t in tools %}{{ t | tojson }}{%- endfor %}{%- endif %}"
    "{{ '<|im_end|>\\n' }}{%- endif %}"
    "{%- for m in messages %}{%- if m.role == 'tool' %}"
    "{{ '<|im_start|>user\\n<tool_response>\\n' + m.content + '\\n</tool_response><|im_end|>\\n' }}{%- else %}"
    "{{ '<|im_start|>' + m.role + '\\n' + (m.content or '') }}"
    + _CALL_LINES
    + "{%- if tools and loop.first and m.role == 'system' %}{{ '\\n# Tools\\n' }}"
    "{%- for t in tools %}{{ t | tojson }}{%- endfor %}{%- endif %}{{ '<|im_end|>\\n' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{%- endif %}",
    # Thoughts are kept in the last turn alone, and enable_thinking=false writes empty ones.
    "qwen-3": "{%- for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}"
    "{%- if m.role == 'assistant' and loop.last %}"
    "{{ '<think>\\n' + (m.reasoning_content or '') + '\\n</think>\\n\\n' }}{%- endif %}"
    "{{ (m.content.split('</think>') | last).lstrip('\\n') }}" + _CALL_LINES + "{{ '<|im_end|>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}{{ '<think>\\n\\n</think>\\n\\n' }}{%- endif %}"
    "{%- endif %}",
    # No system role, and the assistant has another name.
    "gemma-2": "{{ bos_token }}{%- set turns = messages %}"
    "{%- if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{%- endif %}"
    + _STRICT
    + "{%- for m in messages %}{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\\n'"
    " + (m.content | trim) + '<end_of_turn>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{%- endif %}",
    "phi-3": "{%- for m in messages %}{{ '<|' + m.role + '|>\\n' + m.content + '<|end|>\\n' }}{%- endfor %}"
    "{{ '<|assistant|>\\n' if add_generation_prompt else eos_token }}",
    "zephyr": "{%- for m in messages %}{{ '<|' + m.role + '|>\\n' + m.content + eos_token + '\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<|assistant|>\\n' }}{%- endif %}",
    # Turns end only after the assistant. Calls are in blocks of code.
    "deepseek": "{{ bos_token }}{%- for m in messages %}{%- if m.role == 'system' %}{{ m.content }}"
    "{%- elif m.role == 'user' %}{{ '<|User|>' + m.content }}"
    "{%- elif m.role == 'tool' %}{{ '<|tool_output|>' + m.content + '<|tool_output_end|>' }}"
    "{%- else %}{{ '<|Assistant|>' + (m.content or '').split('</think>')[-1] }}"
    "{%- for c in m.tool_calls or [] %}{{ '<|call|>' + c.function.name + '\\n```json\\n' + c.function.arguments"
    " + '\\n```' }}{%- endfor %}{{ eos_token }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<|Assistant|>' }}{%- endif %}",
    "command-r": "{{ bos_token }}{%- for m in messages %}{{ '<|START_OF_TURN_TOKEN|>' + "
    "{'user': '<|USER_TOKEN|>', 'assistant': '<|CHATBOT_TOKEN|>'}.get(m.role, '<|SYSTEM_TOKEN|>')"
    " + m.content.strip() + '<|END_OF_TURN_TOKEN|>' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' }}{%- endif %}",
    # Documents and tools have roles of their own.
    "granite": "{%- if tools %}{{ '<|start_of_role|>tools<|end_of_role|>' + (tools | tojson(indent=4))"
    " + '<|end_of_text|>\\n' }}{%- endif %}"
    "{%- for m in messages %}{{ '<|start_of_role|>' + ('tool_response' if m.role == 'tool' else m.role)"
    " + '<|end_of_role|>' + (m.content or '') }}" + _CALL_LINES + "{{ '<|end_of_text|>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<|start_of_role|>assistant<|end_of_role|>' }}{%- endif %}",
    # With marks around what the assistant says, so that its tokens can be told apart.
    "marked": "{%- for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}"
    "{%- if m.role == 'assistant' %}{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}"
    "{%- else %}{{ m.content + '<|im_end|>' }}{%- endif %}{{ '\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{%- endif %}",
    # Written by hand for one training: no end of a turn at all.
    "instruction": "{%- for m in messages %}"
    "{{ '### ' + m.role | capitalize + ':\\n' + m.content + '\\n\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '### Assistant:\\n' }}{%- endif %}",
}

_USER, _REPLY = {"role": "user", "content": "Is 7 prime?"}, {"role": "assistant", "content": "Yes, it is."}
_SYSTEM = {"role": "system", "content": "Answer in few words."}
_TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Look up the weather.",
            "parameters": {
                "type": "object",
                "properties": {"town": {"type": "string", "description": "Where."}},
                "required": ["town"],
            },
        },
    },
    {"type": "function", "function": {"name": "now", "description": "The time.", "parameters": {"type": "object"}}},
]


def _call(arguments: Any, *, name: str = "weather", identity: str = "a1b2c3d4e") -> dict[str, Any]:
    return {"id": identity, "type": "function", "function": {"name": name, "arguments": arguments}}


def _with_call(arguments: Any) -> list[dict[str, Any]]:
    return [
        {"role": "user", "content": "How warm is it in Bern?"},
        {"role": "assistant", "content": "", "tool_calls": [_call(arguments)]},
        {"role": "tool", "name": "weather", "tool_call_id": "a1b2c3d4e", "content": '{"celsius": 21}'},
        {"role": "assistant", "content": "It is 21 degrees in Bern."},
    ]


_MORE = [{"role": "user", "content": "And 8?"}, {"role": "assistant", "content": "No: 2 times 4."}]
# By form: two rows each, as they stand in a user's file. No row may rest on what another one has.
ROWS: Mapping[str, list[dict[str, Any]]] = {
    "messages": [{"messages": [_USER, _REPLY]}, {"messages": [*_MORE]}],
    "messages with a system message": [{"messages": [_SYSTEM, _USER, _REPLY]}, {"messages": [_SYSTEM, *_MORE]}],
    "messages of several turns": [{"messages": [_USER, _REPLY, *_MORE]}, {"messages": [_USER, _REPLY, *_MORE, *_MORE]}],
    "messages with thoughts": [
        {"messages": [_USER, {**_REPLY, "reasoning_content": "It has no divisors."}]},
        {"messages": [_USER, _REPLY, _MORE[0], {**_MORE[1], "reasoning_content": "8 is even."}]},
    ],
    "messages with tools": [{"messages": _with_call({"town": "Bern"}), "tools": _TOOLS}] * 2,
    "messages with arguments as text": [{"messages": _with_call('{"town": "Bern"}'), "tools": _TOOLS}] * 2,
    "messages with two calls": [
        {
            "messages": [
                {"role": "user", "content": "Weather and time?"},
                {
                    "role": "assistant",
                    "content": "",
                    "tool_calls": [_call({"town": "Bern"}), _call({}, name="now", identity="f1g2h3i4j")],
                },
                {"role": "tool", "name": "weather", "tool_call_id": "a1b2c3d4e", "content": "21"},
                {"role": "tool", "name": "now", "tool_call_id": "f1g2h3i4j", "content": "12:00"},
                {"role": "assistant", "content": "21 degrees at noon."},
            ],
            "tools": _TOOLS,
        }
    ]
    * 2,
    "messages with chat_template_kwargs": [
        {"messages": [_USER, _REPLY], "chat_template_kwargs": {"enable_thinking": False}},
        {"messages": [*_MORE], "chat_template_kwargs": {"enable_thinking": True}},
    ],
    "prompt and completion of messages": [
        {"prompt": [_USER], "completion": [_REPLY]},
        {"prompt": [_USER, _REPLY, _MORE[0]], "completion": [_MORE[1]]},
    ],
    "prompt and completion with tools": [
        {"prompt": _with_call({"town": "Bern"})[:3], "completion": _with_call({})[3:], "tools": _TOOLS}
    ]
    * 2,
    "conversations": [
        {"conversations": [{"from": "human", "value": "Is 7 prime?"}, {"from": "gpt", "value": "Yes, it is."}]},
        {
            "conversations": [
                {"from": "system", "value": "Answer in few words."},
                {"from": "human", "value": "And 8?"},
                {"from": "gpt", "value": "No."},
            ]
        },
    ],
    "text": [{"text": "The sea was calm."}, {"text": "The sea was rough.</s>"}],
    "prompt and completion": [
        {"prompt": "Is 7 prime?", "completion": " Yes."},
        {"prompt": "Count:", "completion": " 1, 2, 3"},
    ],
}
