"""The model card: valid for the Hub, readable as rendered, and nothing in it that breaks out of its place."""

from __future__ import annotations

import hashlib
import html
import json
import re
import shlex
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import yaml
from command_material import kconv
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from kconv.core.errors import GgufError, InputError, UsageError
from kconv.flows.release import Release, Stated, read_release
from kconv.report.markdown import block, code, escaped, link
from kconv.report.model_card import BEGIN, END, front_matter, merged_card, model_card
from kconv.verify import gguf_artifact, onnx_artifact

pytestmark = pytest.mark.usefixtures("kconv_server")

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SOURCE = {"name": "small-model", "repository": "someone/small-model", "revision": COMMIT, "license": "mit"}
FIGURES = {
    "kl_mean": 0.03723,
    "kl_mean_error": 0.003025,
    "same_top1": 0.9094,
    "perplexity_file": 16.12,
    "perplexity_reference": 15.74,
}
PROOF = {
    "verdict": "passed",
    "scope": "quick",
    "logits": {"figures": FIGURES, "loss": {"grade": "some"}},
    "provenance": {
        "texts": ["held-out.txt"],
        "runtime": "llama.cpp on the CPU",
        "versions": {"torch": "2.13"},
    },
}
EVIL = [
    "x | y | z",
    "a`b``c",
    "<script>alert(1)</script>",
    "](javascript:alert(1)) [x](http://evil.example)",
    "---\nlicense: x\n---",
    "# heading\n\n- item",
    "{{ 7 * 7 }} {% raw %}",
    "```\n<b>out</b>\n```",
    "‮txet desrever",
    "&lt;b&gt; $x$ ~~y~~ @everyone www.evil.example",
]


def gguf_file(path: Path, *, arch: str = "llama", template: str | None = None, **keys: str) -> Path:
    """A GGUF with one tensor, enough for a card."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(path, arch)
    writer.add_file_type(7)
    for key, value in keys.items():
        writer.add_string(f"general.{key.replace('__', '.')}", value)
    if template is not None:
        writer.add_chat_template(template)
    writer.add_tensor("token_embd.weight", np.zeros((4, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def with_manifest(path: Path, **changes: Any) -> Path:
    """A manifest beside a file, with the values a conversion would have put there or others."""
    data = path.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    manifest = {
        "output": {
            "file": path.name,
            "type": "q4_K_M",
            "bytes": len(data),
            "bits_per_weight": 4.85,
            "files": [{"name": path.name, "bytes": len(data), "sha256": digest}],
        },
        "source": {**SOURCE, "files": [{"name": "model.safetensors", "bytes": 9, "sha256": "a" * 64}]},
        "architecture": "llama",
        "parameters": 1_440_000_000,
        "options": {},
        "versions": {"kconv": "0.1.0"},
        "companions": [],
        "proof": PROOF,
        **changes,
    }
    path.with_name(path.name + ".manifest.json").write_text(
        json.dumps(manifest, ensure_ascii=False), encoding="utf-8", errors="backslashreplace"
    )
    return path


class Rendered(HTMLParser):
    """A card as a browser has it: its tags, its links, the cells of its tables."""

    def __init__(self, card: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.rows: list[list[str]] = []
        self.inside = False
        body = re.sub(r"\A---\n.*?^---\n", "", card, count=1, flags=re.DOTALL | re.MULTILINE)
        self.html = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(body)
        self.feed(self.html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
            self.inside = True
        elif tag == "a":
            self.links.append(dict(attrs)["href"] or "")

    def handle_endtag(self, tag: str) -> None:
        self.inside = self.inside and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.rows[-1][-1] += data


def matter(card: str) -> dict[str, Any]:
    """The front matter, as the Hub's own library reads it."""
    found: dict[str, Any] = ModelCard(card).data.to_dict()
    return found


SIMILAR = {"cosine_mean": 0.999926, "cosine_least": 0.9999, "same_nearest": 0.985}
EMBEDDINGS = {
    "verdict": "passed",
    "scope": "quick",
    "embeddings": {"figures": SIMILAR, "loss": "nothing"},
    "provenance": PROOF["provenance"],
}


