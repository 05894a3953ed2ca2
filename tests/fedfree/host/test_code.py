"""A hash of code changes with the code, and only with it."""

from pathlib import Path

import pytest

from fedfree.host.code import code_sha256


def test_a_changed_line_anywhere_in_a_package_is_another_hash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "measured"
    (package / "inner").mkdir(parents=True)
    for path in (package / "__init__.py", package / "inner" / "__init__.py", package / "inner" / "deep.py"):
        path.write_text("one = 1\n")
    monkeypatch.syspath_prepend(tmp_path)

    def now(*modules: str) -> str:
        code_sha256.cache_clear()
        return code_sha256(*modules)

    before, beside = now("measured"), now("measured.inner")
    (package / "notes.txt").write_text("no code")
    assert now("measured") == before
    (package / "__init__.py").write_text("one = 2\n")
    assert now("measured") != before and now("measured.inner") == beside
    (package / "inner" / "deep.py").write_text("one = 2\n")
    assert now("measured.inner") != beside and now("measured.inner.deep") != now("measured.inner")
    code_sha256.cache_clear()
