"""Every Python block of README and documentation runs: one page after the other, each as one script, top to bottom."""

from __future__ import annotations

from pathlib import Path

import pytest
from doc_blocks import blocks

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    page
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
    if not {"_build", "generated"} & set(page.parts)
    and any(block.language == "python" and not block.caption for block in blocks(page))
]


def test_pages_with_code_are_found() -> None:
    assert ROOT / "README.md" in PAGES
    assert len(PAGES) >= 5


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "page"}
    for block in blocks(page):
        if block.language == "python" and not block.caption:
            padded = "\n" * (block.line - 1) + block.text  # tracebacks show the page's own line
            exec(compile(padded, str(page), "exec"), namespace)
