"""The model card."""

import json
from pathlib import Path

from tools.builtin_model.card import render_card

MODEL_FOLDER = Path(__file__).parents[4] / "neox_serve" / "builtin_model"


def test_card_in_the_model_folder_is_generated_from_its_evaluation() -> None:
    evaluation = json.loads((MODEL_FOLDER / "evaluation.json").read_text(encoding="utf-8"))
    assert (MODEL_FOLDER / "README.md").read_text(encoding="utf-8") == render_card(evaluation)
