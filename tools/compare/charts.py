"""Charts as SVG text: horizontal bars on a logarithmic scale, and lines over logarithmic x. No dependencies."""
import math
from html import escape

FONT = 'font-family="sans-serif" font-size="12"'
COLOURS = ("#1b6ca8", "#c8553d", "#5b8e3e", "#8a5fa8", "#a8862b")
KRAIT, RIVAL = COLOURS[0], "#b9b9b9"


def _text(x, y, words, anchor="start", extra=""):
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" {extra}>{escape(str(words))}</text>'


def _svg(width, height, title, parts):
    return (f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
            f'{FONT}>\n<title>{escape(title)}</title>\n<rect width="100%" height="100%" fill="white"/>\n'
            + "\n".join(parts) + "\n</svg>\n")


def _number(value):
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def bars(title, unit, rows):
    """rows: (label, value, low, high, is_krait), in the order of the picture."""
    left, right, top, each = 300, 90, 46, 22
    width, height = 860, top + each * len(rows) + 34
    lowest = 10 ** math.floor(math.log10(min(r[1] for r in rows)))
    highest = 10 ** math.ceil(math.log10(max(r[3] for r in rows)))
    span = width - left - right

    def x(value):
        return left + span * math.log10(max(value, lowest) / lowest) / max(math.log10(highest / lowest), 1)

    parts = [_text(12, 22, title, extra='font-weight="bold"')]
    decade = lowest
    while decade <= highest * 1.001:
        parts.append(f'<line x1="{x(decade):.1f}" y1="{top - 6}" x2="{x(decade):.1f}" y2="{height - 28}" stroke="#dddddd"/>')
        parts.append(_text(x(decade), height - 12, _number(decade), "middle", 'fill="#555555"'))
        decade *= 10
    for k, (label, value, low, high, is_krait) in enumerate(rows):
        y = top + k * each
        weight = 'font-weight="bold"' if is_krait else ""
        parts.append(_text(left - 8, y + 12, label, "end", weight))
        parts.append(f'<rect x="{left}" y="{y}" width="{max(x(value) - left, 1):.1f}" height="{each - 6}" '
                     f'fill="{KRAIT if is_krait else RIVAL}"/>')
        middle = y + (each - 6) / 2
        parts.append(f'<line x1="{x(low):.1f}" y1="{middle}" x2="{x(high):.1f}" y2="{middle}" stroke="#222222"/>')
        parts.append(_text(x(max(value, high)) + 6, y + 12, _number(value), extra=weight))
    parts.append(_text(width - 8, height - 12, unit, "end", 'fill="#555555"'))
    return _svg(width, height, title, parts)


def lines(title, x_label, y_label, series):
    """series: name -> [(x, y)]; x logarithmic, y from 0."""
    left, right, top, bottom = 64, 190, 40, 46
    width, height = 760, 300
    xs = sorted({x for points in series.values() for x, _ in points})
    most = max(y for points in series.values() for _, y in points) * 1.1
    low, high = math.log2(xs[0]), math.log2(xs[-1])

    def at(px, py):
        return (left + (width - left - right) * (math.log2(px) - low) / max(high - low, 1e-9),
                height - bottom - (height - top - bottom) * py / most)

    parts = [_text(12, 22, title, extra='font-weight="bold"')]
    for k in range(5):
        value = most * k / 4
        _, y = at(xs[0], value)
        parts.append(f'<line x1="{left}" y1="{y:.1f}" x2="{width - right}" y2="{y:.1f}" stroke="#dddddd"/>')
        parts.append(_text(left - 6, y + 4, _number(value) if value else "0", "end", 'fill="#555555"'))
    for px in xs:
        parts.append(_text(at(px, 0)[0], height - bottom + 18, f"{px:,}", "middle", 'fill="#555555"'))
    parts.append(_text((left + width - right) / 2, height - 8, x_label, "middle", 'fill="#555555"'))
    parts.append(_text(left, top - 6, y_label, "start", 'fill="#555555"'))
    for k, (name, points) in enumerate(series.items()):
        colour = COLOURS[k % len(COLOURS)]
        places = [at(*p) for p in sorted(points)]
        parts.append(f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="'
                     + " ".join(f"{x:.1f},{y:.1f}" for x, y in places) + '"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in places]
        parts.append(_text(width - right + 12, top + 12 + 18 * k, name, extra=f'fill="{colour}"'))
    return _svg(width, height, title, parts)
