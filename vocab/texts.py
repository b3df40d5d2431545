"""The texts token parity is measured on: written for the project, composed with a fixed seed, and UDHR.

They are chosen for where tokenizers disagree: Hangul composed and decomposed, spaces and newlines in runs,
digits, contractions, emoji of several code points, invisible characters, and special tokens spelled out.
"""

from __future__ import annotations

import functools
import random
import unicodedata
from collections.abc import Iterator, Sequence
from importlib import resources

_SEED = 20231028
_COMPOSED = 900

KOREAN = (
    "안녕하세요. 만나서 반갑습니다!",
    "오늘 날씨가 참 좋네요, 그렇죠?",
    "대한민국의 수도는 서울특별시이다.",
    "인공지능 모델을 4비트로 양자화하면 크기가 약 8분의 1로 줄어든다.",
    "그는 “괜찮아요.”라고 말하고는 밖으로 나갔다…",
    "ㅋㅋㅋㅋㅋ 진짜 웃기다 ㅠㅠ ㅎㅎ ㅇㅇ ㄴㄴ ㄹㅇ",
    "뷁 쀍 꿹 뙠 홟 쌂 읿 뷀 햏햏 궯",
    "값을 깎아 달라고 했더니 흙투성이 닭을 내놓았다",
    "회의는 2024년 3월 15일(금) 오후 2시 30분에 시작합니다.",
    "전화번호는 02-1234-5678, 우편번호는 06236입니다.",
    "삼십육만 오천 원(₩365,000)을 냈다.",
    "붙여쓰기를잘못하면아버지가방에들어가신다",
    "띄 어 쓰 기 를 너 무 많 이 하 면",
    "제가요?왜요?싫은데요!",
    "먹었겠습니다만은커녕",
    "‘가’와 ‘나’ 사이에 ‘다’가 있다",
    "▶ 공지: 서버 점검 안내 ◀",
    "①번과 ②번 중에서 고르시오. ㉠~㉤",
    "㈜한빛, ㉿, ㎏, ㎡, ℃, ½, ⅔",
    "「훈민정음」은 1446년에 반포되었다",
)
OLD_KOREAN = (
    "나랏말ᄊᆞ미 듕귁에 달아 문ᄍᆞ와로 서르 ᄉᆞᄆᆞᆺ디 아니ᄒᆞᆯᄊᆡ",
    "ㆍ ㆆ ㅿ ㆁ ㅸ ㆅ ㅹ",
    "\u1100\u1161\u11a8 \u1112\u1161\u11ab\u1100\u1173\u11af",
    "\u1100\u1161\u1102\u1161 \u1161 \u11a8 \u1100\u1100",
    "\ua960\u1161\ud7cb \ud7b0 \u115f\u1161\u1160",
    "ㄱㄴㄷㄹㅁㅂㅅㅇㅈㅊㅋㅌㅍㅎㅏㅑㅓㅕㅗㅛㅜㅠㅡㅣㄳㄵㄶㄺㄻㄼㄽㄾㄿㅀㅄ",
    "ﾡﾢﾣ ￂￃ",
)
HANJA = (
    "大韓民國憲法 第一條",
    "學而時習之 不亦說乎",
    "金(김) 樂(락/악/요) 車(차/거)",
    "漢字와 한글을 混用하던 時節",
    "羅 樂 理 \uf914 \uf9dc \u2f00 𠀀𪜈",
    "日本語のテキストも混ざります。カタカナ、ひらがな、ﾊﾝｶｸ",
    "这是一个简体中文句子，用于测试。",
)
LATIN = (
    "The quick brown fox jumps over the lazy dog.",
    "I'm sure they've said we'll go; he'd better, it's Tom's and y'all don't",
    "I'M SURE THEY'VE SAID WE'LL GO; HE'D BETTER, IT'S TOM'S AND Y'ALL DON'T",
    "'s 't 're 've 'm 'll 'd 'S 'T 'Re 'vE 'M 'lL 'D 'x ''s 's's",
    "I’m curly, it’s fine, they’ve gone",
    "camelCase PascalCase snake_case SCREAMING_CASE kebab-case XMLHttpRequest",
    "naïve café Ångström señor Zürich Øresund œuvre ﬁn Ⅳ ß ẞ İı",
    "e\u0301 a\u0308 o\u0302\u0323 n\u0303 q\u0307\u0323",
    "Iñtërnâtiônàlizætiøn",
    "antidisestablishmentarianism pneumonoultramicroscopicsilicovolcanoconiosis",
    "e-mail: hong.gildong+test@example.co.kr",
    "https://www.example.com/경로/파일?q=한국어&lang=ko#섹션-1",
    "http://localhost:8080/v1/models/%ED%95%9C%EA%B5%AD",
    "C:\\Users\\홍길동\\Documents\\보고서.hwp ~/.cache/huggingface",
)
MIXED = (
    "GPU 8장으로 LLM을 fine-tuning했는데 loss가 0.123까지 떨어졌어요",
    "AI봇은 Python3.11에서 pip install로 설치한다",
    "K-POP과 J-POP, 그리고 e스포츠",
    "v1.2.3-beta+build.45를 릴리스함",
    "iPhone15Pro의 A17칩은 3nm공정",
    "질문: What is 사랑? 답변: Love입니다.",
    "호기심 많은 인간 (human)과 인공지능 봇 (AI bot)의 대화입니다.",
    "<human>: 오늘 뭐 먹지? <bot>: 김치찌개 어때요?",
    "### Question: 1+1은?\n\n### Response: 2입니다.",
)
NUMBERS = (
    "3.141592653589793",
    "1,234,567.89",
    "-273.15°C",
    "1e-05 6.02e23 0x7F 0b1010 0o755",
    "10:30:45.123",
    "2024-02-29T23:59:59+09:00",
    "1/2 3½ ¼ x² x₂ ⅷ Ⅻ ⑩ ⑽",
    "১২৩ ٣٤٥ ๑๒๓ 〇一二三 １２３４",
    "제1조 제10항 제100호",
    "192.168.0.1:8080",
    "010-1234-5678",
    "100%와 50.5％",
)
CODE = (
    "def 더하기(a: int, b: int) -> int:\n    return a + b\n",
    'for (int i = 0; i < n; ++i) {\n\tprintf("%d\\n", arr[i]);\n}\n',
    "SELECT 이름, COUNT(*) FROM 사용자 WHERE 나이 >= 20 GROUP BY 이름;",
    '<div class="본문">&nbsp;안녕 &lt;b&gt;</div>',
    '{"이름": "홍길동", "나이": 30, "태그": ["a", "b"], "없음": null}',
    "if x != y and not (z // 2 ** 3 % 5 <<= 1): pass  # 주석",
    "$ ls -la | grep '^d' && echo \"완료\" > /dev/null 2>&1",
    "\\frac{1}{2} \\alpha_{i}^{2} $$E = mc^2$$",
    "```python\nprint('안녕')\n```",
    "- [ ] 할 일\n- [x] 한 일\n  * 하위\n1. 하나\n2. 둘\n",
    "| 열1 | 열2 |\n|-----|:---:|\n| 가 | 나 |\n",
    "a=b;c==d;e===f;g!=h;i<=j;k>=l;m&&n;o||p;q??r;s?.t",
    "<0x41> <0xEA> <0x0A> \\x41 \\u0041 [UNK] [PAD] [CLS] [MASK] <unk> <s> </s> <pad> <mask>",
    "<|endoftext|> <|im_start|> <|eot_id|> <||bos||> <extra_id_0> [BOS] [EOS] <s >",
)
SYMBOLS = (
    "👍🏽 👩‍👩‍👧‍👦 🇰🇷🇺🇸 🏳️‍🌈 ❤️ ☺︎ 1️⃣ #️⃣",
    "🤖안녕🙂하세요🎉🎉🎉",
    "😀😃😄😁😆",
    "★☆●○◎◇◆□■△▲▽▼→←↑↓↔〓≪≫√∽∝∵∫∬∈∋⊆⊇⊂⊃∪∩∧∨¬⇒⇔∀∃",
    "…‥·・‧•–—―‐‑‒−",
    "「」『』【】〔〕《》〈〉（）［］｛｝",
    "！？，．：；～＠＃＄％＆＊＋－／＝",
    "ＦＵＬＬＷＩＤＴＨ　ｔｅｘｔ",
    "!!! ??? ... ,,, ;;; ::: --- === *** ### @@@ $$$ %%% ^^^ &&& ~~~",
    "()[]{}<>«»‹›\"'`´‘’“”„‚",
    "₩ $ € £ ¥ ₿ ¢",
    "♪ ♬ ☎ ☏ ✓ ✗ ✔ ✘ © ® ™ § ¶ † ‡",
    "\u2581 \u2581\u2581 a\u2581b \u2581가 나\u2581",
    "\u0120 \u010a Ġ안녕 Ċ",
)
INVISIBLE = (
    "a\u00a0b\u00a0\u00a0c 가\u00a0나",
    "a\u200bb\u200c\u200dc\ufeffd\u2060e",
    "\u3000전각\u3000공백\u3000",
    "\u2002\u2003\u2009\u202f\u205f\u1680a",
    "줄\u2028구분\u2029문단\u0085다음",
    "\u200e\u200fעברית \u202bالعربية\u202c mixed",
    "مرحبا بالعالم שלום עולם",
    "हिन्दी ภาษาไทย ქართული ελληνικά русский тiếng Việt",
    "\x00\x01\x02\x1b[31m\x7f\x80\x9f",
    "a\x00b 가\x00나",
    "\ufffd\ufffd 깨진\ufffd글자 \ufffe \U0010ffff \ue000",
    "a\x0bb\x0cc\x1cd\x1de\x1ef\x1fg",
    "\u0300\u0301 \u20e3 \ufe0f",
    "Z\u0351\u036b\u0343a\u0328\u0321l\u0334g\u0337o\u0338",
)
SPACES = (
    " ",
    "\n",
    "\t",
    "\r",
    "\r\n",
    "\n\n",
    " \n",
    "\n ",
    "\t\t",
    " \t ",
    "\r\n\r\n",
    "\n\r",
    "  \n  \n\n   ",
    "a  b   c    d",
    "a\n\nb\n\n\nc",
    "a\tb\t\tc",
    "a\r\nb\r\n\r\nc",
    " 앞 공백",
    "뒤 공백 ",
    "  앞뒤  공백  ",
    "\n줄바꿈으로 시작",
    "줄바꿈으로 끝\n",
    "가 \n나",
    "가\n 나",
    "가 \n\n 나",
    "문단 하나.\n\n문단 둘.\n\n\n문단 셋.",
    "    들여쓰기\n        더 들여쓰기\n\t탭",
    "!\n!\n\n! \n",
    "끝.   \n   시작",
)
GROUPS = (KOREAN, OLD_KOREAN, HANJA, LATIN, MIXED, NUMBERS, CODE, SYMBOLS, INVISIBLE, SPACES)
_GLUE = ("", "", " ", " ", "  ", "\n", "\n\n", "\t", "\r\n", ", ", "은 ", " 1", "\u3000")


