"""Messages say settings and commands as the reader writes them."""

from __future__ import annotations

import pytest

from pgdefect.cli.spelling import CommandLine
from pgdefect.core.errors import UsageError
from pgdefect.core.wording import command, option, speaking
from pgdefect.core.words import SPLITS, check_word, either


def test_python_is_shown_parameters_and_calls() -> None:
    assert option("pca_dim") == "pca_dim"
    assert option("transform", "none") == "transform='none'"
    assert option("image_size", "SIZE") == "image_size=SIZE"
    shown = command("ingest", "PATH", category="leather", accept_changes=True)
    assert shown == "project.ingest(PATH, category='leather', accept_changes=True)"


def test_what_has_no_method_is_a_command_in_python_too() -> None:
    assert command("delete", detector=3, yes=True) == "pgdefect delete --detector 3 --yes"


def test_the_command_line_is_shown_flags_and_commands_that_can_be_pasted() -> None:
    with speaking(CommandLine()):
        assert option("pca_dim") == "--pca-dim"
        assert option("pca_dim", 64) == "--pca-dim 64"
        assert option("k") == "-k"
        assert option("store", False) == "--no-store"
        assert option("keep_patches", True) == "--keep-patches"
        shown = command("ingest", "PATH", category="red leather", accept_changes=True)
    assert shown == "pgdefect ingest PATH --category 'red leather' --accept-changes"
    assert option("pca_dim") == "pca_dim"


def test_the_spelling_is_restored_after_an_error() -> None:
    with pytest.raises(ValueError, match="stop"), speaking(CommandLine()):
        raise ValueError("stop")
    assert option("pca_dim") == "pca_dim"


def test_a_word_that_is_none_of_the_known_ones_is_refused() -> None:
    check_word("split", None, SPLITS)
    check_word("split", "test", SPLITS)
    with pytest.raises(
        UsageError, match=r"^split is train, test, production or simulated, not 'x'"
    ):
        check_word("split", "x", SPLITS)
    assert either(["exact"]) == "exact"
    assert either(["half", "single"]) == "half or single"
