"""Known vulnerabilities of nats-server, by version."""

import pytest

from eventbus.server import advisories_of

CVE = "CVE-2026-58210"


@pytest.mark.parametrize("version", [(2, 11, 0), (2, 12, 11), (2, 14, 0), (2, 14, 2)])
def test_version_with_a_known_vulnerability_is_found(version):
    (found,) = advisories_of(version)
    assert found.ids == (CVE,)
    assert found.about
    assert found.source.startswith("https://")


@pytest.mark.parametrize("version", [(2, 12, 12), (2, 12, 13), (2, 14, 3), (2, 15, 1)])
def test_version_with_the_fix_has_none(version):
    assert advisories_of(version) == []
