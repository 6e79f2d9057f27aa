"""Colours that can be read, in every theme."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest

from txlab.notebook.views.palette import COLORS, DARK, DARK_CONTRAST, LIGHT, LIGHT_CONTRAST, STATES, Palette
from txlab.notebook.views.panel_style import PANEL
from txlab.notebook.views.style import curve_class, panel_style, stylesheet

THEMES = {"light": LIGHT, "dark": DARK, "light, more contrast": LIGHT_CONTRAST, "dark, more contrast": DARK_CONTRAST}
SHADES = [int(share) / 100 for share in re.findall(r"--txlab-surprise\) (\d+)%", PANEL)]
PILL = 0.1

Color = tuple[float, float, float]


def color(hexadecimal: str) -> Color:
    red, green, blue = (int(hexadecimal[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return red, green, blue


def mixed(over: str, under: str, share: float) -> Color:
    """What is seen of a colour that lets ``1 - share`` of another through."""
    red, green, blue = (share * a + (1 - share) * b for a, b in zip(color(over), color(under), strict=True))
    return red, green, blue


def luminance(rgb: Color) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: Color, other: Color) -> float:
    """As the Web Content Accessibility Guidelines define it."""
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


@pytest.fixture(params=THEMES)
def theme(request: pytest.FixtureRequest) -> Palette:
    return THEMES[request.param]


@pytest.fixture
def least(theme: Palette) -> float:
    return 7.0 if theme in (LIGHT_CONTRAST, DARK_CONTRAST) else 4.5


def test_the_measure_itself() -> None:
    assert contrast(color("#000000"), color("#ffffff")) == pytest.approx(21)
    assert contrast(color("#777777"), color("#ffffff")) == pytest.approx(4.48, abs=0.01)


def test_text_can_be_read_on_everything_behind_it(theme: Palette, least: float) -> None:
    for words in (theme.text, theme.mute, theme.drawn, *theme.states, *theme.curves):
        assert contrast(color(words), color(theme.card)) >= least, words
    for words in (theme.text, theme.mute, theme.drawn):
        assert contrast(color(words), color(theme.raised)) >= least, words
    assert contrast(color(theme.text), color(theme.change)) >= least


def test_states_can_be_read_on_their_pills(theme: Palette, least: float) -> None:
    for state in theme.states:
        assert contrast(color(state), mixed(state, theme.card, PILL)) >= least, state


def test_tokens_can_be_read_on_their_shade(theme: Palette) -> None:
    assert len(SHADES) == 4
    for share in SHADES:
        assert contrast(color(theme.text), mixed(theme.surprise, theme.card, share)) >= 4.5, share


def test_shades_are_told_apart_from_each_other(theme: Palette) -> None:
    levels = [mixed(theme.surprise, theme.card, share) for share in (0.0, *SHADES)]
    assert all(contrast(one, other) > 1.05 for one, other in pairwise(levels))


def test_the_edges_of_controls_are_seen(theme: Palette) -> None:
    assert contrast(color(theme.control), color(theme.card)) >= 3


@pytest.mark.parametrize("css", [panel_style(), stylesheet(in_page=True)])
def test_a_page_has_every_variable_in_every_theme(css: str) -> None:
    used = set(re.findall(r"var\((--txlab-[\w-]+)\)", css))
    assert {f"--txlab-{name}" for name in STATES} <= used
    for rule in re.findall(r"\{(--txlab-card:[^}]*)\}", css):
        assert used <= set(re.findall(r"(--txlab-[\w-]+):", rule))
    assert css.count("{") == css.count("}")


def test_a_page_is_followed_into_dark_and_high_contrast() -> None:
    for css in (panel_style(), stylesheet(in_page=True)):
        assert all(css.count(f"--txlab-drawn:{theme.drawn};") for theme in THEMES.values())
        for mark in ("data-jp-theme-light='false'", ".vscode-dark", "prefers-contrast: more", "forced-colors: active"):
            assert mark in css
    alone = stylesheet(in_page=False)
    assert "var(" not in alone  # converters know no variables
    for mark in ("prefers-color-scheme: dark", "prefers-contrast: more", "forced-colors: active"):
        assert mark in alone


def test_curves_take_turns_with_the_colours() -> None:
    assert len({curve_class(i) for i in range(COLORS)}) == COLORS
    assert curve_class(COLORS) == curve_class(0)
