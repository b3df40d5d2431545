"""Korean language-model checkpoints as GGUF and ONNX files, proven against the checkpoint they come from.

>>> import kconv
>>> conversion = kconv.to_gguf("./42dot_LLM-SFT-1.3B", "dist", types=["q4_0"])
>>> proof = kconv.prove(conversion.outputs[0].path, "./42dot_LLM-SFT-1.3B")
>>> answer = kconv.generate(conversion.outputs[0].path, "서울의 명소를 알려줘.")

- ``to_gguf`` converts a checkpoint folder to GGUF files, ``to_onnx`` to a folder of ONNX files.
- ``quantize`` makes other types of a GGUF file.
- ``plan`` says what ``to_gguf`` would write, to the byte, before any weight is read.
- ``prove`` compares a GGUF file or an ONNX folder with the checkpoint.
- ``generate`` generates text with a GGUF file or an ONNX folder.

Where they take a checkpoint's folder they take a repository of the Hub as well: ``"org/name@revision"``.

Errors are ``kconv.core.errors.KconvError``, with a message and a hint. Each function is imported when it is
first used, so that ``import kconv`` takes no time. ``prove`` is what the command line calls verify:
``kconv.verify`` is a package.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:  # the kconv command begins here, too, and typing alone takes longer than the whole file
    from .flows.convert import to_gguf
    from .flows.generate import generate
    from .flows.plan import plan
    from .flows.quantize import quantize
    from .flows.to_onnx import to_onnx
    from .flows.verify import verify as prove

    __version__: str

__all__ = ["__version__", "generate", "plan", "prove", "quantize", "to_gguf", "to_onnx"]

# Public name -> module, and the name there.
_FUNCTIONS = {
    "generate": ("generate", "generate"),
    "plan": ("plan", "plan"),
    "prove": ("verify", "verify"),
    "quantize": ("quantize", "quantize"),
    "to_gguf": ("convert", "to_gguf"),
    "to_onnx": ("to_onnx", "to_onnx"),
}

if not TYPE_CHECKING:  # a type checker shall report names that are not there

    def __getattr__(name: str) -> object:
        """Import what is asked for, once."""
        if name in _FUNCTIONS:
            from importlib import import_module

            module, function = _FUNCTIONS[name]
            value = getattr(import_module(f".flows.{module}", __name__), function)
        elif name == "__version__":
            from importlib.metadata import version

            value = version("kconv")
        else:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
