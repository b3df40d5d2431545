"""Ollama Modelfiles for the GGUFs kconv writes.

Ollama's prompt templates are Go templates; of a GGUF's Jinja template it recognises common ones only. Its
template gets ``.System`` (all system messages joined) and ``.Messages`` (system ones included), see
template/template.go there. A ``{{-`` or ``-}}`` eats the white space beside it.
"""

from __future__ import annotations

from ..core.errors import UsageError, VocabError
from .sampling import Sampling
from .templates import SOME_DAY, format_of_template, render_chat

# The texts between <human>: and <bot>: join as in data/templates/42dot.jinja.
_DOT42 = """\
{{- if .System }}{{ .System }} {{ end }}
{{- range .Messages }}
{{- if eq .Role "user" }}<human>: {{ .Content }} <bot>:
{{- else if eq .Role "assistant" }} {{ .Content }}<|endoftext|>
{{- end }}
{{- end }}"""

# As data/templates/aog.jinja: only the last question carries the instruction.
_AOG = """\
{{- $last := -1 }}
{{- range $i, $m := .Messages }}{{ if eq $m.Role "user" }}{{ $last = $i }}{{ end }}{{ end }}
{{- range $i, $m := .Messages }}
{{- if eq $m.Role "user" }}### Question:
{{ $m.Content }}
{{ if eq $i $last }}
{{ if $.System }}### Instruction:
{{ $.System }}

{{ end }}### Response:
{{ end }}
{{- else if eq $m.Role "assistant" }}
{{- if lt $i $last }}### Response:
{{ end }}{{ $m.Content }}
{{ end }}
{{- end }}"""

_LLAMA3 = """\
{{- if .System }}<|start_header_id|>system<|end_header_id|>

{{ .System }}<|eot_id|>
{{- end }}
{{- range .Messages }}
{{- if ne .Role "system" }}<|start_header_id|>{{ .Role }}<|end_header_id|>

{{ .Content }}<|eot_id|>
{{- end }}
{{- end }}<|start_header_id|>assistant<|end_header_id|>

"""

_BY_FORMAT = {"42dot": _DOT42, "aog": _AOG}


def ollama_modelfile(gguf_name: str, template: str | None, sampling: Sampling | None) -> str:
    """The text of a Modelfile for a GGUF in the same folder.

    ``template`` is the Jinja chat template in the GGUF, None for a model that completes plain text. Raises
    UsageError for a file name a Modelfile cannot hold.
    """
    if any(ord(character) < 32 for character in gguf_name):
        raise UsageError(f"a Modelfile cannot name the file {gguf_name!r}")
    lines = [f"FROM ./{gguf_name}", *_prompt_lines(template)]
    if sampling is not None:
        parameters = (
            ("temperature", sampling.temperature),
            ("top_k", sampling.top_k),
            ("top_p", sampling.top_p),
            ("min_p", sampling.min_p),
            ("repeat_penalty", sampling.repeat_penalty),
            ("num_predict", sampling.max_tokens),
        )
        lines += [f"PARAMETER {name} {value:g}" for name, value in parameters if value is not None]
        lines += [f'PARAMETER stop "{text}"' for text in sampling.stop]
    return "\n".join(lines) + "\n"


def _prompt_lines(template: str | None) -> list[str]:
    if template is None:
        return ["# The model completes plain text; it has no chat format.", 'TEMPLATE """{{ .Prompt }}"""']
    known = format_of_template(template)
    if known is not None:
        return [f'TEMPLATE """{_BY_FORMAT[known.name]}"""', f'SYSTEM """{known.system}"""']
    if _is_llama3(template):
        return [f'TEMPLATE """{_LLAMA3}"""', 'PARAMETER stop "<|eot_id|>"']
    return [
        "# The GGUF carries the model's chat template in Jinja. Ollama has Go templates and recognises",
        "# common Jinja ones by itself; where answers look wrong, write the format here as a TEMPLATE.",
    ]


def _is_llama3(template: str) -> bool:
    """Whether a Jinja template writes a conversation just as ``_LLAMA3`` does."""
    roles = ("system", "user", "assistant", "user")
    messages = [{"role": role, "content": f"{role} text"} for role in roles]
    expected = "".join(
        f"<|start_header_id|>{role}<|end_header_id|>\n\n{role} text<|eot_id|>" for role in roles
    )
    try:
        rendered = render_chat(template, messages, moment=SOME_DAY)
    except VocabError:
        return False
    return (
        rendered.removeprefix("<|begin_of_text|>")
        == f"{expected}<|start_header_id|>assistant<|end_header_id|>\n\n"
    )
