"""Files of a size or a loss: chosen from measured losses, exact in size, kept as a policy, proven."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from kconv.converters.samples import write_sample
from kconv.core.errors import InputError, KconvError, UsageError
from kconv.core.gguf_file import read_header
from kconv.flows.convert import to_gguf
from kconv.flows.plan import plan
from kconv.flows.verify import verify
from kconv.converters.results import Options
from kconv.quant.formats import FORMATS, format_of_type
from kconv.quant.policy_file import read_choice
from kconv.quant.wish import Wanted
from kconv.vocab.sample_text import TEXTS
