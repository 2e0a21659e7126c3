"""Chat templates (Jinja) that write prompts as `ttpa.prompts` does, for exported policies: calls in each syntax, the
compact prompt, and tools and calls in front of a template that takes none. Text only; transformers runs them.
"""

from ttpa.io import dumps

_OBJECT = """\
{{- '{"name": ' ~ f.name|tojson ~ ', "KEY": ' ~ (f.arguments if f.arguments is string else f.arguments|tojson) ~ '}' }}
"""
_PYTHON = """\
{{- f.name }}({% for key, value in f.arguments.items() %}
{%- if key|select('in', '()[]{}=,"\\'\\n')|list or key != key|trim or key[:1] in '*' %}**{{ ttpa_value({key: value}) }}
{%- else %}{{ key }}={{ ttpa_value(value) }}{% endif %}{{ 'COMMA' if not loop.last }}{% endfor %})"""
_VALUE = """\
{%- macro ttpa_value(value) -%}
{%- if value is none %}None{% elif value is boolean %}{{ 'True' if value else 'False' }}
{%- elif value is mapping %}{{ '{' }}{% for key, one in value.items() %}
{{- key|tojson ~ 'COLON' ~ ttpa_value(one) ~ ('COMMA' if not loop.last else '') }}{% endfor %}{{ '}' }}
{%- elif value is sequence and value is not string %}[{% for one in value %}
{{- ttpa_value(one) ~ ('COMMA' if not loop.last else '') }}{% endfor %}]
{%- else %}{{ value|tojson(separators=['COMMA', 'COLON']) }}{% endif %}
{%- endmacro %}
"""
_SAID = """\
{%- macro ttpa_said(message) -%}
{{- message.content or '' }}{% if message.tool_calls %}{{ '\\n' if message.content }}{{ 'OPEN' }}
{%- for call in message.tool_calls %}{% set f = call.function if call.function is defined else call %}{{ 'BEFORE' }}
{{- ttpa_call(f) }}{{ 'AFTER' }}{{ 'BETWEEN' if not loop.last }}{% endfor %}{{ 'CLOSE' }}{% endif %}
{%- endmacro %}
"""
_COMPACT = """\
{{- '<tools>' }}{% for tool in tools or [] %}{% set f = tool.function if tool.function is defined else tool %}
{{- f.name }}({% for name, schema in (f.parameters.properties or {}).items() %}{{ name }}
{%- if schema is mapping and schema.type is string and schema.type in kinds %}:{{ kinds[schema.type] }}{% endif %}
{{- ',' if not loop.last }}{% endfor %}){{ '\\n' if not loop.last }}{% endfor %}
{%- for message in messages %}{{ '<' ~ message.role ~ '>' ~ ttpa_said(message) }}
{{- '<eos>' if message.role == 'assistant' }}{% endfor %}{{ '<assistant>' if add_generation_prompt }}"""
_LISTED = """\
{%- if tools %}{% set listed = namespace(text='You can call these tools:') %}
{%- for tool in tools %}{% set f = tool.function if tool.function is defined else tool %}
{%- set listed.text = listed.text ~ '\\n' ~ f|tojson(separators=[',', ':']) %}{% endfor %}
{%- set listed.text = listed.text ~ HOW %}
{%- if messages and messages[0].role == 'system' %}
{%- set messages = [{'role': 'system', 'content': messages[0].content ~ '\\n\\n' ~ listed.text}] + messages[1:] %}
{%- else %}{% set messages = [{'role': 'system', 'content': listed.text}] + messages %}{% endif %}{% endif %}
"""
_AS_TEXT = """\
{%- set turned = namespace(rows=[]) %}
{%- for message in messages %}{% if message.tool_calls %}
{%- set turned.rows = turned.rows + [{'role': message.role, 'content': ttpa_said(message)}] %}
{%- else %}{% set turned.rows = turned.rows + [message] %}{% endif %}{% endfor %}{% set messages = turned.rows %}
"""
_FOLDED = """\
{%- if messages and messages[0].role == 'system' %}{% set asked = messages[1:] %}
{%- set first = messages[0].content ~ ('\\n\\n' ~ asked[0].content if asked and asked[0].role == 'user' else '') %}
{%- set messages = [{'role': 'user', 'content': first}] + (asked[1:] if asked and asked[0].role == 'user' else asked) %}
{%- endif %}
"""
_AS_USER = """\
{%- set shown = namespace(rows=[], last='') %}
{%- for message in messages %}{% if message.role == 'tool' %}
{%- set said = '<tool_response>\\n' ~ message.content ~ '\\n</tool_response>' %}
{%- if shown.last == 'tool' %}{% set said = shown.rows[-1].content ~ '\\n' ~ said %}
{%- set shown.rows = shown.rows[:-1] %}{% endif %}
{%- set shown.rows = shown.rows + [{'role': 'user', 'content': said}] %}
{%- else %}{% set shown.rows = shown.rows + [message] %}{% endif %}{% set shown.last = message.role %}{% endfor %}
{%- set messages = shown.rows %}
"""
_CLOSED = """\
{%- set ttpa_whole %}TEMPLATE{% endset %}
{%- set ttpa_over = messages and messages[-1].role == 'assistant' and not add_generation_prompt %}
{{- ttpa_whole[:-COUNT] if ttpa_over else ttpa_whole }}"""
_FORMS = {  # syntax -> what opens all calls, stands before and behind one, between two, closes all
    "hermes": ("", "<tool_call>\\n", "\\n</tool_call>", "\\n", ""),
    "hermes_list": ("<tool_call>[", "", "", ", ", "]</tool_call>"),
    "mistral": ("[TOOL_CALLS] [", "", "", ", ", "]"),
    "json": ("[", "", "", ", ", "]"),
    "llama3_json": ("", "", "", "; ", ""),
    "python": ("[", "", "", ", ", "]"),
    "python_compact": ("[", "", "", ",", "]"),
}


def _said(syntax: str) -> str:
    """Macros that write a turn, its calls in a syntax."""
    comma, colon = (",", ":") if syntax == "python_compact" else (", ", ": ")
    python = syntax.startswith("python")
    call = _PYTHON if python else _OBJECT.replace("KEY", "parameters" if syntax == "llama3_json" else "arguments")
    said = (_VALUE if python else "") + "{%- macro ttpa_call(f) -%}\n" + call + "{%- endmacro %}\n" + _SAID
    forms = zip(("OPEN", "BEFORE", "AFTER", "BETWEEN", "CLOSE"), _FORMS[syntax], strict=True)
    for word, text in (("COMMA", comma), ("COLON", colon), *forms):
        said = said.replace(word, text)
    return said


def compact_template(syntax: str, kinds: str) -> str:
    """The compact prompt; `kinds` is the JSON of JSON Schema's types and their short names."""
    return f"{_said(syntax)}{{%- set kinds = {kinds} %}}\n{_COMPACT}"


def in_front(syntax: str, *, tools: str, calls: bool, folded: bool, as_user: bool) -> str:
    """What makes a template take tools, listed in the system's text before `tools`; `calls`, written as text; results
    of calls, as turns of the user; and a system's text, which then opens the first turn (`folded`).
    """
    parts = {
        _AS_USER: as_user,
        _said(syntax) + _AS_TEXT: calls,
        _LISTED.replace("HOW", dumps(tools)): tools,
        _FOLDED: folded,
    }
    return "".join(part for part, wanted in parts.items() if wanted)


def closed(template: str, behind: int) -> str:
    """The template without the last characters, so many, that it writes behind the end of the last answer."""
    return _CLOSED.replace("COUNT", str(behind)).replace("TEMPLATE", template) if behind else template
