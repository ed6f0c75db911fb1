"""The web front: listeners, TLS, one route table, one error table; knows no service.

app = build_app("device", endpoints, limits=limits)
reply = await app.handle(call, peer)          # no socket needed
"""
