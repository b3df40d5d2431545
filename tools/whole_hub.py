"""What all Korean models of the Hub would take: ``python tools/whole_hub.py``; docs/en/whole-hub.md.

A calculation, not a measurement: measured rates times assumed numbers. Every input is an option, so that
others can put in theirs; ``--lang ko`` says it in Korean. Standard library only.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any


@dataclass(frozen=True)
class Inputs:
    """Defaults: "measured" stands in docs/en/speed.md or was counted in tests, the others are assumptions."""

    models: int = 4000  # repositories with weights of their own; assumed
    refused: float = 0.15  # of them no family, adapters, quantized already, gated; assumed
    failed: float = 0.01  # of conversions fail (damaged, proof failed); assumed
    again: float = 0.02  # of conversions are done twice (network, machine gone); assumed
    distributable: float = 0.75  # of the files: a licence that lets them be passed on; assumed
    seconds: float = 4.7  # per model, with the quick proof; measured, see below
    seconds_per_billion: float = 14.1  # and per billion weights, two types at once, 2 cores; measured
    source_bits: float = 16.0  # per weight: bf16
    made_bits: float = 8.5 + 4.5  # per weight: q8_0 and q4_0
    types: int = 2
    shard: float = 5e9  # bytes of a shard, the usual size
    download: float = 100e6  # bytes per second of one machine; assumed
    upload: float = 100e6  # the same way back; assumed
    machines: int = 4
    euros_per_hour: float = 0.10  # of a machine with 2 cores, 8 GB and the disk below; assumed
    euros_per_terabyte: float = 1.2  # of traffic out beyond what is included; assumed
    included: float = 20e12  # bytes out a month that cost nothing, per machine; assumed
    api_limit: int = 1000  # requests in 5 minutes to the API, free account (docs/hub/rate-limits)
    resolve_limit: int = 5000  # and for files
    headers_requests: int = 10  # of kconv plan, plus two a shard; its upper bound
    files_requests: int = 12  # for the small files of a model: counted
    upload_requests: int = 8  # of kconv upload, plus four a file: counted, with Xet
    requests_per_file: int = 4


SIZES = ((0.5, 0.25), (2.0, 0.25), (8.0, 0.30), (13.0, 0.13), (32.0, 0.05), (70.0, 0.02))
"""Billions of weights, and the share of models of about that size; assumed."""


@dataclass(frozen=True)
class Result:
    """Bytes, hours, euros, requests; ``busy`` are the shares of the Hub's limits that are used."""

    tried: int
    refused: int
    converted: int
    failed: int
    published: int
    billions: float
    bytes_down: float
    bytes_up: float
    hours_computing: float
    hours_down: float
    hours_up: float
    hours: float
    days: float
    euros_machines: float
    euros_traffic: float
    disk: float
    requests_api: int
    requests_files: int
    busy_api: float
    busy_files: float


