"""The colours of figures: each a value for papers and a CSS variable of the page, which knows light and dark."""

from __future__ import annotations

INK = "#1b1f24"
SOFT = "#57606a"
RULE = "#d5dae0"
EDGE = "#828b96"
BOX = "#f3f5f7"
PAGE = "#ffffff"
SERIES = ("#0065a8", "#b34700", "#00735a", "#8f3f97", "#6b5b00", "#3a3f47")  # distinct to the colour-blind too
HEAT = ("#cfe0f0", "#bcd3e8", "#a8c5e0", "#95b8d8", "#82aacf", "#2f69a5", "#1d5794", "#0f4583", "#08306b")
LESS = ("#f6dcc9", "#f0cdb2", "#eabe9b", "#e3ae85", "#dc9e70", "#b05a1c", "#974a12", "#7d3b0a", "#632c04")  # below 0
LIGHT_HEAT = 5  # the first levels, on which dark text is read; on the others, text has the page's colour

VARIABLES = {
    INK: "--ink",
    SOFT: "--soft",
    RULE: "--line",
    EDGE: "--edge",
    BOX: "--box",
    PAGE: "--page",
    **{colour: f"--s{k}" for k, colour in enumerate(SERIES)},
    **{colour: f"--h{k}" for k, colour in enumerate(HEAT, 1)},
    **{colour: f"--n{k}" for k, colour in enumerate(LESS, 1)},
}
