"""Templates: what they may, and what they may not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny_writers

from batchnlp.backends.model_files import resolve_model
from batchnlp.errors import ModelError, SpecError
from batchnlp.tasks.chat_template import chat_template, check_system
from batchnlp.templates import LONGEST, LONGEST_TEMPLATE, Template, TemplateFault


def render(source: str, **values: object) -> str:
    return Template(source, "task.prompt").render(values)


def test_a_template_names_its_columns() -> None:
    template = Template("{{ text }} {{ title|upper }} {% for x in tags %}{{ x }}{% endfor %}", "task.prompt")
    assert template.names == ["tags", "text", "title"]
    assert template.render({"text": "a", "title": "b", "tags": ["c", "d"]}) == "a B cd"
    assert (
        render("{% for x in tags %}{{ loop.index }}/{{ loop.length }}{{ x }}{% endfor %}\n", tags="ab") == "1/2a2/2b\n"
    )


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ text.__init__.__globals__ }}",
        "{{ cycler.__init__.__globals__.os }}",
        "{{ 'a' * 100000000 }}",
        "{{ [0] * 100000000 }}",
        "{{ 9 ** 9 ** 9 }}",
        "{{ '%1000000000d' % 1 }}",
        "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}",
        "{% for a in range(99999) %}{{ text }}{% endfor %}",
        "{{ nothing }}",
        "{{ text.missing.attribute }}",
        "{{ 1 // 0 }}",
    ],
)
def test_a_template_that_does_harm_or_breaks_is_stopped(source: str) -> None:
    with pytest.raises(TemplateFault):
        render(source, text="x" * 1000)


def test_a_template_that_is_none_is_refused() -> None:
    with pytest.raises(SpecError, match=r"task\.prompt is no jinja2 template"):
        Template("{{ text", "task.prompt")
    with pytest.raises(SpecError, match="shorten it"):
        Template("x" * (LONGEST_TEMPLATE + 1), "task.prompt")
    with pytest.raises(TemplateFault, match=f"{LONGEST:,} characters"):
        render("{{ text }}{{ text }}", text="x" * (LONGEST // 2 + 1))


MESSAGES = [{"role": "system", "content": "be"}, {"role": "user", "content": "hi <b>"}]
TEMPLATES = {
    "plain": tiny_writers.CHAT,
    "loops": "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}\n"
    "    {{- m['content'] | trim | tojson }}{% endfor %}\n{% if not tools %}{{ eos_token }}{% endif %}",
    "generation": "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
    "namespace": "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n % 2 }}",
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_chat_templates_give_what_transformers_gives(tmp_path: Path, name: str) -> None:
    fast = tiny_writers.save_tokenizer(tmp_path, frame="<s> $A", chat=TEMPLATES[name])
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"x")
    template = chat_template(resolve_model(str(tmp_path), None))
    assert template is not None
    want = fast.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
    assert template.render(MESSAGES) == want


def test_a_chat_template_is_found_wherever_it_is_kept(tmp_path: Path) -> None:
    tiny_writers.save_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"x")
    model = resolve_model(str(tmp_path), None)
    assert chat_template(model) is None
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    several = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "mine"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": several}))
    found = chat_template(model)
    assert found is not None
    assert found.render(MESSAGES) == "mine"
    assert resolve_model(str(tmp_path), None).tokenizer != model.tokenizer, "another template is another recipe"
    (tmp_path / "chat_template.jinja").write_text("{{ raise_exception('no system') if messages[0].role == 'system' }}")
    found = chat_template(model)
    assert found is not None
    with pytest.raises(ModelError, match=r"takes no task\.system .*no system"):
        check_system(found, model)
