import re
from pathlib import Path

PAGE = (Path(__file__).parents[2] / "docs" / "deployment.md").read_text(encoding="utf-8")


def test_files_that_the_page_links_to_are_there():
    docs = Path(__file__).parents[2] / "docs"
    links = re.findall(r"\]\((?!https://)([^)#]+)\)", PAGE)
    assert links
    assert [link for link in links if not (docs / link).exists()] == []
