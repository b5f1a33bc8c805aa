"""Work of a job that quantizes the served model."""

from dataclasses import dataclass, field

from neox_serve.core.jobs.options import Between, FileKind, OneOf, option

QUANTIZE = "quantize"
"""The kind of a job that quantizes a checkpoint."""
REPORT_FILE = "quantization.json"
"""File in a quantized checkpoint with what the quantization cost."""

SCHEME_NAMES = ("w8a8", "w4a16")
"""The quantization schemes: 8-bit weights and activations, or 4-bit weights in groups of 128 with 16-bit activations."""


@dataclass(frozen=True, slots=True)
class QuantizeWork:
    """Quantization of the served model's checkpoint with GPTQ."""

    scheme: str = field(
        metadata=option("w8a8: 8-bit weights and activations; w4a16: 4-bit weights in groups of 128.", OneOf(SCHEME_NAMES), positional=True)
    )
    output: str = field(metadata=option("Folder for the quantized checkpoint.", file=FileKind.LOCAL_FOLDER, positional=True))
    calibration: str = field(
        metadata=option("Text file for calibration; it should resemble what the model will read.", file=FileKind.FILE, positional=True)
    )
    held_out: str = field(
        metadata=option(
            "Text file, different from the calibration text, on which the model is measured before and after.",
            file=FileKind.FILE,
            positional=True,
        )
    )
    sequences: int = field(default=64, metadata=option("Number of sequences taken from the calibration text.", Between(1, 65_536)))
    sequence_tokens: int = field(default=512, metadata=option("Number of tokens per calibration sequence.", Between(1, 2_048)))
    held_out_tokens: int = field(default=16_384, metadata=option("Maximum number of held-out tokens to measure on.", Between(2, 1 << 24)))
    serve_tokens: int = field(
        default=0,
        metadata=option(
            "Tokens per prompt that an engine of each checkpoint generates, to compare speed and output (0: no engines; operators only).",
            Between(0, 1_024),
            operator_only=True,
        ),
    )
