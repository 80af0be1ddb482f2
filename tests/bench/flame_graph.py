"""Draws a flame graph: a rectangle for each frame, as wide as its share of the samples."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from html import escape

from tests.bench.stacks import Stack

_WIDTH = 1200
_ROW = 17
_CHARACTER = 6.6
# Narrower frames are left out.
_MIN_WIDTH = 0.6
_STYLE = "text{font:11px monospace;pointer-events:none}rect{stroke:#fff;stroke-width:.5}"


@dataclass(slots=True)
class _Node:
    """A frame with the same callers, and the number of samples in it."""

    total: int = 0
    callees: dict[str, "_Node"] = field(default_factory=dict)


def draw(
    counts: Mapping[Stack, int], part: Callable[[Stack], str], colours: Mapping[str, str]
) -> str:
    """The SVG document. A frame has the colour of the part that a sample in it belongs to."""
    root = _Node()
    for stack, count in counts.items():
        node = root
        node.total += count
        for frame in stack:
            node = node.callees.setdefault(frame, _Node())
            node.total += count
    depth = _depth(root, _WIDTH / max(1, root.total))
    height = (depth + 2) * _ROW
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}">',
            f"<style>{_STYLE}</style>",
            f'<rect width="{_WIDTH}" height="{height}" fill="#fff"/>',
            *_legend(colours),
            *_rectangles((), root, 0.0, height - _ROW, root.total, lambda at: colours[part(at)]),
            "</svg>\n",
        ]
    )


def _depth(node: _Node, scale: float) -> int:
    """The number of rows of the frames that are wide enough."""
    wide = [callee for callee in node.callees.values() if callee.total * scale >= _MIN_WIDTH]
    return 1 + max((_depth(callee, scale) for callee in wide), default=0)


def _legend(colours: Mapping[str, str]) -> Iterator[str]:
    x = 4.0
    for name, colour in colours.items():
        yield f'<rect x="{x:.0f}" y="3" width="11" height="11" fill="{colour}"/>'
        yield f'<text x="{x + 15:.0f}" y="12">{escape(name)}</text>'
        x += 30 + len(name) * _CHARACTER


def _rectangles(
    stack: Stack, node: _Node, x: float, y: int, total: int, colour: Callable[[Stack], str]
) -> Iterator[str]:
    """The frame at the end of the stack, and above it what it calls."""
    width = node.total / total * _WIDTH
    if width < _MIN_WIDTH:
        return
    label = stack[-1] if stack else "all"
    yield f"<g><title>{escape(label)}: {node.total / total:.1%}</title>"
    box = f'x="{x:.1f}" y="{y}" width="{width:.1f}" height="{_ROW - 1}"'
    yield f'<rect {box} fill="{colour(stack)}"/>'
    fitting = int((width - 4) / _CHARACTER)
    if fitting >= 3:
        text = label if len(label) <= fitting else f"{label[: fitting - 1]}…"
        yield f'<text x="{x + 2:.1f}" y="{y + 12}">{escape(text)}</text>'
    yield "</g>"
    for frame, callee in sorted(node.callees.items()):
        yield from _rectangles((*stack, frame), callee, x, y - _ROW, total, colour)
        x += callee.total / total * _WIDTH
