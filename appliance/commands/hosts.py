"""Verbs that run on other machines: the identity proxy, the owner's tool, the reference agent."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from appliance.commands.invocation import group, invocation, read_text, show

proxy = group("The identity proxy (runs beside the agents).")
owner = group("The owner's tool (runs with the owner).")
agent = group("The reference agent.")