def calculate(given: Inputs, sizes: Sequence[tuple[float, float]] = SIZES) -> Result:
    """What it takes. Downloading, computing and uploading overlap: the slowest of them decides."""
    billions = sum(size * share for size, share in sizes) / sum(share for _, share in sizes)
    converted = given.models * (1 - given.refused)
    runs = converted * (1 + given.again)
    published = converted * (1 - given.failed) * given.distributable
    per_billion = 1e9 / 8
    down = runs * billions * given.source_bits * per_billion
    up = published * billions * given.made_bits * per_billion
    computing = runs * (given.seconds + given.seconds_per_billion * billions) / 3600
    down_hours, up_hours = down / given.download / 3600, up / given.upload / 3600
    hours = max(computing, down_hours, up_hours) / given.machines
    largest = max(size for size, _ in sizes) * per_billion
    shards = sum(
        share * max(1, -(-size * given.source_bits * per_billion // given.shard)) for size, share in sizes
    )
    api = given.models * 3 + published * (given.upload_requests + given.requests_per_file * given.types)
    resolves = given.models * (given.headers_requests + 2 * shards) + runs * (given.files_requests + shards)
    windows = max(hours, 1e-9) * 12  # of five minutes
    paid = max(0.0, up - given.included * given.machines)
    return Result(
        given.models,
        round(given.models * given.refused),
        round(converted),
        round(converted * given.failed),
        round(published),
        billions,
        down,
        up,
        computing,
        down_hours,
        up_hours,
        hours,
        hours / 24,
        hours * given.machines * given.euros_per_hour,
        paid / 1e12 * given.euros_per_terabyte,
        2 * largest * (given.source_bits + given.made_bits),
        round(api),
        round(resolves),
        api / windows / given.api_limit,
        resolves / windows / given.resolve_limit,
    )


_LABELS = {
    "tried": ("models looked at", "살펴볼 모델"),
    "refused": ("refused by their headers", "헤더만 보고 거부"),
    "converted": ("converted and proven", "변환하고 검증"),
    "failed": ("failed", "실패"),
    "published": ("published (licence allows it)", "공개(라이선스가 허용)"),
    "billions": ("weights of a model, on average", "모델의 평균 가중치 수"),
    "bytes_down": ("downloaded", "내려받는 양"),
    "bytes_up": ("uploaded", "올리는 양"),
    "hours_computing": ("computing, one machine", "계산(한 대)"),
    "hours_down": ("downloading, one machine", "내려받기(한 대)"),
    "hours_up": ("uploading, one machine", "올리기(한 대)"),
    "hours": ("all of it, {machines} machines side by side", "전체({machines}대 동시)"),
    "euros_machines": ("machines", "서버 비용"),
    "euros_traffic": ("traffic", "트래픽 비용"),
    "disk": ("disk of a machine, for two of the largest", "서버 디스크(가장 큰 모델 두 개분)"),
    "requests_api": ("requests to the API", "API 요청"),
    "requests_files": ("requests for files", "파일 요청"),
    "busy_api": ("share of the API's limit", "API 한도 사용률"),
    "busy_files": ("share of the limit for files", "파일 요청 한도 사용률"),
}


def shown(name: str, value: float, language: str) -> str:
    """A figure with its unit."""
    korean = language == "ko"
    if name.startswith("bytes"):
        return f"{value / 1e12:.0f} TB"
    if name == "disk":
        return f"{value / 1e9:.0f} GB"
    if name.startswith("hours"):
        days = f"{value / 24:.1f}"
        text = f"{value:,.0f}시간" if korean else f"{value:,.0f} h"
        return (f"{text} ({days}일)" if korean else f"{text} ({days} days)") if name == "hours" else text
    if name.startswith("euros"):
        return f"{value:,.0f}유로" if korean else f"{value:,.0f} €"
    if name.startswith("busy"):
        return f"{100 * value:.1f} %"
    if name == "billions":
        return f"{value:.1f}B"
    return f"{value:,.0f}"


def table(result: Result, given: Inputs, language: str = "en") -> str:
    """The result as a Markdown table."""
    lines = ["| | |", "|---|---:|"]
    for name, labels in _LABELS.items():
        label = labels[language == "ko"].format(machines=given.machines)
        lines.append(f"| {label} | {shown(name, getattr(result, name), language)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table or, with --json, inputs and result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    for field in fields(Inputs):
        option = f"--{field.name.replace('_', '-')}"
        parser.add_argument(
            option, type=type(field.default), default=field.default, help=f"[{field.default}]"
        )
    parser.add_argument("--sizes", help="billions of weights and shares: 0.5:0.25,8:0.75")
    parser.add_argument("--lang", choices=("en", "ko"), default="en")
    parser.add_argument("--json", action="store_true")
    words: dict[str, Any] = vars(parser.parse_args(arguments))
    sizes = SIZES
    if words["sizes"]:
        pairs = (pair.split(":") for pair in words["sizes"].split(","))
        sizes = tuple((float(size), float(share)) for size, share in pairs)
    given = Inputs(**{field.name: words[field.name] for field in fields(Inputs)})
    result = calculate(given, sizes)
    if words["json"]:
        print(json.dumps({"inputs": asdict(given), "sizes": sizes, "result": asdict(result)}, indent=2))
    else:
        print(table(result, given, words["lang"]))


if __name__ == "__main__":
    main()
