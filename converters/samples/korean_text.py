"""Korean text to train small tokenizers on, put together from word lists of our own."""

from __future__ import annotations

from collections.abc import Iterator

_NOUNS = """
사람 아이 학교 선생님 학생 친구 가족 어머니 아버지 동생 마을 도시 서울 부산 제주도 대구 인천 광주 대전 강원도
나라 세계 한국 한국어 언어 말 글 한글 문장 단어 책 도서관 이야기 소설 노래 음악 그림 영화 신문 편지
물 바다 강 산 하늘 구름 비 눈 바람 나무 꽃 숲 들판 햇빛 별 달 아침 저녁 오늘 내일 어제 봄 여름 가을 겨울
밥 김치 국수 떡볶이 비빔밥 불고기 과일 사과 배 감자 고구마 커피 시장 가게 식당 부엌 접시 숟가락
집 방 창문 마당 골목 거리 버스 지하철 기차 자전거 자동차 비행기 공항 역 정류장 여행 지도 길
병원 의사 간호사 약국 건강 운동 축구 야구 수영 산책 마음 생각 기억 꿈 희망 사랑 행복 슬픔 웃음
회사 회의 업무 보고서 계획 시간 약속 전화 주소 이름 번호 돈 은행 경제 정부 국회 법 권리 자유 평화
과학 기술 컴퓨터 인터넷 프로그램 모델 데이터 자료 질문 답변 문제 해결 방법 결과 연구 실험 인공지능 번역 검색
"""

_PARTICLES_AFTER_CONSONANT = "은 이 을 과 으로 이나 이라고"
_PARTICLES_AFTER_VOWEL = "는 가 를 와 로 나 라고"
_PARTICLES = "의 에 에서 에게 도 만 부터 까지 처럼 보다 마다 밖에 조차"

_VERBS = """
가 보 먹 읽 쓰 하 배우 만나 기다리 사랑하 생각하 말하 듣 마시 자 일하 공부하 이야기하 시작하 만들 살 알 모르
좋아하 싫어하 도와주 보내 받 찾 걷 뛰 앉 서 열 닫 웃 울 물어보 대답하 설명하 이해하 준비하 사용하 연구하
개발하
"""
_ENDINGS = "고 지만 는 지 겠습니다 겠어요 자 던 거나 더라도 기 기도 는데 네요 는다면 지요"

_SENTENCES = """
안녕하세요, 만나서 반갑습니다. 오늘은 날씨가 참 좋네요.
대한민국의 수도는 서울이고, 인구는 9,400,000명쯤입니다.
한글은 자음 14개와 모음 10개로 이루어져 있습니다.
2024년 3월 15일 오후 2시 30분에 회의가 있습니다.
이 책은 12,500원인데 10% 할인하면 11,250원입니다.
질문이 있으면 언제든지 말씀해 주세요! 친절하게 대답해 드리겠습니다.
"내일 비가 올까요?" 하고 아이가 물었다. '아마도.' 하고 어머니가 대답했다.
그는 도서관에서 책을 읽다가 잠이 들었습니다…
인공지능(AI)은 사람의 말을 이해하고 글을 쓰는 기술이다.
ㅋㅋㅋ 진짜 재밌다 ㅎㅎ 나도 같이 갈래 ㅠㅠ
산은 높고 물은 맑으며 사람들은 서로 돕고 삽니다.
전화번호는 010-1234-5678, 전자우편은 hello@example.com입니다.
The quick brown fox jumps over the lazy dog. It's a small model, and it doesn't know much.
Hello world, this is a test of the tokenizer with English and 한국어 mixed together.
def add(left, right):
    return left + right
for index in range(10): print(index, "번째")
자유(自由)와 평화(平和)는 모든 사람의 권리(權利)이다.
온도는 -3.5℃, 습도는 60%, 속도는 100km/h 입니다. 😀 🎉
첫째, 물을 끓입니다. 둘째, 면을 넣습니다. 셋째, 4분 동안 기다립니다.
"""


def korean_text() -> Iterator[str]:
    """Yield a few thousand short lines: nouns with their particles, verbs with endings, sentences.

    The same lines in the same order each time.
    """
    sentences = _SENTENCES.strip().splitlines()
    for repeat in range(4):
        yield from (sentences if repeat % 2 else reversed(sentences))
    nouns, verbs, endings = _NOUNS.split(), _VERBS.split(), _ENDINGS.split()
    for position, noun in enumerate(nouns):
        closed = (ord(noun[-1]) - 0xAC00) % 28 != 0  # the syllable ends in a consonant
        particles = (_PARTICLES_AFTER_CONSONANT if closed else _PARTICLES_AFTER_VOWEL) + " " + _PARTICLES
        for offset, particle in enumerate(particles.split()):
            verb = verbs[(position * 7 + offset * 3) % len(verbs)]
            ending = endings[(position + offset) % len(endings)]
            other = nouns[(position * 5 + offset * 11 + 1) % len(nouns)]
            yield f"{noun}{particle} {other} {verb}{ending}"