@functools.cache
def built_in() -> tuple[str, ...]:
    """The built-in texts, each once, in a fixed order; the first is empty."""
    return tuple(dict.fromkeys(_all()))


def _all() -> Iterator[str]:
    yield ""
    fragments = [fragment for group in GROUPS for fragment in group]
    for fragment in fragments:
        yield fragment
        yield unicodedata.normalize("NFD", fragment)
        yield f" {fragment}"
        yield f"{fragment} "
        yield f"{fragment}\n"
    yield from _runs()
    yield from _digits()
    yield from _letters()
    for name in ("kor", "eng", "jpn", "cmn_hans"):
        for line in udhr(name):
            yield line
            if name == "kor":
                yield unicodedata.normalize("NFD", line)
                yield line.replace(" ", "")
    yield from _composed(fragments)


def udhr(language: str) -> tuple[str, ...]:
    """The paragraphs of the Universal Declaration of Human Rights: kor, eng, jpn or cmn_hans."""
    text = (resources.files(__package__) / "data" / "udhr" / f"{language}.txt").read_text(encoding="utf-8")
    return tuple(line for line in text.split("\n") if line)


def _runs() -> Iterator[str]:
    """Runs of white space in every length that tokenizers have tokens for, alone and within text."""
    for count in (*range(1, 34), 47, 48, 64, 65, 100, 129):
        yield " " * count
        yield f"a{' ' * count}b"
        yield f"가{' ' * count}"
        yield f"{' ' * count}나"
        if count <= 20:
            for character in ("\n", "\t", "\r\n", "\u3000", "\u00a0"):
                yield character * count
                yield f"가{character * count}나"
            yield " " * count + "\n" + " " * count
            yield "\n" * count + " " * count + "x"
            yield "x" + " \n" * count + "y"