def test_an_encoder_writes_no_text(tmp_path: Path) -> None:
    """Its card has cosines, and nothing of conversations or of programs that write."""
    path = with_manifest(
        gguf_file(tmp_path / "small-Q8_0.gguf", arch="bert"), architecture="bert", proof=EMBEDDINGS
    )
    card = model_card(read_release([path]), repository="tester/small-GGUF")
    assert matter(card)["pipeline_tag"] == "feature-extraction"
    assert "llama-server -hf tester/small-GGUF:small-Q8_0.gguf --embedding" in card
    for language in card.split("\n---\n\n# "):
        rows = [row for row in Rendered(language).rows if row[0].startswith("small-")]
        assert rows[0][4:6] == ["0.999926", "98.5\u00a0%"]
        for word in ("llama-cli", "ollama", "KL", "template", "템플릿", "이어 쓰는", "plain text"):
            assert word not in language


def test_the_card_says_what_the_manifests_say(tmp_path: Path) -> None:
    quick = with_manifest(gguf_file(tmp_path / "small-Q4_K_M.gguf"))
    bare = gguf_file(tmp_path / "small-Q8_0.gguf")
    release = read_release([quick, bare])
    card = model_card(release, repository="tester/small-GGUF", quantized_by="tester")
    assert matter(card) == {
        "base_model": "someone/small-model",
        "base_model_relation": "quantized",
        "license": "mit",
        "library_name": "gguf",
        "pipeline_tag": "text-generation",
        "tags": ["gguf", "llama.cpp", "kconv"],
        "quantized_by": "tester",
    }
    english, korean = card.split("\n---\n\n# ")
    rows = [row for row in Rendered(english).rows if row[0].startswith("small-")]
    assert rows[0][1:] == [
        "Q4_K_M",
        f"{quick.stat().st_size} bytes".replace(" ", "\u00a0"),
        "4.85",
        "0.0372 ± 0.0030",
        "90.9\u00a0%",
        "× 1.024",
        "passed; loses some accuracy",
    ]
    assert rows[1][-1] == "not proven"
    assert "검증하지 않음" in korean
    assert "## 실행 방법" in korean
    assert f"https://huggingface.co/someone/small-model/tree/{COMMIT}" in Rendered(card).links
    for command in (
        "llama-server -hf tester/small-GGUF:Q4_K_M",
        "ollama run hf.co/tester/small-GGUF:Q4_K_M",
        "lms get https://huggingface.co/tester/small-GGUF",
        'kconv run hf://tester/small-GGUF/small-Q4_K_M.gguf -p "안녕하세요"',
    ):
        assert f"\n{command}\n" in english
        assert f"\n{command}\n" in korean
    assert "torch 2.13" in card
    assert "held-out.txt" in card


def test_what_a_proof_stands_on_is_said_in_korean(tmp_path: Path) -> None:
    """A manifest has it in English, as the proof says it; what it does not know stays as it is."""
    said = {"texts": ["built-in: Universal Declaration of Human Rights, Korean and English"]}
    for number, runtime in enumerate((gguf_artifact.RUNTIME, onnx_artifact.RUNTIME, "another runtime")):
        proof = {**PROOF, "provenance": {**said, "runtime": str(runtime), "versions": {}}}
        path = with_manifest(gguf_file(tmp_path / f"{number}" / "m.gguf"), proof=proof)
        english, korean = model_card(read_release([path])).split("\n---\n\n# ")
        assert f"Proven in: {runtime.split(':')[0]}" in english
        expected = "another runtime" if number == 2 else f"CPU의 {runtime.split()[0]}\\("
        assert f"검증에 쓴 런타임: {expected}" in korean
        assert "내장 텍스트\\(세계 인권 선언, 한국어와 영어\\)" in korean


@pytest.mark.parametrize("evil", EVIL)
def test_nothing_breaks_out(tmp_path: Path, evil: str) -> None:
    """Every text of a manifest and a header is a stranger's; tags, links and rows stay as in a plain card."""

    def card(text: str) -> str:
        path = gguf_file(tmp_path / f"{len(text)}" / "m.gguf", name=text, license__link=text, template=text)
        source = {**SOURCE, "name": text, "repository": text, "revision": text}
        changed = {
            "source": {
                **source,
                "license": "other",
                "license_name": text,
                "languages": [text, "ko"],
                "files": [],
            },
            "architecture": text,
            "versions": {"kconv": text, text: "1"},
            "proof": {
                **PROOF,
                "scope": text,
                "logits": {"figures": {**FIGURES, "kl_mean_error": text}, "loss": {"grade": text}},
                "provenance": {"texts": [text], "runtime": text, "versions": {text: text}},
            },
        }
        changed["source"]["files"] = [{"name": "model.safetensors", "bytes": 9, "sha256": "a" * 64}]
        with_manifest(path, **changed)
        manifest = json.loads(Path(f"{path}.manifest.json").read_text("utf-8"))
        manifest["output"]["type"] = text
        Path(f"{path}.manifest.json").write_text(json.dumps(manifest), "utf-8")
        return model_card(read_release([path]), repository="tester/x")

    plain, hostile = Rendered(card("plain words")), Rendered(card(evil))
    assert hostile.tags == plain.tags
    assert hostile.links == plain.links
    assert [len(row) for row in hostile.rows] == [len(row) for row in plain.rows]
    front = matter(card(evil))
    assert set(front) <= {*matter(card("plain words")), "license_link"}
    assert re.fullmatch(r"[a-z0-9.-]+", front["license_name"])
    assert front["language"] == ["ko"]


