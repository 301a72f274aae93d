"""``lmsmith recipes``: list, copy and check recipes, and show their settings."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path

from lmsmith.cli.output import print_json
from lmsmith.core.config import SettingsError, encode, parse_toml
from lmsmith.core.errors import UserError
from lmsmith.core.files import atomic_write
from lmsmith.core.recipe import CORPORA, recipe_text, shipped_recipes
from lmsmith.core.settings import Setting, settings_as_markdown, settings_as_text, with_comments


def list_recipes(*, json: bool = False) -> None:
    """List the recipes that come with lmsmith."""
    descriptions = {
        name: str(tomllib.loads(text).get("description", ""))
        for kind in ("", CORPORA)
        for name, text in shipped_recipes(kind).items()
    }
    if json:
        print_json({"recipes": descriptions})
        return
    width = max((len(name) for name in descriptions), default=0)
    for name, description in descriptions.items():
        print(f"{name:<{width}}  {description}".rstrip())


def copy_recipe(name: str, file: Path, *, force: bool = False) -> None:
    """Copy a recipe to a file of your own, with a comment on what each setting means.

    Args:
        name: A shipped recipe, or a .toml file.
        file: Where to; a folder keeps the name.
        force: Write over a file that exists.
    """
    corpora = shipped_recipes(CORPORA)
    stem, text = recipe_text(name, CORPORA if name in corpora else "")
    target = file / f"{stem}.toml" if file.is_dir() else file
    if target.exists() and not force:
        raise UserError(f"{target}: exists already", "Name another file, or add --force.")
    if name in shipped_recipes():
        from lmsmith.stages.listing import recipe_settings

        text = with_comments(text, recipe_settings())
    elif name in corpora:
        from lmsmith.corpus.build.recipe import corpus_settings

        own = [replace(each, key=each.key.removeprefix("corpus.")) for each in corpus_settings()]
        text = with_comments(text, own)
    atomic_write(target, text)
    command = "corpus build" if name in corpora else "run"
    print(f"{target}: change it, then lmsmith {command} {target}")


def show_settings(key: str = "", *, json: bool = False, markdown: bool = False) -> None:
    """Show type, default, range and meaning of every setting of every stage.

    Those of a round of improve stand under improve, those of a corpus under corpus; on their
    command lines and in their recipes they have no such beginning: --set gates.win_rate=0.5.

    Args:
        key: A stage, or one key, such as ppo.gae_lambda or improve.gates; all without it.
        markdown: Print a page of Markdown.
    """
    found = all_settings(key)
    if json:
        print_json({"settings": [each.as_dict() for each in found]})
    else:
        print(settings_as_markdown(found) if markdown else settings_as_text(found))


def all_settings(key: str = "") -> list[Setting]:
    """Every setting of a recipe and of a round, or those that a key names.

    Raises:
        UserError: no such stage or key; the nearest one is named.
    """
    from lmsmith.corpus.build.recipe import corpus_settings
    from lmsmith.improve.recipe import round_settings
    from lmsmith.stages.listing import chosen_settings, recipe_settings

    others = {"improve": round_settings, "corpus": corpus_settings}
    if (found := others.get(key.partition(".")[0])) is not None:
        return chosen_settings(found(), key)
    return (
        recipe_settings(key) if key else [*recipe_settings(), *round_settings(), *corpus_settings()]
    )


def validate_recipe(file: str, *, json: bool = False) -> int:
    """Check a recipe without running it: every problem, each with what to do.

    Args:
        file: A .toml file, or a shipped recipe.
    """
    from lmsmith.corpus.build.recipe import load_corpus_recipe
    from lmsmith.stages.pipeline import load_stage_recipe

    corpora = shipped_recipes(CORPORA)
    text = recipe_text(file, CORPORA if file in corpora else "")[1]
    try:
        if file in corpora or "sources" in parse_toml(text, file):
            corpus = load_corpus_recipe(file)
            found, about = encode(corpus), f"sources: {', '.join(corpus.sources)}"
        else:
            recipe = load_stage_recipe(file)
            found, about = recipe.as_dict(), f"stages: {', '.join(recipe.stages)}"
    except SettingsError as error:
        if not json:
            raise
        problems = [problem.as_dict() for problem in error.problems]
        print_json({"valid": False, "problems": problems})
        return UserError.exit_code
    if json:
        print_json({"valid": True, "problems": [], "recipe": found})
    else:
        print(f"{file}: no problems; {about}")
    return 0
