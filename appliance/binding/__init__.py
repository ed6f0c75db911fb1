"""The messages of agent, proxy, owner and server, and the checks between them; pure.

Reading order: `identifier` (names), `jws` (signatures), `claims` (typed reading), `facts` (what checks are told), then
one module per object: `request` (with `renewal`), `approval`, `evidence`, `ear`, `composite`, `possession`, and the
credentials: `dual_identity` (X.509 extensions), `token` (WIT), `verify` (anybody's offline verification).

Every object has `seal` and `unseal` (or `read` and `write`), and where facts from elsewhere decide, `check`. The clock,
nonces, keys and registry records are arguments.
"""
