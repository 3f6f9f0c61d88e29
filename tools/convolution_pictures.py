"""Draws the pictures of `docs/convolutions.md`, as SVG.

    python -m tools.convolution_pictures [--output_dir=docs/convolutions]

They are drawings, and show nothing that was measured.
"""

import pathlib

from absl import app, flags

_OUTPUT = flags.DEFINE_string(
    "output_dir", "docs/convolutions", "Where the files are written."
)

_SIDE = 24  # Pixels of the picture for a pixel of the image.
_LINE, _GREY = "#555", "#d8d8d8"
_BLUE, _ORANGE, _RED = "#4c78a8", "#f58518", "#e45756"


def _cell(left, top, row, column, colour):
    return (
        f'<rect x="{left + column * _SIDE}" y="{top + row * _SIDE}" '
        f'width="{_SIDE}" height="{_SIDE}" fill="{colour}" '
        f'stroke="{_LINE}" stroke-width="0.5"/>'
    )


def _grid(left, top, colours):
    """Returns an image, a list of rows of colours."""
    return [
        _cell(left, top, i, j, colour)
        for i, row in enumerate(colours)
        for j, colour in enumerate(row)
    ]


def _text(x, y, words, size=14):
    return (
        f'<text x="{x}" y="{y}" font-family="sans-serif" font-size="{size}" '
        f'text-anchor="middle" fill="#333">{words}</text>'
    )


def _frame(left, top, row, column, rows, columns, colour):
    return (
        f'<rect x="{left + column * _SIDE}" y="{top + row * _SIDE}" '
        f'width="{columns * _SIDE}" height="{rows * _SIDE}" fill="none" '
        f'stroke="{colour}" stroke-width="3"/>'
    )


def _arrow(left, top, start, end):
    """Returns an arrow from the middle of one cell to that of another."""
    (y1, x1), (y2, x2) = [(r + 0.5, c + 0.5) for r, c in (start, end)]
    line = (
        f'<line x1="{left + x1 * _SIDE}" y1="{top + y1 * _SIDE}" '
        f'x2="{left + x2 * _SIDE}" y2="{top + y2 * _SIDE}" '
        f'stroke="#222" stroke-width="2"/>'
    )
    dot = (
        f'<circle cx="{left + x2 * _SIDE}" cy="{top + y2 * _SIDE}" r="4" '
        f'fill="#222"/>'
    )
    return [line, dot]


def _picture(width, height, parts):
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} '
        f'{height}" width="{width}" height="{height}">'
    )
    ground = f'<rect width="{width}" height="{height}" fill="white"/>'
    return "\n".join([head, ground, *parts, "</svg>"]) + "\n"


def offsets() -> str:
    """Returns two patches of an image that hold the same pair of pixels."""
    parts = []
    for left, row, column, words in (
        (20, 1, 1, "offsets (0, 1) and (1, 2)"),
        (260, 0, 2, "offsets (1, 0) and (2, 1)"),
    ):
        colours = [[_GREY] * 7 for _ in range(5)]
        colours[1][2], colours[2][3] = _BLUE, _ORANGE
        parts += _grid(left, 20, colours)
        parts += _arrow(left, 20, (1, 2), (2, 3))
        parts.append(_frame(left, 20, row, column, 3, 3, _RED))
        parts.append(_text(left + 3.5 * _SIDE, 165, words))
    return _picture(448, 182, parts)


def boxes() -> str:
    """Returns a box as the whole, less rows and columns, and the corner."""
    parts, left = [], 20

    def which(keep):
        return [
            [_BLUE if keep(i, j) else "white" for j in range(5)]
            for i in range(5)
        ]

    terms = (
        ("box", lambda i, j: i < 4 and j < 4),
        ("all", lambda i, j: True),
        ("rows outside", lambda i, j: i == 4),
        ("columns outside", lambda i, j: j == 4),
        ("corner", lambda i, j: i == 4 and j == 4),
    )
    for sign, (words, keep) in zip(("", "=", "−", "−", "+"), terms):
        if sign:
            parts.append(_text(left + 18, 88, sign, 22))
            left += 36
        parts += _grid(left, 20, which(keep))
        parts.append(_text(left + 2.5 * _SIDE, 165, words))
        left += 5 * _SIDE
    return _picture(left + 20, 182, parts)


PICTURES = {"offsets.svg": offsets, "boxes.svg": boxes}


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments: {argv[1:]}")
    folder = pathlib.Path(_OUTPUT.value)
    folder.mkdir(parents=True, exist_ok=True)
    for name, draw in PICTURES.items():
        (folder / name).write_text(draw(), encoding="utf-8")
    print(f"{folder}: {', '.join(PICTURES)}")


if __name__ == "__main__":
    app.run(main)