@pytest.mark.parametrize(
    "name", ["빈 칸 한글-Q4_K_M.gguf", "it's $HOME;ls-Q4_K_M.gguf", "a`b-Q4_K_M.gguf", "[x](y)_z-Q4_K_M.gguf"]
)
def test_odd_file_names_stay_whole(tmp_path: Path, name: str) -> None:
    path = with_manifest(gguf_file(tmp_path / name))
    shown = Rendered(model_card(read_release([path])))
    assert sum(row[0] == name for row in shown.rows) == 2
    (command,) = set(re.findall(r"llama-server -m (.*)", shown.html))
    assert shlex.split(html.unescape(command)) == [name]


@pytest.mark.parametrize("name", ["a\tb.gguf", "a\u202eb.gguf", "a|b.gguf", "a:b.gguf"])
def test_names_that_cannot_be_published_are_refused(tmp_path: Path, name: str) -> None:
    path = gguf_file(tmp_path / name)
    with pytest.raises(InputError, match="cannot be published") as refused:
        read_release([path])
    assert "rename" in (refused.value.hint or "")


def test_chat_format_is_shown_as_it_is_rendered(tmp_path: Path) -> None:
    template = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}\n{% endfor %}<|assistant|>"
    path = with_manifest(gguf_file(tmp_path / "m.gguf", template=template))
    release = read_release([path])
    assert release.chat == "<|user|>서울의 명소를 알려줘.\n<|assistant|>"
    assert f"```\n{release.chat}\n```" in model_card(release)
    assert "conversational" in matter(model_card(release))["tags"]
    broken = with_manifest(gguf_file(tmp_path / "broken.gguf", template="{{ raise_exception('no') }}"))
    assert "could not be rendered" in model_card(read_release([broken]))


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"license": "apache-2.0"}, {"license": "apache-2.0"}),
        (
            {"license": "other", "license_name": "EXAONE AI 1.1 - NC", "license_link": "LICENSE"},
            {
                "license": "other",
                "license_name": "exaone-ai-1.1-nc",
                "license_link": "https://huggingface.co/someone/small-model/blob/main/LICENSE",
            },
        ),
        (
            {"license": "a licence of ours", "license_link": "https://example.org/terms"},
            {
                "license": "other",
                "license_name": "a-licence-of-ours",
                "license_link": "https://example.org/terms",
            },
        ),
        ({"license": None}, {}),
    ],
)
def test_licences_as_the_hub_wants_them(
    tmp_path: Path, keys: dict[str, Any], expected: dict[str, str]
) -> None:
    files = [{"name": "model.safetensors", "bytes": 9, "sha256": "a" * 64}]
    path = with_manifest(gguf_file(tmp_path / "m.gguf"), source={**SOURCE, **keys, "files": files})
    front = yaml.safe_load(front_matter(read_release([path])))
    assert {key: value for key, value in front.items() if key.startswith("license")} == expected


def test_what_the_user_states_counts_more(tmp_path: Path) -> None:
    path = with_manifest(gguf_file(tmp_path / "m.gguf"))
    release = read_release([path], Stated(base="an/other", licence="cc-by-nc-4.0"))
    assert (release.base, release.licence) == ("an/other", "cc-by-nc-4.0")
    card = model_card(release, languages=["ko"])
    assert "상업적으로 쓸 수 없습니다" in card
    assert "## Files" not in card


def test_models_that_llama_server_cannot_run(tmp_path: Path) -> None:
    path = with_manifest(gguf_file(tmp_path / "m.gguf", arch="t5"), architecture="t5")
    card = model_card(read_release([path]), repository="tester/x")
    assert "llama-server -hf" not in card
    assert "kconv run hf://tester/x/m.gguf" in card


def release_of(tmp_path: Path) -> Release:
    return read_release([with_manifest(gguf_file(tmp_path / "m.gguf"))])


