"""The owner's gateway: proxies hand requests to it, the owner or the owner's rules sign, and it submits (A-50).

A process of the owner's, with mutual TLS on both legs and a durable queue between them.
"""
