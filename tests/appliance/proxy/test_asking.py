"""What a proxy asks for: the link to its connection in the attribute that the server lists."""

from __future__ import annotations

import pytest

from appliance.proxy import asking
from est import csr, linking
from est.csrattrs import IDENTITY_LINKING, CsrAttrs
from est.errors import LinkingFailed
from tests.support import key


@pytest.mark.req("E-79", "E-15")
@pytest.mark.parametrize(
    ("listed", "kind", "other"),
    [
        ((IDENTITY_LINKING,), IDENTITY_LINKING, csr.CHALLENGE_PASSWORD),
        ((csr.CHALLENGE_PASSWORD, IDENTITY_LINKING), IDENTITY_LINKING, csr.CHALLENGE_PASSWORD),
        ((csr.CHALLENGE_PASSWORD,), csr.CHALLENGE_PASSWORD, IDENTITY_LINKING),
        ((), csr.CHALLENGE_PASSWORD, IDENTITY_LINKING),
    ],
)
def test_estidentitylinking_goes_before_challengepassword_where_the_server_lists_it(
    listed: tuple[str, ...], kind: str, other: str
) -> None:
    wanted = asking.first(CsrAttrs(attributes=listed))
    read = csr.read(wanted.request(key("proxy"), binding=linking.binding_text(b"session")))
    assert kind in read.attributes and other not in read.attributes
    assert linking.check(read, [b"session"], required=True)
    with pytest.raises(LinkingFailed):
        linking.check(read, [b"another session"])
    assert not linking.is_bound(csr.read(wanted.request(key("proxy"))))
