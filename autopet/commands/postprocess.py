"""Command that shows or sets the post-processing of a trained model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from autopet.errors import AutopetError
from autopet.progress import console

if TYPE_CHECKING:
    from autopet.postprocessing import Rules

OFF = "off"
app = typer.Typer()


@app.command(
    epilog="Example: autopet postprocess models/nnunet --set min_component_voxels=10 --set min_ct_hu=-1000 "
    "(team FightTumor's recipe)"
)
def postprocess(
    model: Annotated[Path, typer.Argument(help="Model folder.")],
    assign: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="rule=value, or rule=off. Rules: min_ct_hu, min_suv, bottom_slices, bottom_rule (touching or within), "
            "min_component_voxels, min_component_ml.",
        ),
    ] = None,
    off: Annotated[bool, typer.Option("--off", help="Turn every rule off.")] = False,
) -> None:
    """Show a model's post-processing, or change it; the weights stay as they are."""
    from autopet.checkpoint import load_config, rewrite_config
    from autopet.postprocessing import CONFIG_KEY, rules_of

    if off and assign:
        raise AutopetError("give --off or --set, not both; a single rule is turned off with --set RULE=off")

    def change(config: dict) -> dict:
        rest = {key: value for key, value in config.items() if key != CONFIG_KEY}
        active = {} if off else _assigned(rules_of(config, str(model)), assign or []).active
        return {**rest, CONFIG_KEY: active} if active else rest

    config = rewrite_config(model, change) if off or assign else load_config(model)
    rules = rules_of(config, str(model))
    text = ", ".join(f"{rule} = {value}" for rule, value in rules.active.items())
    console.print(f"{model}: {text or 'no post-processing'}", highlight=False, markup=False)


def _assigned(rules: Rules, assignments: list[str]) -> Rules:
    """The rules with `rule=value` and `rule=off` applied, one after the other."""
    import dataclasses

    from autopet.checkpoint import override

    defaults: dict[str, Any] = {field.name: field.default for field in dataclasses.fields(rules)}
    for assignment in assignments:
        rule, _, value = assignment.partition("=")
        if value == OFF and rule in defaults:
            rules = dataclasses.replace(rules, **{rule: defaults[rule]})
        else:
            rules = override(rules, [assignment])
    return rules
