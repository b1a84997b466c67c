"""Chat templates for the tests, written here, with what real ones do: trim, slice, loop, tools, JSON, dates, state."""

from __future__ import annotations

CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + "
    "'\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

LLAMA3 = """{{- bos_token }}
{%- if not date_string is defined %}
    {%- set date_string = "26 Jul 2024" %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none %}
    {{- "Environment: ipython\\n" }}
{%- endif %}
{{- "Cutting Knowledge Date: December 2023\\nToday Date: " + date_string + "\\n\\n" + system_message }}
{%- for tool in tools or [] %}
    {{- "\\n\\n" + tool | tojson(indent=4) }}
{%- endfor %}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if 'tool_calls' in message %}
        {%- set call = message.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}
        {{- '{"name": "' + call.name + '", "parameters": ' + call.arguments | tojson + '}<|eot_id|>' }}
    {%- elif message.role in ['tool', 'ipython'] %}
        {{- '<|start_header_id|>ipython<|end_header_id|>\\n\\n' + message.content | tojson + '<|eot_id|>' }}
    {%- else %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim }}
        {{- '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

# A mark around what the assistant says; loops that break and continue; a namespace; a macro.
MARKED = """{%- set ns = namespace(system='', turns=0) %}
{%- macro header(role) -%}
<|start_header_id|>{{ role }}<|end_header_id|>
{{ '' }}
{%- endmacro %}
{%- for m in messages %}
  {%- if m.role == 'system' %}{% set ns.system = ns.system ~ m.content %}{% continue %}{% endif %}
  {%- if ns.turns > 40 %}{% break %}{% endif %}
  {%- set ns.turns = ns.turns + 1 %}
  {{- header(m.role) }}
  {%- if m.role == 'assistant' %}
{% generation %}{{ m.content }}<|eot_id|>{% endgeneration %}
  {%- else %}
{{ m.content }}<|eot_id|>
  {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ header('assistant') }}{% endif %}"""

# Content goes through all that templates do to content.
HANDLED = (
    """{%- for m in messages %}
  {%- if m.content is string %}{% set text = m.content %}{% else %}
    {%- set text = m.content | map(attribute='text') | join('') %}
  {%- endif %}
  {{- '<|im_start|>' ~ m.role ~ '\\n' }}
  {{- text | trim }}|{{ text.strip()[1:-1] }}|{{ text[:7] ~ text[7:] }}|{{ text | tojson }}|"""
    """{{- {'a': [text]} | tojson(indent=2) }}|{{ text.split('\\n') | join(' ') }}|{{ text | upper | lower }}|"""
    """{{ text.replace('\\n', '') }}|{{ (text ~ text) | replace('x', '') }}|{{ text | list | join }}|"""
    """{% for c in text %}{{ c }}{% endfor %}|{{ text | reverse | reverse }}|{{ '%s' % text }}|{{ '{}'.format(text) }}
  {{- '<|im_end|>\\n' }}
{%- endfor %}"""
)
