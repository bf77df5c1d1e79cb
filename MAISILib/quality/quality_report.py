"""The quality of a set as one HTML file that needs nothing else: no script, no style and no picture from outside."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from MAISILib.files.atomic import write_text
from MAISILib.files.preview import draw_preview
from MAISILib.quality.case_check import CaseCheck
from MAISILib.quality.counting import counted
from MAISILib.quality.hu_check import OrganRange
from MAISILib.quality.quality_evaluation import SetCheck
from MAISILib.volumes import LabelMap, Volume

_PICTURE_WIDTH, _PICTURE_QUALITY = 900, 82
_COLORS = {"passed": "#2f8f5b", "not checked": "#59636e", "unusual": "#b7791f", "failed": "#c0392b"}
_HEADINGS = {
    "boundary_contrast": ("edges at borders", "how much steeper the image is where labels meet; about 1: no relation"),
    "explained_variance": ("explained", "part of the image's variance that the labels explain"),
    "bone_dice": ("bone Dice", "overlap of the mask's bone with voxels above 180 HU"),
    "gas_dice": ("gas Dice", "overlap of the mask's gas with voxels below −300 HU"),
}
_STYLE = """
body{font:15px/1.45 system-ui,sans-serif;color:#1d2329;background:#f5f6f7;margin:0}
main{max-width:1120px;margin:0 auto;padding:24px}
h1{font-size:24px;margin:0 0 4px}h2{font-size:18px;margin:32px 0 8px}
section,table,svg{background:#fff;border:1px solid #dde1e5;border-radius:6px}
section{padding:14px 18px;margin:14px 0}section h3{margin:0 0 6px;font-size:16px}
img{width:100%;border-radius:4px}svg{display:block;width:100%;height:auto}
table{border-collapse:collapse;width:100%}td,th{padding:4px 10px;text-align:right;border-bottom:1px solid #eceff1}
td:first-child,th:first-child,td.t{text-align:left}th{font-weight:600;color:#59636e}
.v{color:#fff;border-radius:4px;padding:1px 8px;font-size:13px}ul{margin:4px 0 10px;padding-left:20px}
.m{color:#59636e}a{color:inherit}
"""


def write_report(
    checked: SetCheck,
    read: Callable[[str], tuple[Volume, LabelMap | None] | None],
    path: Path,
    *,
    title: str,
    pictures: int,
) -> Path:
    """Writes the report: counts, box plots of organs against their ranges, a table, and pictures of the worst cases.

    Args:
        checked: The checks, the worst first.
        read: Case → its image and mask, or ``None`` where it cannot be read.
        path: ``.html``.
        title: Heading.
        pictures: Pictures of so many cases, from the worst on.

    Raises:
        OutputError: The file cannot be written.
    """
    counts = " ".join(f"{_badge(verdict)} {checked.count(verdict)}" for verdict in checked.verdicts)
    parts = [
        f"<h1>{_text(title)}</h1><p>{counted(len(checked.cases), 'case')}: {counts}</p>",
        _plots(checked.cases, checked.ranges),
        "<h2>All cases, the worst first</h2>",
        _table(checked.cases, pictures),
        "<h2>Pictures and findings</h2>",
    ]
    for number, case in enumerate(checked.cases[:pictures]):
        found = read(case.name)
        picture = "" if found is None else _picture(*found)
        parts.append(
            f'<section id="case-{number}"><h3>{_text(case.name)} {_badge(case.verdict)}</h3>{_findings(case)}{picture}'
            "</section>"
        )
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width"><link rel="icon" href="data:,">'
        f"<title>{_text(title)}</title><style>{_STYLE}</style></head><body><main>{''.join(parts)}</main></body></html>\n"
    )
    write_text(path, page)
    return path


def _findings(case: CaseCheck) -> str:
    lines = [finding.text for finding in case.findings]
    lines += [f"{name}: {hu:+.0f} HU against its host" for name, (hu, _) in case.lesions.items() if hu == hu]
    return f"<ul>{''.join(f'<li>{_text(line)}</li>' for line in lines)}</ul>" if lines else ""


def _table(cases: Sequence[CaseCheck], pictures: int) -> str:
    heads = "".join(f'<th title="{_text(why)}">{_text(name)}</th>' for name, why in _HEADINGS.values())
    rows = []
    for number, case in enumerate(cases):
        figures = "".join(f"<td>{_number(case.measures()[key])}</td>" for key in _HEADINGS)
        first = case.findings[0].text if case.findings else ""
        name = _text(case.name)
        linked = f'<a href="#case-{number}">{name}</a>' if number < pictures else name
        rows.append(
            f'<tr><td>{linked}</td><td class="t">{_badge(case.verdict)}</td>'
            f'{figures}<td class="t m">{_text(first)}</td></tr>'
        )
    return f'<table><tr><th>case</th><th class="t">verdict</th>{heads}<th></th></tr>{"".join(rows)}</table>'


def _picture(image: Volume, mask: LabelMap | None) -> str:
    drawn: Any = draw_preview(image, mask, notice="")
    drawn = drawn.resize((_PICTURE_WIDTH, round(drawn.height * _PICTURE_WIDTH / drawn.width)))
    data = io.BytesIO()
    drawn.save(data, format="JPEG", quality=_PICTURE_QUALITY)
    coded = base64.b64encode(data.getvalue()).decode("ascii")
    return f'<img alt="three planes, without and with the mask" src="data:image/jpeg;base64,{coded}">'


def _plots(cases: Sequence[CaseCheck], ranges: Sequence[OrganRange]) -> str:
    """For each organ: the expected range as a band, quartiles of the cases' medians as a box, each case as a dot."""
    organs = [expected for expected in ranges if any(expected.organ in case.medians for case in cases)]
    if not organs:
        return ""
    left, width, line = 170, 900, 34
    values = [case.medians[o.organ] for o in organs for case in cases if o.organ in case.medians]
    low = max(-1100.0, min([*values, *(o.low for o in organs)]))
    high = min(1500.0, max([*values, *(o.high for o in organs)]))

    def x(value: float) -> float:
        return left + (min(max(value, low), high) - low) / (high - low) * (width - left - 20)

    shapes = []
    for tick in range(int(np.ceil(low / 250) * 250), int(high) + 1, 250):
        bottom = 14 + line * len(organs)
        shapes.append(f'<line x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="10" y2="{bottom}" stroke="#eceff1"/>')
        shapes.append(f'<text x="{x(tick):.1f}" y="{bottom + 16}" text-anchor="middle" fill="#59636e">{tick}</text>')
    for row, expected in enumerate(organs):
        shapes += _organ(expected, {c.name: c.medians[expected.organ] for c in cases if expected.organ in c.medians},
                         14 + line * row + line // 2, left, x)  # fmt: skip
    height = 14 + line * len(organs) + 26
    drawing = f'<svg viewBox="0 0 {width} {height}" font-size="13" role="img">{"".join(shapes)}</svg>'
    legend = "Band: expected range. Box: quartiles of the cases, with their median. Dots: cases, red outside the range."
    return f'<h2>Median HU of each organ</h2>{drawing}<p class="m">{legend}</p>'


def _organ(
    expected: OrganRange, medians: Mapping[str, float], y: int, left: int, x: Callable[[float], float]
) -> list[str]:
    first, middle, third = np.percentile(list(medians.values()), (25, 50, 75))
    band = x(expected.high) - x(expected.low)
    box, mark = max(2.0, x(third) - x(first)), f"{x(middle):.1f}"
    shapes = [
        f'<text x="{left - 12}" y="{y + 4}" text-anchor="end" fill="#1d2329">{_text(expected.organ)}</text>',
        f'<rect x="{x(expected.low):.1f}" y="{y - 11}" width="{band:.1f}" height="22" fill="#dcefe4"/>',
        f'<rect x="{x(first):.1f}" y="{y - 6}" width="{box:.1f}" height="12" fill="#9ec5e8" stroke="#3c78ad"/>',
        f'<line x1="{mark}" x2="{mark}" y1="{y - 6}" y2="{y + 6}" stroke="#1b4f7d" stroke-width="2"/>',
    ]
    for name, value in medians.items():
        color = "#1d2329" if expected.low <= value <= expected.high else _COLORS["failed"]
        what = f"<title>{_text(name)}: {value:.0f} HU</title>"
        shapes.append(f'<circle cx="{x(value):.1f}" cy="{y}" r="3" fill="{color}" fill-opacity=".65">{what}</circle>')
    return shapes


def _badge(verdict: str) -> str:
    return f'<span class="v" style="background:{_COLORS[verdict]}">{verdict}</span>'


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _text(text: str) -> str:
    return html.escape(text, quote=True)