def test_a_card_is_merged_into_what_is_there(tmp_path: Path) -> None:
    card = model_card(release_of(tmp_path))
    made_on_the_website = "---\nlicense: cc-by-4.0\ntags:\n- mine\n---\n"
    merged = merged_card(made_on_the_website, card)
    assert merged is not None
    assert matter(merged)["license"] == "cc-by-4.0"
    assert matter(merged)["tags"] == ["mine", "gguf", "llama.cpp", "kconv"]
    assert matter(merged)["base_model"] == "someone/small-model"
    words = BEGIN.sub(r"My words.\n\n\g<0>", merged).replace(END, f"{END}\n\nMore of mine.\n")
    again = merged_card(words, card)
    assert again is not None
    assert again.count("## Files") == 1
    assert "My words." in again
    assert "More of mine." in again
    assert merged_card(again, card) == again
    other = model_card(read_release([tmp_path / "m.gguf"], Stated(licence="apache-2.0")))
    changed = merged_card(card, other)
    assert changed is not None
    assert matter(changed)["license"] == "apache-2.0"  # nobody had chosen the other
    kept = merged_card(card.replace("license: mit", "license: bsd"), other)
    assert kept is not None
    assert matter(kept)["license"] == "bsd"
    assert merged_card("# Somebody's card\n", card) is None
    assert merged_card("---\nlicense: [\n---\n", card) is None
    assert merged_card("", card) == card


def test_one_release_is_one_model(tmp_path: Path) -> None:
    one = with_manifest(gguf_file(tmp_path / "one.gguf"))
    files = [{"name": "model.safetensors", "bytes": 9, "sha256": "b" * 64}]
    other = with_manifest(gguf_file(tmp_path / "other.gguf"), source={**SOURCE, "files": files})
    with pytest.raises(UsageError, match="different checkpoints"):
        read_release([one, other])
    twice = with_manifest(gguf_file(tmp_path / "elsewhere" / "one.gguf"))
    with pytest.raises(UsageError, match="would both be called"):
        read_release([one, twice])
    with pytest.raises(GgufError):
        read_release([tmp_path / "missing.gguf"])
    with pytest.raises(InputError, match=r"no \.onnx files"):
        read_release([tmp_path])


def test_a_model_in_parts_and_what_goes_along(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama", split_max_tensors=1)
    for name in ("token_embd.weight", "output.weight"):
        writer.add_tensor(name, np.zeros((4, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    first, second = sorted(tmp_path.glob("m-*.gguf"))
    front = gguf_file(tmp_path / "front-m.gguf")
    with_manifest(first, companions=[{"file": front.name, "bytes": 9, "sha256": "c" * 64}])
    Path(tmp_path / "README.md").write_text("a card", "utf-8")
    release = read_release(sorted(tmp_path.iterdir()))
    (artifact,) = release.artifacts
    assert artifact.bytes == first.stat().st_size + second.stat().st_size
    assert [file.name for file in release.files] == [
        first.name,
        second.name,
        front.name,
        f"{first.name}.manifest.json",
    ]
    assert "`front-m.gguf` in the same folder" in model_card(release)
    with pytest.raises(UsageError, match="no GGUF files"):
        read_release([Path(f"{first}.manifest.json")])


def test_the_command(tmp_path: Path) -> None:
    path = with_manifest(gguf_file(tmp_path / "m.gguf"))
    target = tmp_path / "README.md"
    done = kconv("card", path, "-o", target, "--repo", "tester/x", "--lang", "en")
    assert done.returncode == 0, done.stderr
    assert matter(target.read_text("utf-8"))["quantized_by"] == "tester"
    before = target.read_bytes()
    refused = kconv("card", path, "-o", target)
    assert refused.returncode == 3
    assert "--force" in refused.stderr
    assert target.read_bytes() == before
    assert kconv("card", path, "-o", target, "--force").returncode == 0
    said = json.loads(kconv("card", path, "--json").stdout)
    assert said["card"] == target.read_text("utf-8")
    assert said["unproven"] == []
    assert kconv("card", path, "--repo", "no-org").returncode == 2
    assert kconv("card").returncode == 2


def test_markdown() -> None:
    assert escaped("a|b*c_d") == r"a\|b\*c\_d"
    assert escaped("- 1. x") == r"\- 1. x"
    assert escaped("1. x") == r"1\. x"
    assert escaped("2.13.0+cpu: fine") == "2.13.0+cpu: fine"
    assert code("a`b") == "``a`b``"
    assert code("a|b", cell=True) == r"`a\|b`"
    assert block("```\nx") == "````\n```\nx\n````"
    assert link("x", "https://h/a b)") == "[x](https://h/a%20b%29)"