def _digits() -> Iterator[str]:
    number = "31415926535897932384626433832795"
    for count in range(1, len(number) + 1):
        digits = number[:count]
        yield digits
        yield f" {digits}"
        yield f"{digits}원"
        yield f"제{digits}조"
        yield f"a{digits}b"
        yield f"{int(digits):,}"
        yield f"{digits}.{digits[::-1]}"
        yield " ".join(digits)
        yield "0" * count


def _letters() -> Iterator[str]:
    """Long words and repeated characters: merges upon merges."""
    for unit in (
        "a",
        "A",
        "가",
        "ㅋ",
        "ㅠ",
        "한글",
        "ab",
        "=",
        "-",
        ".",
        "…",
        "😀",
        "あ",
        "字",
        "'",
        "1가",
        "aA",
    ):
        for count in (2, 3, 4, 5, 7, 8, 15, 16, 31, 64, 200):
            yield unit * count
            yield f" {unit * count} "
    word = "".join(chr(0xAC00 + (index * 389) % 11172) for index in range(1500))
    yield word
    yield "supercalifragilisticexpialidocious" * 40
    for start in range(0xAC00, 0xD7A4, 64):
        syllables = "".join(map(chr, range(start, min(start + 64, 0xD7A4))))
        yield syllables
        yield unicodedata.normalize("NFD", syllables[::7])
    for start in range(0x20, 0x180, 32):
        block = "".join(map(chr, range(start, start + 32)))
        yield block
        yield " ".join(block)


def _composed(fragments: Sequence[str]) -> Iterator[str]:
    chance = random.Random(_SEED)
    words = [word for fragment in fragments for word in fragment.split(" ") if word]
    for index in range(_COMPOSED):
        pool = fragments if index % 3 == 0 else words
        count = chance.randint(2, 4 if pool is fragments else 12)
        text = "".join(chance.choice(pool) + chance.choice(_GLUE) for _ in range(count))
        yield text if chance.random() < 0.5 else text.strip()


def with_specials(texts: Sequence[str]) -> tuple[str, ...]:
    """Texts that spell the given tokens: alone, glued to words, beside white space, one after another."""
    texts_with: list[str] = []
    for index, text in enumerate(texts):
        other = texts[(index + 1) % len(texts)]
        texts_with += [
            text,
            f"{text}{text}",
            f"{text}안녕{other}",
            f"가{text}나",
            f"hello {text} world",
            f" {text}",
        ]
        texts_with += [
            f"{text} ",
            f"{text}\n{other}\n",
            f"1{text}2 {other}",
            f"{text[:-1]} {text[1:]}",
            f"<{text}>",
        ]
    return tuple(dict.fromkeys(texts_with))
