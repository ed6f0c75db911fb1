"""Requirement markers become appliance/docs/conformance.md (see tests/conformance.py)."""
